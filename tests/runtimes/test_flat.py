"""Inputs as flat lists of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from pytest_qat.runtimes.flat import InputOrder, leaves_of

A, B, C = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)


@pytest.mark.parametrize(("example", "inputs"), [
    (({"left": A, "right": B},), ({"right": B, "left": A},)),
    (({"left": A, "right": B},), {"pair": {"right": B, "left": A}}),
    (([{"left": A, "right": B}],), [({"right": B, "left": A},)]),
    ((A, {"deep": {"x": B, "y": C}}), (A, {"deep": {"y": C, "x": B}})),
])
def test_tensors_keep_the_example_s_order_whatever_that_of_the_keys(example: Any, inputs: Any) -> None:
    found = InputOrder(example, names=("pair",)).leaves(inputs)
    assert [float(leaf) for leaf in found] == [float(leaf) for leaf in pytree.tree_leaves(example)]


def test_odd_strides_of_dimensions_of_size_one_do_not_reach_a_runtime() -> None:
    channels_last = torch.randn(2, 8, 8, 1).permute(0, 3, 1, 2)
    (leaf,) = leaves_of(channels_last)
    assert leaf.stride() == (64, 64, 8, 1)
    assert torch.equal(leaf, channels_last)


def test_tensors_of_any_layout_come_contiguous() -> None:
    leaves = leaves_of((torch.randn(4, 3).T, {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}, 5))
    assert [leaf.is_contiguous() for leaf in leaves] == [True, True]
