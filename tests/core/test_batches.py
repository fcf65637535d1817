"""Batches of another size, in every form that inputs come in."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import sample_count, unlike, with_batch

ROWS = torch.arange(6.0).reshape(3, 2)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize(("size", "rows"), [
    (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 0]), (8, [0, 1, 2, 0, 1, 2, 0, 1]),
])
def test_samples_are_repeated_in_order_or_cut_off(size: int, rows: list[int]) -> None:
    assert torch.equal(with_batch(ROWS, size), ROWS[rows])


def test_an_empty_batch_of_a_full_one_keeps_its_other_sides() -> None:
    assert with_batch(ROWS, 0).shape == (0, 2)


def test_a_batch_of_another_size_shares_no_memory_with_the_first() -> None:
    resized = with_batch(ROWS, 3)
    resized += 1
    assert ROWS[0, 0] == 0


@pytest.mark.parametrize("inputs", [
    (ROWS, ROWS * 2), [ROWS], {"x": ROWS, "y": ROWS * 2}, OrderedDict(x=ROWS), Pair(ROWS, ROWS * 2),
    ((ROWS, {"deep": [ROWS * 3]}), ROWS), ({"x": ROWS},),
])
def test_every_tensor_of_a_nested_batch_is_resized_and_its_form_kept(inputs: Any) -> None:
    resized = with_batch(inputs, 5)
    before, after = pytree.tree_flatten(inputs), pytree.tree_flatten(resized)
    assert type(resized) is type(inputs)
    assert before[1] == after[1]
    assert all(torch.equal(new, old[[0, 1, 2, 0, 1]]) for old, new in zip(before[0], after[0], strict=True))
    assert sample_count(resized) == 5


def test_tensors_that_are_not_batched_stay_the_very_same() -> None:
    table, scale, mask = torch.zeros(7, 2), torch.tensor(2.0), torch.ones(2, 3)
    rows, *others = with_batch((ROWS, table, scale, mask), 4)
    assert rows.shape == (4, 2)
    assert [other is kept for other, kept in zip(others, (table, scale, mask), strict=True)] == [True] * 3


def test_what_is_no_tensor_stays_as_it_is() -> None:
    assert with_batch((ROWS, 3, "text", None), 4)[1:] == (3, "text", None)
    assert with_batch({"flag": True}, 4) == {"flag": True}


def test_the_first_tensor_with_a_side_tells_the_batch() -> None:
    inputs = (torch.tensor(1.0), torch.zeros(4, 1), torch.zeros(2, 1))
    assert sample_count(inputs) == 4
    assert [tuple(tensor.shape) for tensor in with_batch(inputs, 8)] == [(), (8, 1), (2, 1)]


@pytest.mark.parametrize("tensor", [
    torch.arange(12, dtype=torch.int64).reshape(3, 4), torch.zeros(3, dtype=torch.bool),
    torch.zeros(3, 2, dtype=torch.bfloat16), torch.randn(3, 2, 4, 4).to(memory_format=torch.channels_last),
])
def test_dtype_and_sides_stay(tensor: Tensor) -> None:
    resized = with_batch(tensor, 5)
    assert (resized.dtype, resized.shape) == (tensor.dtype, (5, *tensor.shape[1:]))
    assert torch.equal(resized[:3], tensor)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 30))
def test_a_batch_made_larger_and_cut_again_is_that_cut_at_once(samples: int, size: int, smaller: int) -> None:
    rows = torch.arange(float(samples))
    smaller = min(size, smaller)
    assert torch.equal(with_batch(rows, size)[:smaller], with_batch(rows, smaller))
    assert with_batch(rows, size).tolist() == [index % samples for index in range(size)]


def test_a_mapping_that_is_no_dict_is_resized_too() -> None:
    assert with_batch(UserDict(x=ROWS), 5)["x"].shape[0] == 5


def test_an_empty_batch_stays_empty() -> None:
    assert with_batch((torch.empty(0, 2),), 5)[0].shape == (0, 2)


@pytest.mark.parametrize("inputs", [
    (ROWS, ROWS.long()), [ROWS[:1], ROWS[:2].long()], {"b": ROWS.long(), "a": ROWS}, UserDict(a=ROWS, b=ROWS.long()),
    (ROWS, ROWS.long(), True),
])
def test_a_batch_of_another_size_or_form_is_like_the_example(inputs: Any) -> None:
    assert unlike(inputs, {"a": ROWS, "b": ROWS.long()}) is None


@pytest.mark.parametrize(("inputs", "told"), [
    (ROWS, "tensors float32 (3, 2), example_inputs float32 (3, 2), int64 (3, 2)"),
    ((ROWS, ROWS), "tensors float32 (3, 2), float32 (3, 2), example_inputs float32 (3, 2), int64 (3, 2)"),
    ((ROWS.T, ROWS.long()), "tensors float32 (2, 3), int64 (3, 2), example_inputs float32 (3, 2), int64 (3, 2)"),
    (3, "tensors none, example_inputs float32 (3, 2), int64 (3, 2)"),
])
def test_a_batch_of_another_shape_or_dtype_is_told_beside_the_example(inputs: Any, told: str) -> None:
    assert unlike(inputs, (ROWS, ROWS.long())) == told
