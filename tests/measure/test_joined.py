"""Batches joined along the batch dimension, in every structure that a model or a data set may have."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pytest_qat.measure.joined import joined, on_cpu, size_bytes

COUNTS = (3, 2)
EVERY = torch.arange(5)
DRAWN = torch.tensor([4, 0, 0, 3, 1])


class Pair(NamedTuple):
    one: Tensor
    other: Tensor



@dataclass(frozen=True)
class Output:
    logits: Tensor
    extra: Any = None


class Shown(OrderedDict):
    """Shows its keys as attributes, as the outputs of transformers do."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


def rows(*shape: int) -> list[Tensor]:
    whole = torch.arange(5).reshape(5, *[1] * len(shape)).expand(5, *shape).float()
    return list(whole.split(COUNTS))


def test_tensors_are_joined_along_the_batch_dimension() -> None:
    take = joined(rows(2), COUNTS)
    assert take(EVERY).tolist() == [[n, n] for n in range(5)]
    assert take(DRAWN)[:, 0].tolist() == [4, 0, 0, 3, 1]


def test_the_batch_dimension_may_come_after_time() -> None:
    time_first = [part.transpose(0, 1) for part in rows(7)]
    assert [part.shape for part in time_first] == [(7, 3), (7, 2)]
    assert joined(time_first, COUNTS)(DRAWN)[0].tolist() == [4, 0, 0, 3, 1]


def test_rows_of_different_shapes_stay_a_list() -> None:
    found = joined([torch.zeros(3, 4), torch.ones(2, 6)], COUNTS)(DRAWN)
    assert [tuple(row.shape) for row in found] == [(6,), (4,), (4,), (6,), (4,)]


def test_lists_of_one_entry_a_sample_stay_lists() -> None:
    assert joined([["a", "b", "c"], ["d", "e"]], COUNTS)(DRAWN) == ["e", "a", "a", "d", "b"]
    boxes = [{"boxes": torch.zeros(n, 4)} for n in (3, 1, 0, 2, 5)]
    found = joined([boxes[:3], boxes[3:]], COUNTS)(DRAWN)
    assert [len(each["boxes"]) for each in found] == [5, 3, 3, 2, 1]
    assert [len(each) for each in joined([tuple(torch.zeros(n, 4) for n in (3, 1, 0)),
                                          tuple(torch.zeros(n, 4) for n in (2, 5))], COUNTS)(EVERY)] == [3, 1, 0, 2, 5]


def test_a_pair_of_two_samples_is_told_from_two_samples() -> None:
    """Both have two entries; parts have a row for each sample."""
    parts = joined([(torch.zeros(2, 4), torch.ones(2)), (torch.zeros(2, 4), torch.ones(2))], (2, 2))
    assert [tuple(part.shape) for part in parts(torch.arange(4))] == [(4, 4), (4,)]
    nested = joined([(torch.zeros(2, 4), {"aux": torch.ones(2)})] * 2, (2, 2))(torch.arange(4))
    assert nested[1]["aux"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("value", "read"), [
    (lambda part: (part, part * 2), lambda found: found[1]),
    (lambda part: [part, [part * 2]], lambda found: found[1][0]),
    (lambda part: {"a": part, "b": {"c": part * 2}}, lambda found: found["b"]["c"]),
    (lambda part: Pair(part, part * 2), lambda found: found.other),
    (lambda part: Output(part, extra=part * 2), lambda found: found.extra),
    (lambda part: Output(part * 2), lambda found: found.logits),
    (lambda part: Shown(logits=part * 2), lambda found: found.logits),
])
def test_structures_keep_their_form(value: Any, read: Any) -> None:
    values = [value(part) for part in rows()]
    found = joined([on_cpu(each) for each in values], COUNTS)(DRAWN)
    assert type(found) is type(values[0])
    assert read(found).tolist() == [8, 0, 0, 6, 2]
    assert read(values[0]).tolist() == [0, 2, 4], "what the model returned is left as it was"


def test_numpy_arrays_are_joined_as_arrays() -> None:
    found = joined([np.array([0, 1, 2]), np.array([3, 4])], COUNTS)(DRAWN)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [4, 0, 0, 3, 1]
    assert joined([np.array(["a", "b", "c"]), np.array(["d", "e"])], COUNTS)(DRAWN) == ["e", "a", "a", "d", "b"]


@pytest.mark.parametrize("values", [
    [torch.tensor(1.0), torch.tensor(2.0)], [1.5, 2.5], ["first", "second"], [torch.ones(1), None],
    [{"a": torch.ones(3)}, {"b": torch.ones(2)}],
])
def test_what_has_no_entry_a_sample_is_a_list_of_the_batches(values: list[Any]) -> None:
    found = joined(values, COUNTS)(DRAWN)
    assert len(found) == 2
    assert type(found[0]) is type(values[0])


def test_nothing_stays_nothing() -> None:
    assert joined([None, None], COUNTS)(DRAWN) is None


def test_batches_of_one_sample_have_one_value_a_sample() -> None:
    assert joined(["a", "b", "c"], (1, 1, 1))(torch.tensor([2, 2, 0])) == ["c", "c", "a"]
    images = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 6), torch.zeros(1, 3, 4, 4)]
    rows = joined(images, (1, 1, 1))(torch.arange(3))
    assert [tuple(each.shape) for each in rows] == [(3, 4, 4), (3, 5, 6), (3, 4, 4)]


def test_tensors_are_detached_and_dequantized() -> None:
    weight = torch.ones(2, requires_grad=True)
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.quint8)
    found = on_cpu({"a": [weight * 2], "b": quantized, "c": "text", "d": None})
    assert not found["a"][0].requires_grad
    assert found["b"].dtype == torch.float32
    assert (found["c"], found["d"]) == ("text", None)


def test_bytes_of_everything_inside_are_counted() -> None:
    assert size_bytes({"a": (torch.zeros(4), "text"), "b": np.zeros(2), "c": Output(torch.zeros(1))}) == 16 + 16 + 4
