"""From scores to accuracy's outcome, and what strictness makes of any: tables, and laws for all numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.finetune import FineTuning
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, Verdict, judge_accuracy, strictly
from tests.verdict_laws import (
    FAILED,
    FRACTION,
    INCONCLUSIVE,
    MEAN,
    PASSED,
    RANK,
    STABLE,
    TOLERANCES,
    accuracy,
    codes,
    is_whole,
)

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
     ["the score worsens by 0.05 (from 31.25 to 31.2)", "[-0.1, 0.2]", "allowed is 0.3125 (1.00% of float's)"]),
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
    ({"at_chance": True, "majority": 0.9, "fp32": 0.9}, {}, "Give the trained model"),
    ({"at_chance": True, "majority": 0.5}, {}, "samples are too few to tell that from naming the most frequent"),
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
    [finding] = judge_accuracy(measured, Tolerances(accuracy_drop="100%"), higher_is_better=False).findings
    assert finding.code == "qat-below-ptq"
    assert part in finding.message


def test_a_simulated_control_is_compared_with_the_simulated_fine_tuned_model() -> None:
    """Lowering lost it: the control, which was not lowered, would have lost the same."""
    measured = accuracy(fp32=0.95, int8=0.4, drop=0.55, p_value=1e-9, ptq=0.945, fine_tuned=0.95, ptq_p_value=0.5,
                        fine_tuned_p_value=1e-9, ptq_simulated=True)
    assert [finding.code for finding in judge_accuracy(measured, Tolerances()).findings] == ["lost-in-conversion"]
    worse = dataclasses.replace(measured, fine_tuned=0.6, ptq_p_value=1e-9)
    below = judge_accuracy(worse, Tolerances()).findings[0]
    assert below.code == "qat-below-ptq"
    assert "60.00% after it, 94.50% without, both with fake-quantize" in below.message


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_that_names_one_class_only_fails_whatever_its_score(strict: bool) -> None:
    measured = accuracy(fp32=0.998, int8=0.99, drop=0.008, drop_ci=(0.006, 0.0095), only_class=0, samples=10_000)
    found = judge_accuracy(measured, Tolerances(), strict=strict)
    assert found.outcome is Outcome.FAILED
    collapsed, drop = found.reasons
    assert collapsed == "the int8 model names class 0 for all of 10,000 samples, which float does not."
    assert "from 99.80% to 99.00%" in drop


@pytest.mark.parametrize(("fp32", "int8", "tolerance", "outcome"), [
    (1.06e-4, 4.25e-3, 0.01, "failed"), (0.00496, 0.00792, 0.01, "failed"), (3.018, 3.071, 0.01, "failed"),
    (3.018, 3.071, 0.02, "passed"), (-3.0, -2.99, 0.01, "passed"), (100.0, 101.5, "100%", "passed"),
])
def test_for_scores_that_are_no_shares_the_tolerance_is_one_of_floats_score(
    fp32: float, int8: float, tolerance: Any, outcome: str,
) -> None:
    measured = accuracy(fp32=fp32, int8=int8, drop=int8 - fp32, drop_ci=(0.0, int8 - fp32), p_value=1e-6,
                        is_fraction=False)
    found = judge_accuracy(measured, Tolerances(accuracy_drop=tolerance), higher_is_better=False)
    assert found.outcome.value == outcome


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


# -- strictness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("strict", [False, True])
def test_strict_turns_only_what_is_inconclusive_into_a_failure(outcome: Outcome, strict: bool) -> None:
    before = Verdict(outcome=outcome, reasons=("so it is.",))
    after = strictly(before, strict=strict)
    assert after.outcome is (FAILED if strict and outcome is INCONCLUSIVE else outcome)
    assert after.reasons[0] == "so it is."
    assert (after == before) is (after.outcome is outcome)


@pytest.mark.parametrize("majority", [0.98, 1.0])
def test_data_that_cannot_show_skill_still_show_a_fall(majority: float) -> None:
    verdict = judge_accuracy(accuracy(at_chance=True, majority=majority, fp32=1.0, int8=0.4, drop=0.6,
                                      drop_ci=(0.5, 0.7), p_value=1e-18), Tolerances())
    assert verdict.outcome is FAILED
    assert "accuracy drops by 60.00%" in verdict.reasons[0]


def test_what_was_not_trained_is_not_blamed_on_training() -> None:
    verdict = judge_accuracy(accuracy(int8=0.8, ptq=0.9, ptq_p_value=0.01), Tolerances(),
                             fine_tuning=FineTuning(kind="none"))
    assert "qat-below-ptq" not in [finding.code for finding in verdict.findings]
