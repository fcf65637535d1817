"""Implementations that end or block their process fail the law that they were tried on, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.reference_ops import half_even
from pytest_qat import QuantOps
from pytest_qat.properties.forked import check_in_child
from pytest_qat.properties.law import Law
from pytest_qat.properties.laws import get_law
from pytest_qat.properties.runner import Failure, check_law

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
LAW = get_law("P1_round_trip")


def with_quantize(quantize: Any) -> QuantOps:
    return dataclasses.replace(half_even(), quantize=quantize)


def held(ops: QuantOps, *, timeout_s: float = 60.0) -> list[Failure]:
    def check(law: Law) -> list[Failure]:
        failure = check_law(law, ops)
        return [] if failure is None else [failure]

    return check_in_child(check, LAW, ops, timeout_s=timeout_s)


def test_what_a_check_finds_is_the_same_in_a_child() -> None:
    def shifted(x: Tensor, *params: Any) -> Tensor:
        return (half_even().quantize(x, *params) + 1).clamp(params[2], params[3])

    assert held(half_even()) == []
    ops = with_quantize(shifted)
    assert held(ops) == [check_law(LAW, ops)]


def test_a_kernel_that_crashes_is_a_failure_with_its_signal_and_the_smallest_deadly_example() -> None:
    def deadly(x: Tensor, *params: Any) -> Tensor:
        if bool((x.abs() > 3).any()):
            os.kill(os.getpid(), signal.SIGSEGV)
        return half_even().quantize(x, *params)

    (failure,) = held(with_quantize(deadly))
    assert "SIGSEGV" in failure.lines[0]
    assert (failure.law, len(failure.example.values)) == ("P1_round_trip", 1)
    assert abs(failure.example.values[0]) > 3


def test_a_kernel_that_does_not_come_back_is_ended() -> None:
    def endless(x: Tensor, *params: Any) -> Tensor:
        if x.numel() > 1:
            time.sleep(600)
        return half_even().quantize(x, *params)

    started = time.monotonic()
    (failure,) = held(with_quantize(endless), timeout_s=2.0)
    assert time.monotonic() - started < 60
    assert "2 s" in failure.lines[0]
    assert failure.example is not None


def test_a_check_that_raises_is_made_again_in_this_process() -> None:
    here = os.getpid()

    def check(law: Law) -> list[Failure]:
        raise KeyError(os.getpid() == here)

    with pytest.raises(KeyError, match="True"):
        check_in_child(check, LAW, half_even(), timeout_s=60)


def test_what_a_kernel_prints_is_still_seen(capfd: pytest.CaptureFixture[str]) -> None:
    def telling(x: Tensor, *params: Any) -> Tensor:
        os.write(1, b"seen\n")
        return half_even().quantize(x, *params)

    assert held(with_quantize(telling)) == []
    assert "seen" in capfd.readouterr().out


def test_a_child_leaves_this_process_s_threads_alone() -> None:
    before = torch.get_num_threads()
    held(half_even())
    assert torch.get_num_threads() == before
