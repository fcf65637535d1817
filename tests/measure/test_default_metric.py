"""The score of a sample where the case gives no metric: which one it is, and what it counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import compare_scores
from pytest_qat.measure.default_metric import default_scores
from pytest_qat.measure.scoring import evaluate
from tests.measure.scored import HITS, LOGITS, same

MAP = torch.zeros(2, 3, 2, 2)
MAP[:, 1] = 1


@pytest.mark.parametrize(("output", "target", "name", "lower_is_better"), [
    (LOGITS, HITS, "top-1", False),
    (torch.randn(4, 3, 7), torch.zeros(4, 7, dtype=torch.long), "accuracy of positions", False),
    (MAP, torch.ones(2, 2, 2, dtype=torch.long), "pixel accuracy", False),
    (MAP, torch.ones(2, 1, 2, 2, dtype=torch.uint8), "pixel accuracy", False),
    ({"out": MAP, "aux": MAP}, torch.ones(2, 2, 2, dtype=torch.long), "pixel accuracy", False),
    (MAP, MAP + 0.5, "relative error", True),
    (LOGITS, LOGITS * 0.9, "relative error", True),
    (LOGITS[:, :1], LOGITS[:, 0] + 0.1, "relative error", True),
    (LOGITS[:, 0], LOGITS[:, :1] + 0.1, "relative error", True),
    ((torch.ones(4, 7), MAP.flatten(1).repeat(2, 1)), torch.randn(4, 12), "relative error", True),
])
def test_the_form_of_the_target_tells_which_metric_it_is(output: Any, target: Tensor, name: str,
                                                         lower_is_better: bool) -> None:
    found = default_scores(output, target)
    assert (found.name, found.lower_is_better) == (name, lower_is_better)
    assert found.values.shape == (len(target),)


def test_positions_that_are_not_labeled_do_not_count() -> None:
    target = torch.tensor([[[1, 1], [255, 0]], [[-100, 255], [-100, 255]]])
    assert default_scores(MAP, target).values.tolist() == pytest.approx([2 / 3, 1.0])


@pytest.mark.parametrize(("right", "at_chance"), [(True, False), (False, True)])
def test_a_map_that_names_the_most_frequent_class_everywhere_is_at_chance(right: bool, at_chance: bool) -> None:
    target = torch.tensor([[[0, 0], [0, 1]], [[0, 255], [2, 0]]])
    made = torch.eye(3)[target.clamp(max=2) if right else torch.zeros_like(target)].permute(0, 3, 1, 2)
    found = evaluate(same, [(made, target)], None)
    assert found.majority == pytest.approx(5 / 7)
    assert compare_scores(found, found, None, higher_is_better=True).at_chance is at_chance


def test_the_error_is_the_root_mean_square_of_a_sample_over_that_of_all_targets() -> None:
    first, second = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[5.0, 5.0]])
    output = [(first + 1, first), (second - 2, second)]
    found = evaluate(same, output, None)
    assert found.values.tolist() == pytest.approx([1 / 12.5**0.5, 1 / 12.5**0.5, 2 / 12.5**0.5])  # 75 / 6 = 12.5
    assert found.lower_is_better
    assert found.name == "relative error"


def test_targets_of_nothing_but_zeros_leave_the_error_as_it_is() -> None:
    target = torch.zeros(2, 1, 4, 4)
    assert evaluate(same, [(target + 0.5, target)], None).values.tolist() == [0.5, 0.5]


def test_the_output_that_the_error_is_of_is_told() -> None:
    found = default_scores({"features": torch.ones(4, 7), "depth": torch.ones(4, 1, 2, 2)}, torch.randn(4, 2, 2))
    assert found.place == "['depth']"


@pytest.mark.parametrize(("output", "target", "hint"), [
    (torch.randn(4, 1), torch.tensor([0.0, 1, 1, 0]), "output > 0)"),
    (torch.rand(4, 1), torch.tensor([0.0, 1, 1, 0]), "output > 0.5)"),
    (torch.randn(4, 1, 2, 2), torch.eye(2).expand(4, 1, 2, 2), "output > 0)"),
    ({"a": torch.ones(9, 9), "mask": torch.randn(4, 2, 2)}, torch.eye(2).expand(4, 2, 2), "output['mask'] > 0)"),
    (LOGITS, torch.tensor([[1.0, 1, 0]]).expand(4, 3), "output > 0)"),
    (LOGITS, torch.eye(3)[HITS], "argmax(1)"),
    (LOGITS, torch.eye(3)[HITS].long(), "argmax(1)"),
])
def test_yes_or_no_is_no_value_to_come_close_to(output: Any, target: Tensor, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        default_scores(output, target)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("output", "target"), [
    (torch.randn(4, 1), torch.tensor([0.0, 1, 1, 0])), (torch.rand(4), torch.tensor([0.0, 1, 1, 0])),
    ({"mask": torch.randn(4, 2, 2)}, torch.eye(2).expand(4, 1, 2, 2)),
])
def test_the_change_that_is_shown_for_yes_or_no_works(output: Any, target: Tensor) -> None:
    with pytest.raises(DataError) as caught:
        default_scores(output, target)
    shown = caught.value.hint.removeprefix("Write metric=").partition(", which is")[0]
    found = evaluate(same, [(output, target)], eval(shown))  # what a user would paste
    made = output["mask"] if isinstance(output, dict) else output
    level = 0.5 if made.min() >= 0 else 0.0
    right = (made.reshape(4, -1) > level) == (target.reshape(4, -1) > 0.5)
    assert found.values.tolist() == right.float().mean(1).tolist()


def test_a_later_batch_may_be_of_zeros_and_ones() -> None:
    data = [(LOGITS[:, :1], LOGITS[:, :1] + 0.1), (torch.ones(2, 1), torch.tensor([[0.0], [1.0]]))]
    assert len(evaluate(same, data, None).values) == 6


def test_targets_of_two_forms_are_refused() -> None:
    with pytest.raises(DataError, match="top-1 for one batch of eval_data and relative error for another"):
        evaluate(same, [(LOGITS, HITS), (LOGITS, LOGITS * 0.9)], None)


@pytest.mark.parametrize("target", [torch.randn(4, 2), torch.zeros(4, dtype=torch.float64), "label", None])
def test_a_target_that_fits_no_output_is_refused(target: Any) -> None:
    with pytest.raises(DataError) as caught:
        default_scores(LOGITS, target)
    assert caught.value.hint
