"""From numbers and tolerances to an outcome: tables, and laws for all numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.diagnosis.divergence import Divergence
from pytest_qat.finetune import FineTuning
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.coverage import Coverage, Leftover
from pytest_qat.measure.latency import Latency, Speedup
from pytest_qat.measure.parity import Parity
from pytest_qat.measure.speed import BatchSpeed
from pytest_qat.runtimes.base import StoredTensor
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
MEAN = st.integers(0, 10**6).map(lambda hits: hits / 10**6)
"""A score over a million samples."""


def accuracy(**changes: Any) -> Accuracy:
    fields = {"fp32": 0.9, "int8": 0.9, "ptq": 0.9, "fine_tuned": 0.9, "drop": 0.0, "drop_ci": (-0.005, 0.005),
              "p_value": 1.0, "ptq_p_value": 1.0, "fine_tuned_p_value": 1.0, "samples": 1000, "provable_drop": 0.005,
              "flips": (), "flipped": 7, "kind": "metric", "is_fraction": True}
    return Accuracy(**{**fields, **changes})


def coverage(**changes: Any) -> Coverage:
    fields = {"weights": 100, "int8_weights": 90, "macs": 1000, "int8_macs": 800, "int8_modules": 3, "leftovers": ()}
    return Coverage(**{**fields, **changes})


def speedup(low: float, high: float, *, estimate: float | None = None, **changes: Any) -> Speedup:
    fields = {"estimate": (low + min(high, 10)) / 2 if estimate is None else estimate, "ci": (low, high), "pairs": 20,
              "confidence": 0.95, "baseline": latency(0.002), "candidate": latency(0.001), "elapsed_s": 3}
    return Speedup(**{**fields, **changes})


def latency(seconds: float) -> Latency:
    return Latency(p50=seconds, p90=seconds, p99=seconds)


def weight(name: str, *, size_bytes: int = 400) -> StoredTensor:
    return StoredTensor(name=name, dtype="float32", shape=(10, size_bytes // 40), size_bytes=size_bytes)


def at(batch: int, low: float, high: float, *, overhead: float | None = None) -> BatchSpeed:
    return BatchSpeed(batch=batch, speedup=speedup(low, high), overhead=overhead)


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
    ({"drop": 0.03, "drop_ci": (0.01, 0.05), "p_value": 0.05}, {}, INCONCLUSIVE, INCONCLUSIVE),
    ({"drop": 0.03, "drop_ci": (0.01, 0.05), "p_value": 0.049}, {}, FAILED, FAILED),
    ({"drop": -0.02, "drop_ci": (-0.05, 0.01), "p_value": 0.2}, {}, PASSED, PASSED),
    ({"drop": -0.02, "drop_ci": (-0.05, 0.02), "p_value": 0.2}, {}, PASSED, INCONCLUSIVE),
    ({"drop": 3.0, "drop_ci": (2.0, 4.0), "p_value": 0.001, "fp32": 30, "int8": 27}, {}, FAILED, FAILED),
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2, "fp32": 0.5}, {"min_accuracy": 0.6}, FAILED, FAILED),
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, {"min_accuracy": 0.6}, INCONCLUSIVE, INCONCLUSIVE),
    ({"drop": 0.03, "drop_ci": (0.01, 0.05), "p_value": 0.001, "kind": "agreement"}, {"min_accuracy": 0.6},
     FAILED, FAILED),
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02), "kind": "agreement"}, {"min_accuracy": 0.6},
     INCONCLUSIVE, INCONCLUSIVE),
    ({"drop": math.inf, "drop_ci": (-math.inf, math.inf), "p_value": 0.01}, {}, FAILED, FAILED),
    ({"drop": 0.0, "drop_ci": (0.0, 0.0)}, {"accuracy_drop": 0}, PASSED, PASSED),
])
def test_accuracy_is_judged_by_drop_significance_and_floor(changes: dict, tolerances: dict, outcome: Outcome,
                                                           strict_outcome: Outcome) -> None:
    found = [judge_accuracy(accuracy(**changes), Tolerances(**tolerances), strict=strict) for strict in (False, True)]
    assert [verdict.outcome for verdict in found] == [outcome, strict_outcome]
    assert all(verdict.reasons for verdict in found)


def test_a_floor_means_nothing_where_lower_is_better() -> None:
    verdict = judge_accuracy(accuracy(), Tolerances(min_accuracy=0.5), higher_is_better=False)
    assert verdict.outcome is INCONCLUSIVE
    assert "min_accuracy 50.00% is a floor, but for this metric lower is better" in verdict.reasons[0]


def test_a_floor_that_means_nothing_hides_no_failure() -> None:
    lost = accuracy(drop=0.03, drop_ci=(0.01, 0.05), p_value=0.001)
    assert judge_accuracy(lost, Tolerances(min_accuracy=0.5), higher_is_better=False).outcome is FAILED


@pytest.mark.parametrize(("changes", "parts"), [
    ({"drop": 0.03, "int8": 0.87, "drop_ci": (0.01, 0.05), "p_value": 0.001},
     ["3.00%", "from 90.00% to 87.00%", "[1.00%, 5.00%]", "1,000 samples, of which 7 changed",
      "allowed is 1.00%", "3.33% of it"]),
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, ["not significant", "p = 0.20", "more samples"]),
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02), "provable_drop": 0.015},
     ["not proven: about 9,000 samples would prove it; these samples can prove no drop under 1.50%"]),
    ({"drop": 0.01, "drop_ci": (-0.01, 0.03), "provable_drop": 0.02},
     ["not proven: these samples can prove no drop under 2.00%"]),
    ({"fp32": 31.25, "int8": 31.2, "drop": 0.05, "drop_ci": (-0.1, 0.2), "is_fraction": False},
     ["the score worsens by 0.05 (from 31.25 to 31.2)", "[-0.1, 0.2]", "allowed is 0.01"]),
    ({"fp32": 0.0, "int8": 0.0}, ["(from 0.00% to 0.00%), 95 %"]),
    ({"kind": "agreement"}, ["agreement with float drops by"]),
    ({"at_chance": True, "majority": 0.9}, ["no better than naming the most frequent class (90.00%)"]),
    ({"at_chance": True, "majority": 1.0}, ["single class"]),
])
def test_the_reason_says_what_was_measured_and_what_was_required(changes: dict, parts: list[str]) -> None:
    reason = " ".join(judge_accuracy(accuracy(**changes), Tolerances()).reasons)
    assert all(part in reason for part in parts), reason


@pytest.mark.parametrize(("changes", "needed"), [
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02), "provable_drop": 0.015}, "about 9,000 samples would prove it"),
    ({"drop": 0.01, "drop_ci": (-0.01, 0.03), "provable_drop": 0.02}, "can prove no drop under 2.00%"),
])
def test_strict_mode_says_what_proof_is_missing(changes: dict, needed: str) -> None:
    verdict = judge_accuracy(accuracy(**changes), Tolerances(), strict=True)
    assert verdict.outcome is INCONCLUSIVE
    assert "Strict mode wants proof" in verdict.reasons[0]
    assert needed in verdict.reasons[0]


@pytest.mark.parametrize(("changes", "tolerances", "missing"), [
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, {}, "evaluate more samples"),
    ({"at_chance": True, "majority": 0.5}, {}, "Give the trained model"),
    ({"at_chance": True, "majority": 1.0}, {}, "a single class"),
    ({"kind": "agreement"}, {"min_accuracy": 0.5}, "without eval_data"),
])
def test_an_inconclusive_accuracy_says_what_is_missing(changes: dict, tolerances: dict, missing: str) -> None:
    verdict = judge_accuracy(accuracy(**changes), Tolerances(**tolerances))
    assert verdict.outcome is INCONCLUSIVE
    assert missing in verdict.reasons[0]
    assert verdict.reasons[0].endswith(".")


@pytest.mark.parametrize(("changes", "parts"), [
    ({"fp32": 0.5, "int8": 0.5}, ["the float model itself scores 50.00%, below min_accuracy 89.50%", "train it"]),
    ({"int8": 0.89}, ["the int8 model scores 89.00%, below min_accuracy 89.50% (float: 90.00%)"]),
])
def test_a_score_below_the_floor_is_told_with_the_model_that_has_it(changes: dict, parts: list[str]) -> None:
    reason = judge_accuracy(accuracy(**changes), Tolerances(min_accuracy=0.895, accuracy_drop=0.5)).reasons[0]
    assert all(part in reason for part in parts), reason


@pytest.mark.parametrize(("changes", "higher_is_better", "expected"), [
    ({}, True, []),
    ({}, False, []),
    ({"int8": 0.85, "drop": 0.05, "p_value": 0.01}, True, []),
    ({"drop": -0.05, "p_value": 0.05}, True, []),
    ({"int8": 0.8, "fine_tuned_p_value": 0.01}, True, ["lost-in-conversion"]),
    ({"int8": 0.8, "fine_tuned_p_value": 0.5}, True, []),
    ({"int8": 0.95, "fine_tuned_p_value": 0.01}, True, []),
    ({"int8": 0.95, "fine_tuned_p_value": 0.01}, False, ["lost-in-conversion"]),
    ({"int8": 0.8, "fine_tuned": None, "fine_tuned_p_value": None}, True, []),
    ({"int8": 0.8, "ptq_p_value": 0.01, "fine_tuned_p_value": 0.01}, True, ["qat-below-ptq", "lost-in-conversion"]),
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


def test_a_gain_too_good_is_told_with_its_size() -> None:
    [finding] = judge_accuracy(accuracy(drop=-0.05, int8=0.95, p_value=0.01), Tolerances()).findings
    assert finding.severity == "warning"
    assert "5.00% better than float" in finding.message
    assert finding.evidence == {"p_value": 0.01}
    assert finding.remedy


WORSE = {"int8": 0.8, "ptq": 0.9, "ptq_p_value": 0.01}
ROSE = FineTuning(kind="data", steps=100, first_loss=0.5, last_loss=2.5)
FELL = FineTuning(kind="data", steps=100, first_loss=2.5, last_loss=0.5)


@pytest.mark.parametrize(("changes", "fine_tuning", "part", "remedy"), [
    ({"fine_tuned": 0.8}, ROSE, "The loss rose from 0.5 to 2.5", "lower the learning rate 10 to 100 times, or ship"),
    ({"fine_tuned": 0.95, "fine_tuned_p_value": 0.5}, ROSE, "The loss rose from 0.5 to 2.5", "lower the learning rate"),
    ({"fine_tuned": 0.95, "fine_tuned_p_value": 0.5}, FELL, "though the fine-tuned model itself scores 95.00%",
     "freeze observers"),
    ({"fine_tuned": 0.9}, None, "though the fine-tuned model itself scores 90.00%", "freeze observers"),
    ({"fine_tuned": 0.8}, FELL, "90.00% without (p = 0.01).", "train for more epochs"),
    ({"fine_tuned": 0.8}, None, "90.00% without (p = 0.01).", "train for more epochs"),
    ({"fine_tuned": None}, FineTuning(kind="own"), "90.00% without (p = 0.01).", "train for more epochs"),
    ({"fine_tuned": None}, FineTuning(kind="data", steps=1, first_loss=1.0), "(p = 0.01).", "train for more epochs"),
])
def test_fine_tuning_that_made_it_worse_is_explained_by_what_is_known(
        changes: dict, fine_tuning: FineTuning | None, part: str, remedy: str) -> None:
    verdict = judge_accuracy(accuracy(**{**WORSE, **changes}), Tolerances(), fine_tuning=fine_tuning)
    [finding] = [found for found in verdict.findings if found.code == "qat-below-ptq"]
    assert finding.severity == "warning"
    assert "80.00% after it, 90.00% without" in finding.message
    assert part in finding.message
    assert finding.message.endswith(".")
    assert remedy in finding.remedy
    assert finding.evidence == {"p_value": 0.01, "first_loss": fine_tuning.first_loss if fine_tuning else None,
                                "last_loss": fine_tuning.last_loss if fine_tuning else None}


@pytest.mark.parametrize(("fine_tuned", "part"), [(0.4, "itself scores 40.00%"), (0.8, "(p = 0.01).")])
def test_where_lower_is_better_a_good_fine_tuned_model_is_one_with_a_low_score(fine_tuned: float, part: str) -> None:
    measured = accuracy(fp32=0.5, int8=0.8, ptq=0.5, ptq_p_value=0.01, fine_tuned=fine_tuned)
    [finding] = judge_accuracy(measured, Tolerances(accuracy_drop=1), higher_is_better=False).findings
    assert finding.code == "qat-below-ptq"
    assert part in finding.message


def test_what_conversion_lost_is_told_with_both_scores() -> None:
    [finding] = judge_accuracy(accuracy(int8=0.8, fine_tuned_p_value=0.01), Tolerances()).findings
    assert "scores 90.00% with fake-quantize, but 80.00% once converted" in finding.message
    assert "parity" in finding.remedy
    assert finding.severity == "warning"


def test_scores_on_another_scale_are_not_told_in_percent() -> None:
    measured = accuracy(fp32=31.0, int8=28.5, ptq=30.25, ptq_p_value=0.01, fine_tuned=30.5, fine_tuned_p_value=0.01,
                        is_fraction=False)
    messages = " ".join(found.message for found in judge_accuracy(measured, Tolerances()).findings)
    assert "28.5 after it, 30.25 without" in messages
    assert "scores 30.5 with fake-quantize" in messages
    assert "%" not in messages


def test_an_agreement_tells_that_it_is_no_accuracy() -> None:
    [finding] = judge_accuracy(accuracy(kind="agreement", sqnr_db=math.inf), Tolerances()).findings
    assert (finding.code, finding.severity, finding.evidence) == ("agreement-only", "note", {"sqnr_db": None})
    assert "eval_data" in finding.remedy


ANY = st.floats(allow_nan=False)
"""Every number there is, the infinite ones among them."""


@st.composite
def accuracies(draw: st.DrawFn) -> Accuracy:
    """What evaluation can find; intervals reach at least a millionth, as those of samples do."""
    fp32, int8 = draw(MEAN), draw(MEAN)
    ptq, fine_tuned = draw(st.none() | MEAN), draw(st.none() | MEAN)
    drop = fp32 - int8
    reach = st.floats(1e-6, 1)
    majority, control_p, twin_p = draw(FRACTION), draw(FRACTION), draw(FRACTION)
    return accuracy(
        fp32=fp32, int8=int8, ptq=ptq, drop=drop, drop_ci=(drop - draw(reach), drop + draw(reach)),
        p_value=draw(FRACTION), ptq_p_value=None if ptq is None else control_p, samples=draw(st.integers(1, 10**6)),
        fine_tuned=fine_tuned, fine_tuned_p_value=None if fine_tuned is None else twin_p,
        provable_drop=draw(reach), flipped=draw(st.integers(0, 10**6)), is_fraction=draw(st.booleans()),
        kind=draw(st.sampled_from(["metric", "agreement"])), at_chance=draw(st.booleans()), majority=majority,
        sqnr_db=draw(st.none() | st.floats(-100, 100) | st.just(math.inf)))


@st.composite
def wild_accuracies(draw: st.DrawFn) -> Accuracy:
    """Any numbers at all, whether they go together or not."""
    return accuracy(
        fp32=draw(ANY), int8=draw(ANY), ptq=draw(ANY), fine_tuned=draw(ANY),
        drop=draw(MEAN | st.sampled_from([-math.inf, math.inf, -1e6, 1e6])),
        drop_ci=(draw(ANY), draw(st.just(-math.inf) | st.just(0.0) | st.floats(-1, 0.01))), p_value=draw(FRACTION),
        ptq_p_value=draw(st.none() | FRACTION), fine_tuned_p_value=draw(st.none() | FRACTION),
        provable_drop=draw(ANY), is_fraction=draw(st.booleans()), at_chance=draw(st.booleans()),
        majority=draw(FRACTION), kind=draw(st.sampled_from(["metric", "agreement"])))


FINE_TUNINGS = st.none() | st.builds(FineTuning, kind=st.just("data"), steps=st.just(1),
                                     first_loss=st.none() | ANY, last_loss=st.none() | ANY | st.just(math.nan))
TOLERANCES = st.builds(
    Tolerances, accuracy_drop=MEAN, min_accuracy=st.none() | FRACTION,
    min_speedup=st.floats(0, 1e300), min_size_reduction=st.floats(0, 1e300), min_coverage=st.none() | FRACTION)


def is_whole(verdict: Verdict) -> None:
    """An outcome, sentences, and findings of plain JSON."""
    assert verdict.outcome in (PASSED, FAILED, INCONCLUSIVE)
    assert verdict.reasons
    assert all(reason.endswith(".") for reason in verdict.reasons)
    assert all(finding.message.endswith(".") for finding in verdict.findings)


@STABLE
@given(accuracies() | wild_accuracies(), TOLERANCES, FINE_TUNINGS, st.booleans(), st.booleans())
def test_every_accuracy_has_an_outcome(measured: Accuracy, tolerances: Tolerances, fine_tuning: FineTuning | None,
                                       strict: bool, higher_is_better: bool) -> None:
    is_whole(judge_accuracy(measured, tolerances, strict=strict, higher_is_better=higher_is_better,
                            fine_tuning=fine_tuning))


@STABLE
@given(accuracies(), st.booleans())
def test_scores_that_agree_within_their_noise_give_no_findings(measured: Accuracy, higher_is_better: bool) -> None:
    calm = dataclasses.replace(measured, kind="metric", p_value=1.0, ptq_p_value=1.0, fine_tuned_p_value=1.0)
    assert judge_accuracy(calm, Tolerances(), higher_is_better=higher_is_better).findings == ()


@STABLE
@given(accuracies(), MEAN, MEAN, st.booleans(), st.booleans())
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
@given(accuracies(), MEAN, st.none() | FRACTION)
def test_strict_is_never_more_lenient_about_accuracy(measured: Accuracy, drop: float, floor: float | None) -> None:
    tolerances = Tolerances(accuracy_drop=drop, min_accuracy=floor)
    plain, strict = (judge_accuracy(measured, tolerances, strict=strict) for strict in (False, True))
    assert RANK[strict.outcome] <= RANK[plain.outcome]


@STABLE
@given(accuracies(), MEAN)
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


def test_a_model_all_in_int8_gives_no_findings() -> None:
    verdict = judge_coverage(coverage(int8_macs=1000), Tolerances(min_coverage=1))
    assert (verdict.outcome, verdict.findings) == (PASSED, ())
    assert verdict.reasons == ("100.0% of multiply-accumulates and 90.0% of weights run in int8 (3 modules).",)


def test_too_little_coverage_tells_what_is_required() -> None:
    verdict = judge_coverage(coverage(leftovers=(left("head"),)), Tolerances(min_coverage=0.9))
    assert verdict.reasons[0].endswith("in float: head (it is so); required is 90.0% of multiply-accumulates.")


@STABLE
@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**15),
       st.integers(0, 5), st.lists(st.sampled_from(["a", "b.c", ""]), max_size=9), TOLERANCES)
def test_every_coverage_has_an_outcome(weights: int, int8_weights: int, macs: int, int8_macs: int, modules: int,
                                       names: list[str], tolerances: Tolerances) -> None:
    verdict = judge_coverage(coverage(
        weights=weights, int8_weights=int8_weights, macs=macs, int8_macs=int8_macs, int8_modules=modules,
        leftovers=tuple(left(name) for name in names)), tolerances)
    is_whole(verdict)
    assert modules or verdict.outcome is FAILED


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
@given(st.floats(), st.floats(), st.booleans())
def test_every_parity_has_an_outcome(sqnr_db: float, own: float, finite: bool) -> None:
    is_whole(judge_parity(Parity(sqnr_db=sqnr_db, quantization_sqnr_db=own, finite=finite)))


def test_forms_that_agree_give_no_findings() -> None:
    verdict = judge_parity(Parity(sqnr_db=math.inf, quantization_sqnr_db=31.0, finite=True))
    assert verdict.findings == ()
    assert verdict.reasons == ("converted agrees with prepared to equality; quantization itself leaves 31.0 dB.",)


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


@pytest.mark.parametrize(("required", "outcome", "severity"), [(2.0, PASSED, "note"), (4.0, FAILED, "error")])
def test_float_weights_left_in_the_artefact_are_named_and_are_the_error_where_it_is_too_large(
        required: float, outcome: Outcome, severity: str) -> None:
    verdict = judge_size(3000, 1000, Tolerances(min_size_reduction=required),
                         float_weights=[weight("emb.weight"), weight("head.weight", size_bytes=200)])
    assert verdict.outcome is outcome
    [finding] = verdict.findings
    assert (finding.code, finding.severity, finding.evidence) == ("float-weights-left", severity, {"bytes": 600})
    assert finding.message == ("60% of the int8 artefact are float weights: emb.weight (float32, 400 bytes), "
                               "head.weight (float32, 200 bytes).")
    assert "quantize these layers" in finding.remedy


def test_of_many_float_weights_the_first_five_are_named_and_the_others_counted() -> None:
    [finding] = judge_size(8000, 8000, Tolerances(), float_weights=[weight(f"w{index}") for index in range(8)]).findings
    assert "w4 (float32, 400 bytes) and 3 more." in finding.message
    assert "w5" not in finding.message
    assert finding.evidence == {"bytes": 3200}


def test_five_float_weights_leave_nothing_to_count() -> None:
    [finding] = judge_size(8000, 8000, Tolerances(), float_weights=[weight(f"w{index}") for index in range(5)]).findings
    assert finding.message.endswith("w4 (float32, 400 bytes).")


def test_an_artefact_without_large_float_weights_gives_no_findings() -> None:
    assert judge_size(4000, 1000, Tolerances()).findings == ()
    assert judge_size(1000, 1000, Tolerances()).findings == ()


@STABLE
@given(st.integers(1, 10**12), st.integers(1, 10**12), st.floats(0, 1e6), st.floats(0, 1e6))
def test_asking_for_less_reduction_never_makes_size_worse(fp32: int, int8: int, one: float, other: float) -> None:
    loose, tight = (judge_size(fp32, int8, Tolerances(min_size_reduction=ratio)) for ratio in sorted((one, other)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]


@STABLE
@given(st.integers(0, 10**15), st.integers(0, 10**15), TOLERANCES, st.lists(st.integers(0, 10**15), max_size=8))
def test_every_size_has_an_outcome(fp32: int, int8: int, tolerances: Tolerances, sizes: list[int]) -> None:
    verdict = judge_size(fp32, int8, tolerances, float_weights=[weight("w", size_bytes=size) for size in sizes])
    is_whole(verdict)
    assert verdict.outcome is not INCONCLUSIVE
    assert len(verdict.findings) == bool(sizes)


# -- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ci", "noise", "required", "outcome"), [
    ((1.2, 1.4), None, 1.0, PASSED), ((1.0, 1.4), None, 1.0, PASSED), ((0.7, 0.9), None, 1.0, FAILED),
    ((0.9, 1.0), None, 1.0, INCONCLUSIVE), ((0.9, 1.2), None, 1.0, INCONCLUSIVE),
    ((0.0, math.inf), None, 1.0, INCONCLUSIVE), ((0.0, math.inf), None, 0.0, PASSED),
    ((1.9, 2.1), None, 2.0, INCONCLUSIVE), ((2.0, 2.1), None, 2.0, PASSED), ((1.8, 1.9), None, 2.0, FAILED),
    # An interval of float against itself that holds 1 says nothing against the machine, however wide it is.
    ((1.01, 1.4), (0.9, 1.1), 1.0, PASSED), ((0.7, 0.99), (0.9, 1.1), 1.0, FAILED),
    ((1.01, 1.4), (0.0, math.inf), 1.0, PASSED), ((1.01, 1.4), (1.0, 1.0), 1.0, PASSED),
    # One that does not hold 1 must be cleared, either way.
    ((1.04, 1.4), (1.05, 1.2), 1.0, INCONCLUSIVE), ((1.05, 1.4), (1.05, 1.2), 1.0, PASSED),
    ((1.2, 1.4), (0.5, 0.8), 1.0, INCONCLUSIVE), ((1.25, 1.4), (0.5, 0.8), 1.0, PASSED),
    ((0.7, 0.81), (0.5, 0.8), 1.0, INCONCLUSIVE), ((0.7, 0.79), (0.5, 0.8), 1.0, FAILED),
    ((0.7, 0.96), (1.05, 1.2), 1.0, INCONCLUSIVE), ((0.7, 0.95), (1.05, 1.2), 1.0, FAILED),
    ((2.05, 2.4), (1.05, 1.2), 2.0, INCONCLUSIVE), ((2.1, 2.4), (1.05, 1.2), 2.0, PASSED),
    ((0.0, 0.1), (1.05, 1.2), 0.0, PASSED),
])
def test_speed_is_judged_by_the_side_on_which_the_interval_lies_and_by_how_much(
        ci: tuple[float, float], noise: tuple[float, float] | None, required: float, outcome: Outcome) -> None:
    against = None if noise is None else speedup(*noise)
    assert judge_speedup(speedup(*ci), Tolerances(min_speedup=required), noise=against).outcome is outcome


def test_a_speedup_is_told_with_all_that_it_rests_on() -> None:
    verdict = judge_speedup(speedup(1.2, 1.4, estimate=1.31), Tolerances(), noise=speedup(0.97, 1.02, estimate=0.99))
    [reason] = verdict.reasons
    assert reason == ("int8 is 1.31x as fast as float, 95% interval [1.20, 1.40] from 20 pairs in 3.0 s "
                      "(float against itself: 0.99x [0.97, 1.02]); required is 1.00x.")
    assert verdict.findings == ()


@pytest.mark.parametrize(("measured", "noise", "required", "missing"), [
    # The interval reaches log(1.05 / 0.9) down, the floor is log(1.05) away: 3 s * 3.16**2, and as much again.
    (speedup(0.9, 1.2, estimate=1.05), None, 1.0, "The interval straddles it: raise --qat-max-time to about 60 s."),
    (speedup(0.9, 1.2, estimate=1.001), None, 1.0, "too near for any reasonable time to tell: lower --qat-min-speedup"),
    (speedup(0.9, 1.2, estimate=1.0), None, 1.0, "too near for any reasonable time to tell: lower --qat-min-speedup"),
    (speedup(0.0, math.inf, estimate=2.0, pairs=2), None, 1.0,
     "A pair of blocks takes so long that 2 fitted into the budget"),
    (speedup(0.0, math.inf, estimate=2.0, pairs=0), None, 1.0, "or use smaller example_inputs."),
    (speedup(1.1, 1.2), speedup(1.25, 1.3), 1.0, "But float against itself is 1.25x off: this machine is too unsteady"),
    (speedup(0.85, 0.9), speedup(0.5, 0.8), 1.0, "Run it again when nothing else runs."),
])
def test_an_inconclusive_speed_says_what_is_missing(measured: Speedup, noise: Speedup | None, required: float,
                                                    missing: str) -> None:
    verdict = judge_speedup(measured, Tolerances(min_speedup=required), noise=noise)
    assert verdict.outcome is INCONCLUSIVE
    assert missing in verdict.reasons[0]


def test_the_time_asked_for_would_have_settled_it() -> None:
    measured = speedup(0.9, 1.2, estimate=1.05)
    reason = judge_speedup(measured, Tolerances()).reasons[0]
    asked = float(reason.rpartition("about ")[2].removesuffix(" s."))
    assert measured.seconds_to_settle(1.0) <= asked <= measured.seconds_to_settle(1.0) * 2 + 1


@st.composite
def speedups(draw: st.DrawFn) -> Speedup:
    """What a comparison can find: an interval around the estimate, or none."""
    ratio = st.floats(0.001, 1000)
    low, estimate, high = sorted((draw(ratio), draw(ratio), draw(ratio)))
    settled = draw(st.booleans())
    return speedup(low if settled else 0.0, high if settled else math.inf, estimate=estimate,
                   pairs=draw(st.integers(0, 10**6)), elapsed_s=draw(st.floats(0, 1e6)))


SWEEPS = st.lists(st.builds(BatchSpeed, batch=st.integers(1, 64), speedup=st.none() | speedups(),
                            overhead=st.none() | FRACTION), max_size=4, unique_by=lambda entry: entry.batch)


@STABLE
@given(speedups(), st.none() | speedups(), SWEEPS, st.floats(0, 10), st.floats(0, 10))
def test_asking_for_less_speed_never_makes_it_worse(measured: Speedup, noise: Speedup | None,
                                                    batches: list[BatchSpeed], one: float, other: float) -> None:
    loose, tight = (judge_speedup(measured, Tolerances(min_speedup=floor), noise=noise, batches=batches, own_batch=1)
                    for floor in sorted((one, other)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]


@STABLE
@given(speedups(), st.floats(0, 10))
def test_without_noise_an_outcome_is_settled_exactly_where_the_interval_is(measured: Speedup, floor: float) -> None:
    outcome = judge_speedup(measured, Tolerances(min_speedup=floor)).outcome
    assert (outcome is not INCONCLUSIVE) == measured.settles(floor)
    assert (outcome is PASSED) == (measured.ci[0] >= floor)


@STABLE
@given(speedups(), speedups(), st.floats(0, 10))
def test_an_unsteady_machine_makes_an_outcome_unclear_and_never_turns_it(measured: Speedup, noise: Speedup,
                                                                         floor: float) -> None:
    plain, careful = (judge_speedup(measured, Tolerances(min_speedup=floor), noise=against).outcome
                      for against in (None, noise))
    assert careful in (plain, INCONCLUSIVE)


@STABLE
@given(speedups(), st.none() | speedups(), SWEEPS, TOLERANCES, st.none() | st.integers(1, 64))
def test_every_speed_has_an_outcome(measured: Speedup, noise: Speedup | None, batches: list[BatchSpeed],
                                    tolerances: Tolerances, own: int | None) -> None:
    verdict = judge_speedup(measured, tolerances, noise=noise, batches=batches, own_batch=own)
    is_whole(verdict)
    json.dumps([finding.as_dict() for finding in verdict.findings], allow_nan=False)


@STABLE
@given(st.floats(0, math.inf), st.floats(0, math.inf), st.floats(0, math.inf), st.floats(0, math.inf), TOLERANCES)
def test_every_pair_of_intervals_has_an_outcome(one: float, other: float, first: float, second: float,
                                                tolerances: Tolerances) -> None:
    low, high = sorted((one, other))
    measured = speedup(low, high, estimate=min(max(1.0, low), high) if high > 0 else 1.0)
    is_whole(judge_speedup(measured, tolerances, noise=speedup(*sorted((first, second)), estimate=1.0)))


# -- speed by batch size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sweep", "expected"), [
    ([], []),
    ([at(1, 1.2, 1.4), at(8, 1.5, 1.6)], []),
    ([at(1, 0.8, 0.9), at(8, 1.2, 1.4)], ["verdict-depends-on-batch"]),
    ([at(1, 0.8, 1.1), at(8, 1.2, 1.4)], []),
    ([at(1, 1.2, 1.4, overhead=0.5), at(8, 1.2, 1.4, overhead=0.1)], []),
    ([at(1, 1.2, 1.4, overhead=0.51), at(8, 1.2, 1.4, overhead=0.1)], ["overhead-bound"]),
    ([at(1, 0.8, 0.9, overhead=0.9), at(8, 1.2, 1.4)], ["overhead-bound", "verdict-depends-on-batch"]),
    ([BatchSpeed(batch=1, speedup=None, problem="RuntimeError: no"), at(8, 1.2, 1.4)], []),
])
def test_batches_give_findings_only_where_there_is_something_to_see(sweep: list[BatchSpeed],
                                                                    expected: list[str]) -> None:
    assert codes(judge_speedup(speedup(1.2, 1.4), Tolerances(), batches=sweep, own_batch=8)) == expected


def test_a_verdict_that_depends_on_the_batch_is_told_with_the_other_batches() -> None:
    sweep = [at(1, 0.8, 0.9), at(2, 0.9, 1.1), at(4, 0.9, 0.95), at(8, 1.2, 1.4), at(16, 1.4, 1.6)]
    verdict = judge_speedup(speedup(1.2, 1.4), Tolerances(), batches=sweep, own_batch=8)
    assert verdict.outcome is PASSED
    [finding] = verdict.findings
    assert finding.severity == "warning"
    assert finding.message == "at batch 8 int8 is 1.30x as fast, but 0.85x at batch 1, 0.93x at batch 4."
    assert "example_inputs" in finding.remedy


def test_a_failure_that_another_batch_would_pass_is_told_too() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 1.2, 1.4)]
    verdict = judge_speedup(speedup(0.8, 0.9), Tolerances(), batches=sweep, own_batch=1)
    assert verdict.outcome is FAILED
    assert codes(verdict) == ["verdict-depends-on-batch"]


def test_an_unclear_speed_depends_on_nothing_yet() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 0.9, 1.4)]
    assert codes(judge_speedup(speedup(0.9, 1.4), Tolerances(), batches=sweep, own_batch=8)) == []


def test_the_floor_decides_on_which_side_a_batch_is() -> None:
    sweep = [at(1, 1.2, 1.4), at(8, 2.0, 2.2)]
    found = [codes(judge_speedup(speedup(2.0, 2.2), Tolerances(min_speedup=floor), batches=sweep, own_batch=8))
             for floor in (1.0, 1.5)]
    assert found == [[], ["verdict-depends-on-batch"]]


def test_calls_bound_by_overhead_are_told_by_batch() -> None:
    sweep = [at(1, 1.2, 1.4, overhead=0.93), at(2, 1.2, 1.4, overhead=0.86), at(64, 1.2, 1.4, overhead=0.2)]
    [finding] = judge_speedup(speedup(1.2, 1.4), Tolerances(), batches=sweep, own_batch=1).findings
    assert (finding.code, finding.severity) == ("overhead-bound", "note")
    assert "(93% at batch 1, 86% at batch 2)" in finding.message
    assert finding.evidence == {"1": 0.93, "2": 0.86}


# -- strictness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("strict", [False, True])
def test_strict_turns_only_what_is_inconclusive_into_a_failure(outcome: Outcome, strict: bool) -> None:
    before = Verdict(outcome=outcome, reasons=("so it is.",))
    after = strictly(before, strict=strict)
    assert after.outcome is (FAILED if strict and outcome is INCONCLUSIVE else outcome)
    assert after.reasons[0] == "so it is."
    assert (after == before) is (after.outcome is outcome)
