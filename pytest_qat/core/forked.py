"""Let a model crash where it hurts nobody: its first run happens in a forked child process.

Int8 kernels of some engines die on some machines with a signal (an instruction the CPU lacks, say), which would
take the whole test session along. The child tells which module it is in, so that the culprit has a name.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_qat.core.batches import call

__all__ = ["HANGS", "Crash", "Death", "crash_of", "death_of", "signal_of"]

HANGS = "does not come back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """How a process died.

    Attributes:
        signal_name: Such as `SIGILL`.
        meaning: The signal in words.
        module: Name of the module that was running, or None if none had begun.
    """

    signal_name: str
    meaning: str
    module: str | None


def crash_of(model: nn.Module, batches: Sequence[Any], *, timeout_s: float = 120.0) -> Crash | None:
    """Run a model on batches in a child process and return how the child died, or None if it did not.

    Errors that Python can catch are none of this function's business: they show again in this process. So is a child
    that hangs, since a fork of a process with threads may hang by itself; it is killed after `timeout_s`. Where
    processes cannot be forked, nothing is contained and None is returned.
    """
    died = death_of(lambda writer: _run_batches(model, batches, writer), timeout_s=timeout_s)
    if died is None or died.hung:
        return None
    entered = died.said.decode("utf-8", errors="replace").split("\n")[:-1]
    return Crash(signal_name=signal.Signals(died.number).name,
                 meaning=signal.strsignal(died.number) or "unknown signal",
                 module=entered[-1] if entered else None)


def signal_of(function: Callable[[], object], *, timeout_s: float = 10.0) -> str | None:
    """Call a function in a child process and return the signal that ended the child, `HANGS`, or None.

    What Python can catch is none of this function's business. A fork of a process with threads may hang by itself.
    """
    died = death_of(lambda writer: function(), timeout_s=timeout_s)
    if died is None:
        return None
    return HANGS if died.hung else signal.Signals(died.number).name


class Death(NamedTuple):
    """How a child died.

    Attributes:
        number: The signal that ended it.
        said: The tail of what it wrote, at most 64 KiB.
        hung: Whether it was killed from here, because its time was over.
    """

    number: int
    said: bytes
    hung: bool


def death_of(work: Callable[[int], object], *, timeout_s: float, quiet: bool = True) -> Death | None:
    """Do work in a forked child.

    Args:
        work: Takes a file descriptor that it may write to.
        timeout_s: Most seconds.
        quiet: Whether what the work prints goes nowhere.

    Returns:
        How the child died; None if it came to its end, be it with an exception, or if processes cannot be forked here,
        and then nothing was done.
    """
    if not hasattr(os, "fork"):
        return None
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child starts no threads, and lives a few calls
        child = os.fork()
    if child == 0:
        _work_as_child(work, writer, quiet=quiet)
    os.close(writer)
    try:
        said, hung = _listen(reader, deadline=time.monotonic() + timeout_s)
        if hung:
            os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    return Death(os.WTERMSIG(status), said, hung) if os.WIFSIGNALED(status) else None


def _work_as_child(work: Callable[[int], object], writer: int, *, quiet: bool) -> None:
    """Do the work and leave without touching anything of the parent's."""
    code = 1
    try:
        faulthandler.disable()
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        torch.set_num_threads(1)  # the parent's OpenMP threads do not exist here
        work(writer)
        code = 0
    finally:
        os._exit(code)


def _run_batches(model: nn.Module, batches: Sequence[Any], writer: int) -> None:
    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(_telling(name, writer))
    with torch.inference_mode():
        for inputs in batches:
            call(model, inputs)


def _telling(name: str, writer: int) -> Callable[..., None]:
    def enter(module: nn.Module, inputs: Any) -> None:
        os.write(writer, f"{name}\n".encode())
    return enter


def _listen(reader: int, *, deadline: float) -> tuple[bytes, bool]:
    """Return the tail of what the child says until it ends, and whether it does not end in time."""
    said = b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return said, True
        chunk = os.read(reader, 65536)
        if not chunk:
            return said, False
        said = (said + chunk)[-65536:]
