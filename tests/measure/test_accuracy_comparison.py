"""Scores of float against those of int8 and its twins: drops, their significance, and what the samples can prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import Scores, compare_scores
from pytest_qat.measure.scoring import evaluate
from tests.measure.scored import HITS, LOGITS, compared, same, scores, table

# -- float against int8 ---------------------------------------------------------------------------------------------


def test_a_drop_is_positive_when_int8_is_worse() -> None:
    found = compared([1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0])
    assert (found.fp32, found.int8, found.ptq, found.drop, found.samples) == (1, 0.75, 0.5, 0.25, 4)
    assert found.drop_ci[0] < 0.25 < found.drop_ci[1]
    assert (found.p_value, found.ptq_p_value, found.kind) == (1, 1, "metric")


def test_the_sign_is_turned_where_lower_is_better() -> None:
    found = compared([0.1, 0.2, 0.3], [0.4, 0.2, 0.3], higher_is_better=False)
    assert found.drop == pytest.approx(0.1)
    assert (found.fp32, found.int8) == pytest.approx((0.2, 0.3))
    assert found.drop_ci[1] > 0


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_counting_errors_gives_the_same_verdict_as_counting_hits(pairs: list[tuple[bool, bool]]) -> None:
    before, after = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    hits = compared(before, after)
    errors = compared([1 - value for value in before], [1 - value for value in after], higher_is_better=False)
    assert errors.drop == pytest.approx(hits.drop)
    assert errors.p_value == pytest.approx(hits.p_value)
    assert errors.drop_ci == pytest.approx(hits.drop_ci)


def test_a_control_that_errs_exactly_like_int8_is_no_evidence_where_lower_is_better() -> None:
    found = compared([0.0] * 8, [0.5] * 8, [0.5] * 8, higher_is_better=False)
    assert found.ptq_p_value == 1
    assert found.p_value < 0.05


def test_without_a_control_there_is_nothing_to_say_about_it() -> None:
    found = compared([1, 0], [1, 0])
    assert found.ptq is None
    assert found.ptq_p_value is None


@pytest.mark.parametrize("who", ["int8", "ptq", "fine_tuned"])
@pytest.mark.parametrize(("other", "message", "hint"), [
    (scores([1, 0], fingerprint="turned"), "different samples or another order", "shuffle=False"),
    (scores([1, 0, 1]), "gave 2 and 3 samples", "iterated again"),
    (scores([1]), "gave 2 and 1 samples", "iterated again"),
])
def test_passes_over_different_samples_are_refused(who: str, other: Scores, message: str, hint: str) -> None:
    sides = {"int8": scores([1, 0]), "ptq": scores([1, 0]), "fine_tuned": scores([1, 0]), who: other}
    with pytest.raises(DataError, match=message) as caught:
        compare_scores(scores([1, 0]), sides["int8"], sides["ptq"], fine_tuned=sides["fine_tuned"],
                       higher_is_better=True)
    assert hint in caught.value.hint


def test_data_that_can_be_read_only_once_are_refused_and_not_compared_in_part() -> None:
    data = iter([(LOGITS[:2], HITS[:2]), (LOGITS[2:], HITS[2:])])
    first = evaluate(same, data, None)
    with pytest.raises(DataError, match="eval_data is empty"):
        evaluate(same, data, None)
    assert len(first.values) == 4


def test_data_that_shrink_between_two_models_are_refused_with_both_numbers() -> None:
    class Shrinking:
        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Any:
            self.left -= 1
            return iter([(LOGITS, HITS)] * self.left)

    data = Shrinking()
    first, second = evaluate(same, data, None), evaluate(same, data, None)
    with pytest.raises(DataError, match="gave 8 and 4 samples") as caught:
        compare_scores(first, second, None, higher_is_better=True)
    assert caught.value.hint


@pytest.mark.parametrize(("hits", "samples", "majority", "at_chance"), [
    (10, 10, 0.5, False), (6, 10, 0.5, True), (4, 4, 0.5, True), (90, 100, 0.9, True), (100, 100, 0.9, False),
    (10, 10, 1.0, True), (9, 10, None, False),
])
def test_a_float_model_that_only_names_the_majority_is_at_chance(hits: int, samples: int, majority: float | None,
                                                                 at_chance: bool) -> None:
    made = scores([1.0] * hits + [0.0] * (samples - hits), majority=majority)
    found = compare_scores(made, made, None, higher_is_better=True)
    assert found.at_chance is at_chance
    assert found.majority == majority


@pytest.mark.parametrize("options", [{"kind": "agreement", "sqnr": 30.0}, {}])
def test_chance_is_no_matter_for_agreement_or_scores_on_a_scale(options: dict) -> None:
    made = scores([1.0, 0.0] if options else [0.5, 0.25], majority=0.9)
    found = compare_scores(made, made, None, higher_is_better=True, **options)
    assert not found.at_chance
    assert found.majority is None
    assert found.sqnr_db == options.get("sqnr")


# -- what the samples can prove -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "drop", "interval", "provable"), [
    # Agresti and Min by hand: (b - c) / (n + 2) +- 1.959964 sqrt((b + c + 1) / (n + 2) - center**2) / sqrt(n + 2).
    ((98, 0, 0), 0.0, (-0.0195996, 0.0195996), 0.0195996),
    ((95, 3, 0), 0.0306122, (-0.0087558, 0.0687558), 0.0381435),
    ((95, 0, 3), -0.0306122, (-0.0687558, 0.0087558), 0.0393680),
    ((9994, 4, 0), 0.0004001, (-0.0000382, 0.0008382), 0.0004381),
    ((88, 6, 4), 0.0204082, (-0.0448864, 0.0848864), 0.0644782),
    ((1, 1, 0), 0.5, (-0.3981972, 0.8981972), 0.3981972),
])
def test_the_interval_and_what_it_can_prove_are_those_worked_out_by_hand(
        counts: tuple[int, int, int], drop: float, interval: tuple[float, float], provable: float) -> None:
    found = table(*counts)
    assert found.samples == sum(counts)
    assert found.flipped == counts[1] + counts[2]
    assert found.drop == pytest.approx(drop, abs=1e-7)
    assert found.drop_ci == pytest.approx(interval, abs=1e-7)
    assert found.provable_drop == pytest.approx(provable, abs=1e-7)


@pytest.mark.parametrize(("counts", "p_value"), [
    ((98, 0, 0), 1.0), ((95, 3, 0), 0.25), ((95, 0, 3), 0.25), ((88, 6, 4), 0.75390625), ((90, 10, 0), 2 / 2**10),
    ((90, 9, 1), 2 * 11 / 2**10), ((90, 5, 5), 1.0),
])
def test_the_significance_of_a_table_is_mcnemar_s_exact_one(counts: tuple[int, int, int], p_value: float) -> None:
    assert table(*counts).p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize(("counts", "tolerance", "needed"), [
    ((98, 0, 0), 0.02, 98),          # already proven
    ((98, 0, 0), 0.01, 377),         # 98 * 1.95996**2 = 376.5
    ((98, 0, 0), 0.005, 1506),       # 98 * (0.0195996 / 0.005)**2 = 1505.9
    ((95, 3, 0), 0.1, 98),
    ((95, 3, 0), 0.05, 380),         # 98 * (0.0381435 / 0.0193878)**2 = 379.3
    ((95, 3, 0), 3 / 98, None),      # the drop is all that is allowed
    ((95, 3, 0), 0.01, None),
    ((95, 0, 3), 0.0, 163),          # 98 * (0.0393680 / 0.0306122)**2 = 162.1
    ((98, 0, 0), 0.0, None),
])
def test_the_samples_needed_are_those_worked_out_by_hand(counts: tuple[int, int, int], tolerance: float,
                                                         needed: int | None) -> None:
    assert table(*counts).samples_needed(tolerance) == needed


def test_what_is_provable_is_proven_by_as_many_samples_as_there_are_and_no_less() -> None:
    found = table(500, 0, 0)
    assert found.samples_needed(found.provable_drop) == 500
    assert (found.samples_needed(found.provable_drop * 0.99) or 0) > 500


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 400), st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_looser_tolerance_never_needs_more_samples(right: int, worse: int, better: int, one: float,
                                                     other: float) -> None:
    found = table(right, worse, better)
    tight, loose = (found.samples_needed(tolerance) for tolerance in sorted((one, other)))
    assert tight is None or (loose is not None and loose <= tight)
    assert found.provable_drop >= 0


# -- the fine-tuned twin, and ratios --------------------------------------------------------------------------------


def test_the_fine_tuned_model_is_scored_and_compared_with_int8() -> None:
    found = compared([1.0] * 20, [1.0] * 10 + [0.0] * 10, [1.0] * 12 + [0.0] * 8, [1.0] * 19 + [0.0])
    assert (found.fp32, found.int8, found.ptq, found.fine_tuned) == (1, 0.5, 0.6, 0.95)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.ptq_p_value == pytest.approx(0.5)
    assert found.fine_tuned_p_value == pytest.approx(2 / 2**9)


def test_without_a_fine_tuned_model_there_is_nothing_to_say_about_it() -> None:
    found = compared([1, 0], [1, 0], [1, 0])
    assert found.fine_tuned is None
    assert found.fine_tuned_p_value is None
    assert found.ptq == 0.5


@pytest.mark.parametrize(("fp32", "int8", "higher_is_better", "relative"), [
    ([1, 1, 1, 1], [1, 1, 1, 0], True, 0.25), ([1, 1, 0, 0], [1, 0, 0, 0], True, 0.5),
    ([0.5, 0.5], [1.0, 0.75], False, 0.75), ([1, 0], [1, 1], True, -1.0),
    ([-2.0, -2.0], [-3.0, -3.0], True, 0.5), ([-2.0, -2.0], [-3.0, -3.0], False, -0.5),
    ([0, 0], [0, 0], True, None), ([1.0, -1.0], [-5.0, -5.0], True, None),
])
def test_the_relative_drop_is_a_share_of_the_float_score_and_nothing_at_zero(
        fp32: list[float], int8: list[float], higher_is_better: bool, relative: float | None) -> None:
    assert compared(fp32, int8, higher_is_better=higher_is_better).relative_drop == (
        None if relative is None else pytest.approx(relative))


def test_lower_is_better_turns_the_interval_and_what_it_proves_but_no_score() -> None:
    before = [0.25] * 40
    after = [0.25] * 20 + [0.5] * 20
    worse, better = (compared(before, after, after, before, higher_is_better=higher) for higher in (False, True))
    assert worse.drop == -better.drop == 0.125
    assert worse.drop_ci == (-better.drop_ci[1], -better.drop_ci[0])
    assert worse.drop_ci[0] < worse.drop < worse.drop_ci[1]
    assert worse.provable_drop == pytest.approx(worse.drop_ci[1] - 0.125)
    assert (worse.fp32, worse.int8, worse.ptq, worse.fine_tuned) == (0.25, 0.375, 0.375, 0.25)
    assert worse.p_value == better.p_value < 0.05
    assert worse.fine_tuned_p_value == worse.p_value
    assert worse.ptq_p_value == 1


def test_no_drop_is_a_plain_zero_whichever_way_is_better() -> None:
    found = compared([1, 0], [1, 0], higher_is_better=False)
    assert str(found.drop) == "0.0"


@pytest.mark.parametrize(("fp32", "int8", "is_fraction"), [
    ([0.0, 1.0], [1.0, 0.0], True), ([0.25, 0.5], [0.75, 0.5], True), ([0.25, 1.01], [0.75, 0.5], False),
    ([0.25, 0.5], [0.75, -0.01], False), ([30.0, 20.0], [29.0, 20.0], False),
])
def test_percent_are_the_right_words_only_where_all_scores_lie_between_0_and_1(
        fp32: list[float], int8: list[float], is_fraction: bool) -> None:
    assert compared(fp32, int8).is_fraction is is_fraction


def test_scores_on_another_scale_are_compared_without_mcnemar() -> None:
    drawn = np.random.default_rng(1)
    before = drawn.normal(30, 4, 200)
    clear, unclear = (compared(before, before - drawn.normal(mean, 0.5, 200)) for mean in (1, 0))
    assert clear.p_value < 0.001
    assert 0.8 < clear.drop_ci[0] < clear.drop < clear.drop_ci[1] < 1.2
    assert unclear.p_value > 0.05
    assert unclear.drop_ci[0] < 0 < unclear.drop_ci[1]
    assert not clear.is_fraction
    assert not clear.at_chance
    assert clear.flipped == 200


def test_scores_on_another_scale_give_the_same_figures_every_time() -> None:
    drawn = np.random.default_rng(2)
    before, after = drawn.normal(3, 1, (2, 50))
    assert compared(before, after) == compared(before, after)


def test_a_drop_of_one_sample_in_a_hundred_is_exactly_one_percent() -> None:
    assert compared([1.0] * 91 + [0.0] * 9, [1.0] * 90 + [0.0] * 10).drop == 0.01


def test_where_lower_is_better_few_errors_are_not_chance() -> None:
    errors = scores([1.0] * 2 + [0.0] * 98, majority=0.5)
    assert not compare_scores(errors, errors, None, higher_is_better=False).at_chance


@pytest.mark.parametrize(("before", "after", "higher", "shares"), [
    ([1, 0, 1], [0, 0, 1], True, True), ([0.25, 0.5], [0.5, 1.0], True, True), ([1, 0, 1], [0, 0, 1], False, True),
    ([1e-4, 2e-4], [1e-3, 4e-3], False, False), ([0.5, 0.5], [0.5, 1.5], True, False),
    ([-1.0, 0.5], [0, 1], True, False),
])
def test_scores_are_shares_if_they_are_hits_or_lie_between_none_and_all(
    before: list[float], after: list[float], higher: bool, shares: bool,
) -> None:
    assert compared(before, after, higher_is_better=higher).is_fraction is shares


@pytest.mark.parametrize(("before", "after", "only"), [
    ([0, 1, 2], [1, 1, 1], 1), ([0, 1, 2], [1, 1, 2], None), ([1, 1, 1], [1, 1, 1], None), (None, None, None),
])
def test_the_one_class_that_int8_names_is_told_where_float_names_several(before: Any, after: Any,
                                                                       only: int | None) -> None:
    found = compare_scores(scores([1, 1, 0], predictions=before), scores([1, 0, 0], predictions=after), None,
                           higher_is_better=True)
    assert found.only_class == only


def test_a_simulated_control_is_tested_against_the_fine_tuned_model() -> None:
    control, tuned, int8 = [1.0] * 40, [1.0] * 40, [0.0] * 40
    assert compared([1.0] * 40, int8, control, tuned, ptq_simulated=True).ptq_p_value == 1
    assert (compared([1.0] * 40, int8, control, tuned).ptq_p_value or 0) < 1e-6
