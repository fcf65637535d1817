"""Evaluation data and metrics, tried on the float model before any training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.errors import DataError
from pytest_qat.pipeline.scoring_trial import try_scoring

MODEL = nn.Linear(3, 2).eval()
LABELS = torch.tensor([0, 1, 1, 0])
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def case(**changes: Any) -> QATCase:
    return QATCase(**{"model": MODEL, "example_inputs": (X,), "eval_data": [(X, LABELS)], **changes})


def refused(**changes: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        try_scoring(case(**changes), MODEL)
    assert caught.value.hint
    return caught.value


def hits(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return hits(outputs, targets).mean()


def auc(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = outputs[:, 1]
    return (scores[targets == 1].unsqueeze(1) > scores[targets == 0]).float().mean()


@pytest.mark.parametrize("changes", [
    {}, {"metric": hits}, {"set_metric": accuracy}, {"set_metric": auc}, {"eval_data": None},
    {"eval_data": [((X,), LABELS)]}, {"eval_data": [({"input": X}, LABELS)]}, {"eval_data": iter([(X, LABELS)])},
    {"eval_data": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABELS), batch_size=2)},
])
def test_what_works_says_nothing(changes: dict[str, Any]) -> None:
    assert try_scoring(case(**changes), MODEL) is None


def test_a_score_for_the_whole_batch_is_told_to_be_a_set_metric() -> None:
    error = refused(metric=accuracy)
    assert "shape ()" in error.message
    assert f"accuracy (test_scoring_trial.py:{accuracy.__code__.co_firstlineno})" in error.message
    assert "set_metric=accuracy instead of metric=accuracy" in error.hint
    try_scoring(case(set_metric=accuracy), MODEL)


def test_a_score_for_each_sample_is_told_to_be_a_metric() -> None:
    assert "metric=hits instead of set_metric=hits" in refused(set_metric=hits).hint


@pytest.mark.parametrize(("changes", "seen"), [
    ({"metric": lambda output, target: output}, "shape (4, 2)"),
    ({"metric": lambda output, target: 1 / 0}, "ZeroDivisionError"),
    ({"metric": lambda output, target: (output[:, 0] * float("nan"))}, "NaN"),
    ({"set_metric": lambda outputs, targets: outputs.nope}, "AttributeError"),
    ({"set_metric": lambda outputs, targets: 1 / 0}, "ZeroDivisionError on the 4 samples"),
    ({"set_metric": lambda outputs, targets: float("nan")}, "gave nan"),
    ({"eval_data": [(X[:, :2], LABELS)]}, "example_inputs float32 (4, 3)"),
    ({"eval_data": [(X, torch.zeros(4, 7))]}, "float32 of shape (4, 7)"),
    ({"eval_data": [(X, "label")]}, "str"),
    ({"eval_data": [X]}, "expected a pair"),
])
def test_what_does_not_work_is_told_with_what_was_seen(changes: dict[str, Any], seen: str) -> None:
    assert seen in refused(**changes).message


@pytest.mark.parametrize("field", ["metric", "set_metric"])
def test_an_error_of_the_metric_names_the_user_s_line(field: str) -> None:
    def broken(outputs: Any, targets: Any) -> Any:
        raise KeyError("scores")

    assert f"(test_scoring_trial.py:{broken.__code__.co_firstlineno + 1})" in refused(**{field: broken}).message


def test_a_model_that_raises_on_the_data_is_told_by_its_line() -> None:
    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.min() < -5:
                raise IndexError("index out of range")
            return super().forward(x)

    with pytest.raises(DataError, match=r"IndexError .* index out of range \(test_scoring_trial.py:\d+\)"):
        try_scoring(case(eval_data=[(X - 100, LABELS)]), Picky(3, 2).eval())


# -- scores of a set that a batch cannot tell -------------------------------------------------------------------------


class Counted:
    """Batches of one class each, the second class from a given batch on; counts what was read."""

    def __init__(self, *, second_from: int, batches: int = 40) -> None:
        self.read, self._second_from, self._batches = 0, second_from, batches

    def __iter__(self) -> Iterator[Any]:
        for index in range(self._batches):
            self.read += 1
            yield X, torch.full((4,), int(index >= self._second_from))


@pytest.mark.parametrize(("second_from", "most"), [(1, 2), (5, 8), (30, 40)])
def test_a_batch_without_a_class_is_not_the_end(second_from: int, most: int) -> None:
    data = Counted(second_from=second_from)
    try_scoring(case(eval_data=data, set_metric=auc), MODEL)
    assert second_from < data.read <= most


def test_a_set_without_a_class_is_told_with_all_its_samples() -> None:
    error = refused(eval_data=Counted(second_from=99), set_metric=auc)
    assert "160 samples" in error.message
    assert "every class" in error.hint


def test_looking_for_a_class_takes_no_longer_than_it_may() -> None:
    data, ticks = Counted(second_from=9999, batches=10_000), itertools.count(0, 6)
    try_scoring(case(eval_data=data, set_metric=auc), MODEL, clock=lambda: next(ticks))
    assert data.read < 20
