"""Flips: the samples whose score changes from float to int8, and what is told of each."""

from __future__ import annotations

import torch

from pytest_qat.measure.accuracy import Flip, compare_scores
from pytest_qat.measure.scoring import evaluate
from tests.measure.scored import HITS, LOGITS, compared, same


def test_a_flip_tells_the_place_the_target_and_both_classes_of_the_default_metric() -> None:
    int8 = LOGITS.clone()
    int8[1] = torch.tensor([7.0, 3.0, 1.0])  # was right, names class 0 now
    int8[3] = torch.tensor([7.0, 8.0, 9.0])  # was wrong, is right now
    found = compare_scores(evaluate(same, [(LOGITS, HITS)], None), evaluate(same, [(int8, HITS)], None), None,
                           higher_is_better=True)
    assert found.flips == (Flip(index=1, target=1, before=1, after=0), Flip(index=3, target=2, before=0, after=2))
    assert found.flipped == 2


def test_a_sample_that_stays_wrong_in_another_way_is_no_flip() -> None:
    int8 = LOGITS.clone()
    int8[3] = torch.tensor([0.0, 9.0, 1.0])
    found = compare_scores(evaluate(same, [(LOGITS, HITS)], None), evaluate(same, [(int8, HITS)], None), None,
                           higher_is_better=True)
    assert found.flips == ()
    assert (found.flipped, found.drop) == (0, 0)


def test_a_flip_of_a_user_s_metric_tells_both_scores() -> None:
    target = torch.tensor([0.5, 4.0, 1.0])
    before, after = (evaluate(same, [(torch.tensor(values), target)], lambda output, want: (output - want).abs())
                     for values in ([1.0, 2.0, 1.0], [1.0, 3.5, 1.25]))
    found = compare_scores(before, after, None, higher_is_better=False)
    assert found.flips == (Flip(index=1, target=4.0, before=2.0, after=0.5),
                           Flip(index=2, target=1.0, before=0.0, after=0.25))


def test_a_flip_without_a_number_for_a_target_has_none() -> None:
    assert compared([1, 1], [1, 0]).flips == (Flip(index=1, target=None, before=1.0, after=0.0),)


def test_flips_are_plain_numbers_that_json_takes() -> None:
    int8 = LOGITS.roll(1, dims=0)
    found = compare_scores(evaluate(same, [(LOGITS, HITS)], None), evaluate(same, [(int8, HITS)], None), None,
                           higher_is_better=True)
    assert found.flips
    for flip in found.flips:
        assert {type(flip.index), type(flip.target), type(flip.before), type(flip.after)} == {int}


def test_no_more_than_a_thousand_flips_are_kept_and_those_are_the_largest_changes() -> None:
    small, large = [0.1] * 700, [0.9] * 600
    found = compared([0.0] * 2600, small + [0.0] * 300 + large + [-0.9] * 300 + small)
    assert found.flipped == 2300
    kept = {flip.index for flip in found.flips}
    assert len(kept) == len(found.flips) == 1000
    assert kept >= set(range(1000, 1900)), "every large change of either sign is among them"
    assert kept - set(range(1000, 1900)) == set(range(100)), "and of equal changes the first ones"


def test_a_thousand_flips_are_all_kept_in_order() -> None:
    found = compared([0.0] * 1001, [0.0] + [1.0] * 1000)
    assert [flip.index for flip in found.flips] == list(range(1, 1001))
    assert found.flipped == 1000


def test_a_control_or_a_fine_tuned_twin_has_no_part_in_the_flips() -> None:
    found = compared([1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1])
    assert found.flips == ()
    assert found.flipped == 0
