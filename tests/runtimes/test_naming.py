"""Names of the user's modules for the kernels of an artifact."""

from __future__ import annotations

import pytest

from pytest_qat.runtimes.base import Kernel
from pytest_qat.runtimes.naming import in_order

CONV = Kernel(int8=False, op="conv2d", module="a", macs=100)
LINEAR = Kernel(int8=False, op="linear", module="b", macs=9)


def test_kernels_are_named_in_order_where_there_are_as_many() -> None:
    seen = [Kernel(int8=True, op="QLinearConv"), Kernel(int8=False, op="Gemm", reason="float")]
    assert in_order(seen, [CONV, LINEAR]) == (Kernel(int8=True, op="QLinearConv", module="a", macs=100),
                                              Kernel(int8=False, op="Gemm", module="b", macs=9, reason="float"))


def test_branches_that_changed_places_are_told_apart_by_kind_or_macs() -> None:
    by_kind = in_order([Kernel(int8=True, op="QGemm"), Kernel(int8=False, op="FusedConv")], [CONV, LINEAR])
    assert [kernel.module for kernel in by_kind] == ["b", "a"]
    twin = Kernel(int8=False, op="linear", module="c", macs=50)
    by_macs = in_order([Kernel(int8=True, op="FULLY_CONNECTED", macs=50),
                        Kernel(int8=True, op="FULLY_CONNECTED", macs=9)], [LINEAR, twin])
    assert [kernel.module for kernel in by_macs] == ["c", "b"]


def test_kernels_that_fit_no_name_take_the_first_that_is_left() -> None:
    found = in_order([Kernel(int8=True, op="FULLY_CONNECTED", macs=7), Kernel(int8=True, op="CONV_2D", macs=100)],
                     [LINEAR, CONV])
    assert [(kernel.module, kernel.macs) for kernel in found] == [("b", 7), ("a", 100)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_kernels_stay_unnamed_where_the_numbers_differ(count: int) -> None:
    seen = [Kernel(int8=True, op="QLinearConv"), Kernel(int8=False, op="Gemm")]
    assert in_order(seen, [Kernel(int8=False, op="conv2d", module="a")] * count) == tuple(seen)
