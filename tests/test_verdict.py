"""From numbers and tolerances to an outcome: tables, and laws for all numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.diagnosis.divergence import Divergence
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.coverage import Coverage, Leftover
from pytest_qat.measure.latency import Speedup
from pytest_qat.measure.parity import Parity
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import (
    Outcome,
    Verdict,
    judge_accuracy,
    judge_coverage,
    judge_parity,
    judge_size,
    judge_speedup,
    strictly,
)

STABLE = settings(deadline=None, derandomize=True)
PASSED, FAILED, INCONCLUSIVE = Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE
RANK = {FAILED: 0, INCONCLUSIVE: 1, PASSED: 2}
FRACTION = st.floats(0, 1)


def accuracy(**changes: Any) -> Accuracy:
    fields = {"fp32": 0.9, "int8": 0.9, "ptq": 0.9, "drop": 0.0, "drop_ci": (-0.005, 0.005), "p_value": 1.0,
              "ptq_p_value": 1.0, "samples": 1000, "kind": "metric"}
    return Accuracy(**{**fields, **changes})


def coverage(**changes: Any) -> Coverage:
    fields = {"weights": 100, "int8_weights": 90, "macs": 1000, "int8_macs": 800, "int8_modules": 3, "leftovers": ()}
    return Coverage(**{**fields, **changes})


def speedup(low: float, high: float, *, estimate: float | None = None) -> Speedup:
    return Speedup(estimate=(low + min(high, 10)) / 2 if estimate is None else estimate, ci=(low, high), pairs=20,
                   confidence=0.95, baseline_s=0.002, candidate_s=0.001, elapsed_s=3)


def left(module: str) -> Leftover:
    return Leftover(module=module, kind="Linear", weights=10, macs=100, reason="it is so")


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


# -- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "tolerances", "outcome", "strict_outcome"), [
    ({}, {}, PASSED, PASSED),
    ({"drop": 0.01, "drop_ci": (0.005, 0.01), "p_value": 0.001}, {}, PASSED, PASSED),
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02), "p_value": 0.5}, {}, PASSED, INCONCLUSIVE),
    ({"drop": 0.03, "drop_ci": (0.01, 0.05), "p_value": 0.001}, {}, FAILED, FAILED),
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, {}, INCONCLUSIVE, INCONCLUSIVE),
    ({"drop": 0.03, "drop_ci": (0.01, 0.05), "p_value": 0.001}, {"accuracy_drop": 0.05}, PASSED, PASSED),
    ({"drop": 0.0, "drop_ci": (-0.01, 0.01), "p_value": 1.0}, {"accuracy_drop": 0}, PASSED, INCONCLUSIVE),
    ({"fp32": 0.5, "int8": 0.5}, {"min_accuracy": 0.6}, FAILED, FAILED),
    ({"fp32": 0.9, "int8": 0.89}, {"min_accuracy": 0.895, "accuracy_drop": 0.5}, FAILED, FAILED),
    ({"fp32": 0.9, "int8": 0.895}, {"min_accuracy": 0.895}, PASSED, PASSED),
    ({"at_chance": True, "majority": 0.5}, {}, INCONCLUSIVE, INCONCLUSIVE),
    ({"at_chance": True, "majority": 1.0}, {}, INCONCLUSIVE, INCONCLUSIVE),
    ({"at_chance": True, "majority": 0.5, "fp32": 0.5, "int8": 0.5}, {"min_accuracy": 0.6}, FAILED, FAILED),
    ({"kind": "agreement", "fp32": 1.0, "int8": 1.0}, {"min_accuracy": 0.6}, INCONCLUSIVE, INCONCLUSIVE),
    ({"kind": "agreement", "fp32": 1.0, "int8": 1.0}, {}, PASSED, PASSED),
])
def test_accuracy_is_judged_by_drop_significance_and_floor(changes: dict, tolerances: dict, outcome: Outcome,
                                                           strict_outcome: Outcome) -> None:
    found = [judge_accuracy(accuracy(**changes), Tolerances(**tolerances), strict=strict) for strict in (False, True)]
    assert [verdict.outcome for verdict in found] == [outcome, strict_outcome]
    assert all(verdict.reasons for verdict in found)


def test_a_floor_means_nothing_where_lower_is_better() -> None:
    verdict = judge_accuracy(accuracy(), Tolerances(min_accuracy=0.5), higher_is_better=False)
    assert verdict.outcome is INCONCLUSIVE
    assert "lower is better" in verdict.reasons[0]


@pytest.mark.parametrize(("changes", "parts"), [
    ({"drop": 0.03, "int8": 0.87, "drop_ci": (0.01, 0.05), "p_value": 0.001},
     ["3.00%", "from 90.00% to 87.00%", "[1.00%, 5.00%]", "1000 samples", "allowed is 1.00%"]),
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, ["not significant", "p = 0.20", "more samples"]),
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02)}, ["too few samples to prove it"]),
    ({"kind": "agreement"}, ["agreement with float"]),
    ({"at_chance": True, "majority": 0.9}, ["no better than naming the most frequent class (90.00%)"]),
    ({"at_chance": True, "majority": 1.0}, ["single class"]),
])
def test_the_reason_says_what_was_measured_and_what_was_required(changes: dict, parts: list[str]) -> None:
    reason = " ".join(judge_accuracy(accuracy(**changes), Tolerances()).reasons)
    assert all(part in reason for part in parts), reason


@pytest.mark.parametrize(("changes", "higher_is_better", "expected"), [
    ({}, True, []),
    ({"drop": -0.05, "p_value": 0.01}, True, ["suspicious-gain"]),
    ({"drop": -0.05, "p_value": 0.5}, True, []),
    ({"int8": 0.8, "ptq": 0.9, "ptq_p_value": 0.01}, True, ["qat-below-ptq"]),
    ({"int8": 0.8, "ptq": 0.9, "ptq_p_value": 0.5}, True, []),
    ({"int8": 0.9, "ptq": 0.8, "ptq_p_value": 0.01}, True, []),
    ({"int8": 0.9, "ptq": 0.8, "ptq_p_value": 0.01}, False, ["qat-below-ptq"]),
    ({"int8": 0.8, "ptq": None, "ptq_p_value": None}, True, []),
    ({"kind": "agreement", "sqnr_db": 31.0}, True, ["agreement-only"]),
])
def test_observations_go_along_only_where_there_is_something_to_see(changes: dict, higher_is_better: bool,
                                                                    expected: list[str]) -> None:
    verdict = judge_accuracy(accuracy(**changes), Tolerances(), higher_is_better=higher_is_better)
    assert codes(verdict) == expected


@st.composite
def accuracies(draw: st.DrawFn) -> Accuracy:
    fp32, int8, ptq = draw(FRACTION), draw(FRACTION), draw(st.none() | FRACTION)
    drop = fp32 - int8
    majority, control_p = draw(FRACTION), draw(FRACTION)
    return accuracy(
        fp32=fp32, int8=int8, ptq=ptq, drop=drop, drop_ci=(drop - draw(FRACTION), drop + draw(FRACTION)),
        p_value=draw(FRACTION), ptq_p_value=None if ptq is None else control_p, samples=draw(st.integers(1, 10**6)),
        kind=draw(st.sampled_from(["metric", "agreement"])), at_chance=draw(st.booleans()), majority=majority,
        sqnr_db=draw(st.none() | st.floats(-100, 100) | st.just(math.inf)))


@STABLE
@given(accuracies(), FRACTION, FRACTION, st.booleans(), st.booleans())
def test_allowing_a_larger_drop_never_makes_accuracy_worse(measured: Accuracy, one: float, other: float, strict: bool,
                                                           higher_is_better: bool) -> None:
    tight, loose = (judge_accuracy(measured, Tolerances(accuracy_drop=drop), strict=strict,
                                   higher_is_better=higher_is_better) for drop in sorted((one, other)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]


@STABLE
@given(accuracies(), FRACTION, FRACTION, st.booleans())
def test_lowering_the_floor_never_makes_accuracy_worse(measured: Accuracy, one: float, other: float,
                                                       strict: bool) -> None:
    low, high = sorted((one, other))
    tight, loose, free = (judge_accuracy(measured, Tolerances(min_accuracy=floor), strict=strict)
                          for floor in (high, low, None))
    assert RANK[free.outcome] >= RANK[loose.outcome]
    assert RANK[loose.outcome] >= RANK[tight.outcome]


@STABLE
@given(accuracies(), FRACTION, st.none() | FRACTION)
def test_strict_is_never_more_lenient_about_accuracy(measured: Accuracy, drop: float, floor: float | None) -> None:
    tolerances = Tolerances(accuracy_drop=drop, min_accuracy=floor)
    plain, strict = (judge_accuracy(measured, tolerances, strict=strict) for strict in (False, True))
    assert RANK[strict.outcome] <= RANK[plain.outcome]


@STABLE
@given(accuracies(), FRACTION)
def test_a_pass_means_a_drop_within_tolerance_and_strictly_an_interval(measured: Accuracy, drop: float) -> None:
    plain, strict = (judge_accuracy(measured, Tolerances(accuracy_drop=drop), strict=on) for on in (False, True))
    assert plain.outcome is not PASSED or measured.drop <= drop
    assert strict.outcome is not PASSED or measured.drop_ci[1] <= drop
    json.dumps([finding.as_dict() for finding in strict.findings], allow_nan=False)


# -- coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "floor", "outcome"), [
    ({}, None, PASSED), ({}, 0.8, PASSED), ({}, 0.81, FAILED), ({"int8_modules": 0}, None, FAILED),
    ({"int8_macs": 0}, None, PASSED), ({"int8_macs": 0}, 0.01, FAILED), ({"macs": 0, "int8_macs": 0}, None, PASSED),
    ({"int8_macs": 0}, 0.0, PASSED),
])
def test_coverage_is_judged_by_its_floor_and_never_by_nothing(changes: dict, floor: float | None,
                                                              outcome: Outcome) -> None:
    assert judge_coverage(coverage(**changes), Tolerances(min_coverage=floor)).outcome is outcome


def test_a_model_without_int8_fails_with_cause_and_remedy() -> None:
    verdict = judge_coverage(coverage(int8_modules=0, leftovers=(left("head"),)), Tolerances())
    assert verdict.findings[0].code == "nothing-quantized"
    assert verdict.findings[0].severity == "error"
    assert "head (Linear: it is so)" in verdict.findings[0].message
    assert verdict.findings[0].remedy


def test_every_leftover_is_a_note_and_the_first_ones_are_named() -> None:
    verdict = judge_coverage(coverage(leftovers=tuple(left(f"layer{index}") for index in range(8))), Tolerances())
    assert codes(verdict) == ["left-in-float"] * 8
    assert {finding.severity for finding in verdict.findings} == {"note"}
    assert "layer4 (it is so) and 3 more" in verdict.reasons[0]
    assert "80.0% of multiply-accumulates and 90.0% of weights" in verdict.reasons[0]


@STABLE
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 5), FRACTION, FRACTION)
def test_asking_for_less_coverage_never_makes_it_worse(macs: int, part: int, modules: int, one: float,
                                                       other: float) -> None:
    measured = coverage(macs=macs, int8_macs=min(macs, part), int8_modules=modules)
    low, high = sorted((one, other))
    tight, loose, free = (judge_coverage(measured, Tolerances(min_coverage=floor)) for floor in (high, low, None))
    assert RANK[tight.outcome] <= RANK[loose.outcome] <= RANK[free.outcome]


# -- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sqnr_db", "quantization_sqnr_db", "finite", "outcome"), [
    (40, 30, True, PASSED), (25, 60, True, PASSED), (24.9, 60, True, FAILED), (24.9, 30.9, True, PASSED),
    (10, 16, True, PASSED), (9.9, 16, True, FAILED), (math.inf, math.inf, True, PASSED), (25, math.inf, True, PASSED),
    (24, math.inf, True, FAILED), (-math.inf, 30, True, FAILED), (40, 30, False, FAILED), (math.nan, 30, True, FAILED),
    (math.nan, math.nan, False, FAILED),
])
def test_parity_is_judged_by_25_db_or_by_quantization_s_own_noise(sqnr_db: float, quantization_sqnr_db: float,
                                                                  finite: bool, outcome: Outcome) -> None:
    measured = Parity(sqnr_db=sqnr_db, quantization_sqnr_db=quantization_sqnr_db, finite=finite)
    assert judge_parity(measured).outcome is outcome


def test_kernels_that_disagree_are_a_finding_with_a_remedy_in_plain_json() -> None:
    verdict = judge_parity(Parity(sqnr_db=-math.inf, quantization_sqnr_db=math.inf, finite=True))
    assert codes(verdict) == ["kernels-disagree"]
    assert verdict.findings[0].remedy
    json.dumps(verdict.findings[0].as_dict(), allow_nan=False)


@pytest.mark.parametrize(("culprit", "module", "part"), [
    (None, None, "the int8 kernels compute something else"),
    (Divergence(module="body.3", kind="Conv2d", sqnr_db=1.5), "body.3", "1.5 dB at this Conv2d"),
])
def test_kernels_that_disagree_are_blamed_on_the_culprit_where_it_is_known(culprit: Divergence | None,
                                                                           module: str | None, part: str) -> None:
    [finding] = judge_parity(Parity(sqnr_db=3, quantization_sqnr_db=30, finite=True), culprit).findings
    assert finding.module == module
    assert part in finding.message


@STABLE
@given(st.floats(-100, 200), st.floats(-100, 200), st.floats(0, 50))
def test_less_noise_never_makes_parity_worse(sqnr_db: float, own: float, gain: float) -> None:
    worse, better = (judge_parity(Parity(sqnr_db=value, quantization_sqnr_db=own, finite=True))
                     for value in (sqnr_db, sqnr_db + gain))
    assert RANK[better.outcome] >= RANK[worse.outcome]


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fp32", "int8", "required", "outcome"), [
    (4000, 1000, 4.0, PASSED), (4000, 1000, 4.001, FAILED), (1000, 1000, 1.0, PASSED), (1000, 1001, 1.0, FAILED),
    (1000, 10**9, 0.0, PASSED),
])
def test_size_is_judged_by_the_ratio_of_bytes(fp32: int, int8: int, required: float, outcome: Outcome) -> None:
    verdict = judge_size(fp32, int8, Tolerances(min_size_reduction=required))
    assert verdict.outcome is outcome
    assert f"{fp32 / int8:.2f}x" in verdict.reasons[0]
    assert f"{required:.2f}x" in verdict.reasons[0]


@STABLE
@given(st.integers(1, 10**12), st.integers(1, 10**12), st.floats(0, 1e6), st.floats(0, 1e6))
def test_asking_for_less_reduction_never_makes_size_worse(fp32: int, int8: int, one: float, other: float) -> None:
    loose, tight = (judge_size(fp32, int8, Tolerances(min_size_reduction=ratio)) for ratio in sorted((one, other)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]


# -- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ci", "required", "outcome"), [
    ((1.2, 1.4), 1.0, PASSED), ((1.0, 1.4), 1.0, PASSED), ((0.7, 0.9), 1.0, FAILED), ((0.9, 1.0), 1.0, INCONCLUSIVE),
    ((0.9, 1.2), 1.0, INCONCLUSIVE), ((0.0, math.inf), 1.0, INCONCLUSIVE), ((0.0, math.inf), 0.0, PASSED),
])
def test_speed_is_judged_by_the_side_on_which_the_interval_lies(ci: tuple[float, float], required: float,
                                                                outcome: Outcome) -> None:
    assert judge_speedup(speedup(*ci), Tolerances(min_speedup=required)).outcome is outcome


def test_an_unclear_speedup_says_what_it_needs_and_how_noisy_the_machine_is() -> None:
    reason = judge_speedup(speedup(0.9, 1.2), Tolerances(), noise_floor=0.034).reasons[0]
    assert "--qat-max-time" in reason
    assert "varies by 3.4%" in reason
    assert "[0.90, 1.20] from 20 pairs" in reason


@STABLE
@given(st.floats(0, 10), st.floats(0, 10) | st.just(math.inf), st.floats(0, 10), st.floats(0, 10))
def test_asking_for_less_speed_never_makes_it_worse(one: float, other: float, first: float, second: float) -> None:
    measured = speedup(*sorted((one, other)))
    loose, tight = (judge_speedup(measured, Tolerances(min_speedup=floor)) for floor in sorted((first, second)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]
    settled = judge_speedup(measured, Tolerances(min_speedup=first)).outcome is not INCONCLUSIVE
    assert settled == measured.settles(first)


# -- strictness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("strict", [False, True])
def test_strict_turns_only_what_is_inconclusive_into_a_failure(outcome: Outcome, strict: bool) -> None:
    before = Verdict(outcome=outcome, reasons=("so it is.",))
    after = strictly(before, strict=strict)
    assert after.outcome is (FAILED if strict and outcome is INCONCLUSIVE else outcome)
    assert after.reasons[0] == "so it is."
    assert (after == before) is (after.outcome is outcome)
