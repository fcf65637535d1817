"""A crash in native code stays in the child process and comes back with a name."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.core.forked import HANGS, crash_of, run_forked, signal_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


class Dying(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ctypes.string_at(0)  # reads address 0
        return x


class Illegal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGILL)
        return x


def test_a_segmentation_fault_is_named_with_signal_and_module() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Dying()))
    crash = crash_of(model, [(torch.zeros(1),)])
    assert crash is not None
    assert (crash.signal_name, crash.module) == ("SIGSEGV", "1.0")


def test_an_illegal_instruction_is_named() -> None:
    crash = crash_of(Illegal(), [(torch.zeros(1),)])
    assert crash is not None
    assert crash.signal_name == "SIGILL"
    assert "llegal" in crash.meaning


def test_a_healthy_model_and_a_python_error_are_no_crash(capfd: pytest.CaptureFixture[str]) -> None:
    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("a matter for the parent")

    assert crash_of(nn.Linear(2, 2), [(torch.zeros(1, 2),)]) is None
    assert crash_of(Raising(), [(torch.zeros(1),)]) is None
    assert capfd.readouterr() == ("", "")


def test_a_child_that_hangs_is_killed_and_is_no_crash() -> None:
    class Hanging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(60)
            return x

    assert crash_of(Hanging(), [(torch.zeros(1),)], timeout_s=0.3) is None


def test_a_child_that_the_system_kills_died_and_did_not_hang() -> None:
    class Starved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out
            return x

    crash = crash_of(Starved(), [(torch.zeros(1),)])
    assert crash is not None
    assert crash.signal_name == "SIGKILL"
    assert signal_of(lambda: os.kill(os.getpid(), signal.SIGKILL)) == "SIGKILL"
    assert signal_of(lambda: time.sleep(60), timeout_s=0.3) == HANGS


def test_no_hooks_and_no_children_are_left() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    crash_of(model, [(torch.zeros(1, 2),)])
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("write", [
    lambda: print("leaked", file=sys.stderr, flush=True), lambda: print("leaked", flush=True),
    lambda: os.write(2, b"leaked"), lambda: os.system("echo leaked >&2"),
    lambda: logging.getLogger("child").warning("leaked")],
    ids=["stderr", "stdout", "file descriptor", "process", "log"])
def test_what_a_child_prints_reaches_no_one(write: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("child").addHandler(handler)
    try:
        run_forked(lambda writer: write(), timeout_s=20)
    finally:
        logging.getLogger("child").removeHandler(handler)
    assert "leaked" not in "".join(capfd.readouterr())
