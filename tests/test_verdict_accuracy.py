"""From scores to the outcome of accuracy, and what strictness makes of any: tables, and laws for all numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    accuracies,
    accuracy,
    is_whole,
    resampling,
    wild_accuracies,
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
    assert "min_accuracy 50.00%" in verdict.reasons[0]
    assert "lower is better" in verdict.reasons[0]


@pytest.mark.parametrize(("changes", "outcome"), [
    ({"samples": 1, "drop_ci": (-0.65, 0.65)}, INCONCLUSIVE),
    ({"samples": 2, "drop_ci": (-0.49, 0.49)}, PASSED),
    ({"samples": 1, "drop_ci": (-math.inf, math.inf)}, INCONCLUSIVE),
    ({"samples": 3, "drop_ci": (-0.03, 0.03), "fp32": 0.043, "is_fraction": False}, INCONCLUSIVE),
    ({"samples": 9, "drop_ci": (-0.01, 0.01), "fp32": 0.043, "is_fraction": False}, PASSED),
])
def test_so_few_samples_that_nothing_could_be_seen_prove_nothing(changes: dict, outcome: Outcome) -> None:
    assert judge_accuracy(accuracy(drop=0.0, **changes), Tolerances()).outcome is outcome


def test_a_floor_that_means_nothing_hides_no_failure() -> None:
    lost = accuracy(drop=0.03, drop_ci=(0.01, 0.05), p_value=0.001)
    assert judge_accuracy(lost, Tolerances(min_accuracy=0.5), higher_is_better=False).outcome is FAILED


@pytest.mark.parametrize(("changes", "parts"), [
    ({"drop": 0.03, "int8": 0.87, "drop_ci": (0.01, 0.05), "p_value": 0.001},
     ["3.00%", "90.00%", "87.00%", "[1.00%, 5.00%]", "1,000", "7 changed", "1.00% is allowed", "3.33%"]),
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, ["not significant", "p = 0.20"]),
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02), "provable_drop": 0.015},
     ["not proven", "1.50%", "about 9,000 samples"]),
    ({"drop": 0.01, "drop_ci": (-0.01, 0.03), "provable_drop": 0.02},
     ["not proven", "2.00%"]),
    ({"fp32": 31.25, "int8": 31.2, "drop": 0.05, "drop_ci": (-0.1, 0.2), "is_fraction": False},
     ["worsens by 0.16% of 31.25 (to 31.2)", "[-0.32%, 0.64%]", "1.00% is allowed"]),
    ({"fp32": 0.043, "int8": 0.0452, "drop": 0.0022, "drop_ci": (0.001, 0.0034), "is_fraction": False, "p_value": 1e-4},
     ["worsens by 5.12% of 0.043 (to 0.0452)", "1.00% is allowed"]),
    ({"fp32": 0.043, "int8": 0.0408, "drop": -0.0022, "drop_ci": (-0.0034, -0.001), "is_fraction": False},
     ["improves by 5.12% of 0.043"]),
    ({"drop": -0.02, "int8": 0.92, "drop_ci": (-0.04, 0.0)}, ["rises by 2.00%"]),
    ({"fp32": 0.0, "int8": 0.5, "drop": 0.5, "drop_ci": (0.4, 0.6), "is_fraction": False}, ["from 0 to 0.5"]),
    ({"fp32": 0.0, "int8": 0.0}, ["(from 0.00% to 0.00%), 95%"]),
    ({"kind": "agreement"}, ["agreement with float"]),
    ({"at_chance": True, "majority": 0.9}, ["most frequent class", "(90.00%)"]),
    ({"at_chance": True, "majority": 1.0}, ["only one class"]),
])
def test_the_reason_says_what_was_measured_and_what_was_required(changes: dict, parts: list[str]) -> None:
    reason = " ".join(judge_accuracy(accuracy(**changes), Tolerances()).reasons)
    assert all(part in reason for part in parts), reason


@pytest.mark.parametrize(("changes", "needed"), [
    ({"drop": 0.005, "drop_ci": (-0.01, 0.02), "provable_drop": 0.015}, "about 9,000 samples"),
    ({"drop": 0.01, "drop_ci": (-0.01, 0.03), "provable_drop": 0.02}, "2.00%"),
])
def test_strict_mode_says_what_proof_is_missing(changes: dict, needed: str) -> None:
    verdict = judge_accuracy(accuracy(**changes), Tolerances(), strict=True)
    assert verdict.outcome is INCONCLUSIVE
    assert "Strict mode requires proof" in verdict.reasons[0]
    assert needed in verdict.reasons[0]


@pytest.mark.parametrize(("changes", "tolerances", "missing"), [
    ({"drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, {}, "evaluate more samples"),
    ({"at_chance": True, "majority": 0.9, "fp32": 0.9}, {}, "the trained model"),
    ({"at_chance": True, "majority": 0.5}, {}, "too few"),
    ({"at_chance": True, "majority": 1.0}, {}, "only one class"),
    ({"kind": "agreement"}, {"min_accuracy": 0.5}, "without eval_data"),
])
def test_an_inconclusive_accuracy_says_what_is_missing(changes: dict, tolerances: dict, missing: str) -> None:
    verdict = judge_accuracy(accuracy(**changes), Tolerances(**tolerances))
    assert verdict.outcome is INCONCLUSIVE
    assert missing in verdict.reasons[0]
    assert verdict.reasons[0].endswith(".")


@pytest.mark.parametrize(("changes", "parts"), [
    ({"fp32": 0.5, "int8": 0.5}, ["float model itself", "50.00%", "min_accuracy 89.50%"]),
    ({"int8": 0.89}, ["int8 model", "89.00%", "min_accuracy 89.50%", "90.00%"]),
])
def test_a_score_below_the_floor_is_told_with_the_model_that_has_it(changes: dict, parts: list[str]) -> None:
    reason = judge_accuracy(accuracy(**changes), Tolerances(min_accuracy=0.895, accuracy_drop=0.5)).reasons[0]
    assert all(part in reason for part in parts), reason


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_that_names_one_class_only_fails_whatever_its_score(strict: bool) -> None:
    measured = accuracy(fp32=0.998, int8=0.99, drop=0.008, drop_ci=(0.006, 0.0095), only_class=0, samples=10_000)
    found = judge_accuracy(measured, Tolerances(), strict=strict)
    assert found.outcome is Outcome.FAILED
    collapsed, drop = found.reasons
    assert "class 0" in collapsed
    assert "10,000" in collapsed
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


@STABLE
@given(accuracies() | wild_accuracies(), TOLERANCES, st.booleans(), st.booleans())
def test_every_accuracy_has_an_outcome(measured: Accuracy, tolerances: Tolerances, strict: bool,
                                       higher_is_better: bool) -> None:
    is_whole(judge_accuracy(measured, tolerances, strict=strict, higher_is_better=higher_is_better))


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


# -- a score of the whole set, and comparisons that are half of one ----------------------------------------------------


@pytest.mark.parametrize(("changes", "outcome", "part"), [
    ({"resampling": resampling()}, PASSED, "auc drops by 0.00%"),
    ({"resampling": resampling(), "drop": 0.03, "int8": 0.87, "drop_ci": (0.01, 0.05), "p_value": 0.002}, FAILED,
     "auc drops by 3.00% (from 90.00% to 87.00%"),
    ({"resampling": resampling(), "drop": 0.03, "drop_ci": (-0.01, 0.07), "p_value": 0.2}, INCONCLUSIVE,
     "not significant"),
    ({"resampling": resampling(), "drop_ci": (-0.03, 0.03)}, PASSED, "not proven"),
    ({"resampling": resampling(count=0, samples=12), "samples": 12}, INCONCLUSIVE, "only 12 samples"),
    ({"resampling": resampling(count=950, undefined=50)}, INCONCLUSIVE,
     "not defined on 50 of 1,000 drawn sets (ValueError: one class)"),
    ({"resampling": resampling(count=990, undefined=10)}, PASSED, "auc drops"),
    ({"resampling": resampling(count=3, elapsed_s=30.0)}, INCONCLUSIVE, "Raise --qat-max-time to 750"),
    ({"resampling": resampling(count=3), "drop": 0.5, "p_value": 0.0}, INCONCLUSIVE, "too slow"),
    ({"resampling": resampling(), "at_chance": True, "shuffled": 0.91}, INCONCLUSIVE, "shuffled targets (91.00%)"),
    ({"resampling": resampling(), "is_fraction": False, "fp32": 20.0, "int8": 21.0, "drop": 1.0, "p_value": 0.001,
      "drop_ci": (0.8, 1.2)}, FAILED, "auc worsens by 5.00% of 20 (to 21)"),
])
def test_a_score_of_the_whole_set_is_judged_by_its_drawn_sets(changes: dict, outcome: Outcome, part: str) -> None:
    measured = accuracy(**{"kind": "set_metric", "metric": "auc", **changes})
    for strict in (False, True):
        verdict = judge_accuracy(measured, Tolerances(), strict=strict)
        assert part in verdict.reasons[0] or strict
        assert RANK[verdict.outcome] <= RANK[outcome]
        assert strict or verdict.outcome is outcome
    assert "changed" not in judge_accuracy(measured, Tolerances()).reasons[0]


def test_a_floor_holds_for_a_score_of_the_whole_set() -> None:
    measured = accuracy(kind="set_metric", metric="auc", resampling=resampling(count=0, samples=5), fp32=0.4, int8=0.4)
    assert judge_accuracy(measured, Tolerances(min_accuracy=0.5)).outcome is FAILED


@pytest.mark.parametrize(("metric", "name"), [
    ("relative error", "relative error worsens"), ("mine", "the score worsens")])
def test_default_errors_are_called_by_their_name(metric: str, name: str) -> None:
    measured = accuracy(metric=metric, is_fraction=False, fp32=0.1, int8=0.2, drop=0.1, drop_ci=(0.05, 0.15),
                        p_value=0.001)
    assert name in judge_accuracy(measured, Tolerances()).reasons[0]


@pytest.mark.parametrize(("drop", "same_class", "outcome"), [
    (0.0, 0.999, PASSED), (0.0, 0.95, INCONCLUSIVE), (0.5, 0.999, INCONCLUSIVE), (0.5, 0.95, FAILED)])
def test_maps_of_either_kind_pass_or_fail_only_as_both(drop: float, same_class: float, outcome: Outcome) -> None:
    measured = accuracy(kind="agreement", fp32=1.0, int8=1.0 - drop, drop=drop, drop_ci=(drop - 0.001, drop + 0.001),
                        p_value=0.001 if drop else 1.0, same_class=same_class)
    verdict = judge_accuracy(measured, Tolerances())
    assert verdict.outcome is outcome
    assert ("classes or values" in verdict.reasons[0]) is (outcome is INCONCLUSIVE)


@pytest.mark.parametrize(("changes", "outcome"), [
    ({}, INCONCLUSIVE), ({"drop": 0.5, "p_value": 0.001, "drop_ci": (0.4, 0.6)}, FAILED)])
def test_what_could_not_be_compared_takes_back_a_pass_and_no_failure(changes: dict, outcome: Outcome) -> None:
    ragged = ("output ['boxes'] is (5, 4) in float and (3, 4) in int8 (batch 0)",)
    verdict = judge_accuracy(accuracy(ragged=ragged, **changes), Tolerances())
    assert verdict.outcome is outcome
    assert ("['boxes'] is (5, 4)" in verdict.reasons[0]) is (outcome is INCONCLUSIVE)


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
    assert "60.00%" in verdict.reasons[0]
