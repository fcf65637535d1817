"""Run code that may crash in a forked child process, so that the crash does not end the session.

The int8 kernels of some engines die with a signal on some machines, for example because the CPU lacks an instruction.
A model's first call is therefore made in a child, which reports the module that it is in, so that a crash can name it.
On systems that cannot fork (Windows), nothing is contained.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_qat.core.batches import call
from pytest_qat.core.progress import listen, tick
from pytest_qat.core.system import Death, can_fork, death_by, kill_group

__all__ = ["HANGS", "ChildDeath", "ChildEnd", "Children", "Crash", "crash_of", "death_of", "run_forked", "signal_of"]

HANGS = "does not return"
_FORKING = threading.Lock()
_TICK_S = 0.5
_IS_CHILD: ContextVar[bool] = ContextVar("is child", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """How a process died.

    Attributes:
        signal_name: Such as `SIGILL`.
        meaning: The signal in words.
        module: Name of the module that was running, or None if none had started.
    """

    signal_name: str
    meaning: str
    module: str | None


def crash_of(model: nn.Module, batches: Sequence[Any], *, timeout_s: float = 120.0) -> Crash | None:
    """Run a model on batches in a child process and return how the child died, or None if it did not.

    Python exceptions are not reported: they occur again when the model runs in this process. Neither is a child that
    hangs, because a fork of a process with threads may hang for reasons of its own; it is killed after `timeout_s`.
    Where processes cannot be forked, the model does not run and None is returned.
    """
    died = death_of(lambda writer: _run_batches(model, batches, writer), timeout_s=timeout_s)
    if died is None or died.hung:
        return None
    entered = died.written.decode("utf-8", errors="replace").split("\n")[:-1]
    return Crash(signal_name=died.by.name, meaning=died.by.meaning, module=entered[-1] if entered else None)


def signal_of(function: Callable[[], object], *, timeout_s: float = 10.0) -> str | None:
    """Call a function in a child process and return the signal that ended the child, `HANGS`, or None.

    Python exceptions are not reported. A fork of a process with threads may hang for reasons of its own. Where
    processes cannot be forked, the function is not called and None is returned.
    """
    died = death_of(lambda writer: function(), timeout_s=timeout_s)
    if died is None:
        return None
    return HANGS if died.hung else died.by.name


class ChildDeath(NamedTuple):
    """How a child died.

    Attributes:
        by: The signal that ended it.
        written: The last 64 KiB, at most, of what it wrote.
        hung: Whether this process killed it, because it ran for too long.
    """

    by: Death
    written: bytes
    hung: bool


class Children:
    """The children that threads have forked, for the one thread that is interrupted to kill them all."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._killed = False

    def add(self, child: int) -> None:
        """Note that a child runs; after `kill` it is killed at once."""
        with self._lock:
            self._running.add(child)
            if self._killed:
                _kill(child)

    def discard(self, child: int) -> None:
        """Note that a child is about to be waited for, after which its number may be another's."""
        with self._lock:
            self._running.discard(child)

    def kill(self) -> None:
        """Kill all children, also those to come."""
        with self._lock:
            self._killed = True
            for child in self._running:
                _kill(child)


class ChildEnd(NamedTuple):
    """How a child ended.

    Attributes:
        written: The last 64 KiB, at most, of what it wrote.
        hung: Whether this process killed it, because it ran for too long.
        by: The signal that ended it; None if it ended by itself.
    """

    written: bytes
    hung: bool
    by: Death | None


def death_of(work: Callable[[int], object], *, timeout_s: float, quiet: bool = True) -> ChildDeath | None:
    """Do work in a forked child and return how the child died.

    Args:
        work: Takes a file descriptor that it may write to.
        timeout_s: Most seconds.
        quiet: Whether what the work prints is dropped.

    Returns:
        How the child died. None if it did not, which includes an exception; and None if processes cannot be forked
        here, in which case the work was not done.
    """
    if not can_fork():
        return None
    ended = run_forked(work, timeout_s=timeout_s, quiet=quiet)
    return None if ended.by is None else ChildDeath(ended.by, ended.written, ended.hung)


def run_forked(work: Callable[[int], object], *, timeout_s: float, quiet: bool = True,
               children: Children | None = None) -> ChildEnd:
    """Do work in a forked child, which needs `can_fork`. Several threads may call this at the same time.

    The child leads a process group of its own, in which its own children stay, and the group ends with it: neither
    outlives the time limit or an interrupt of this process.

    Args:
        work: Takes a file descriptor that it may write to.
        timeout_s: Most seconds; the child is killed after them.
        quiet: Whether what the work prints is dropped.
        children: Where to note the child while it runs.
    """
    children = children or Children()
    with _FORKING:  # a child forked meanwhile would keep the writing end open, and this one would never seem to end
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which the child does not use
            child = os.fork()
        if child == 0:
            _FORKING.release()  # the child's copy of the lock; its work may fork, too
            _work_as_child(work, writer, quiet=quiet)
        os.close(writer)
    try:
        children.add(child)
        written, hung = _read_until_end(reader, deadline=time.monotonic() + timeout_s)
        if hung:
            _kill(child)
    except BaseException:
        _kill(child)
        raise
    finally:
        children.discard(child)
        os.close(reader)
        _, status = os.waitpid(child, 0)
    return ChildEnd(written, hung, death_by(os.waitstatus_to_exitcode(status)))


def _kill(child: int) -> None:
    """Kill a child that has not been waited for, and the group that it leads, if it does."""
    if not _IS_CHILD.get():
        kill_group(child)
    os.kill(child, signal.SIGKILL)


def _work_as_child(work: Callable[[int], object], writer: int, *, quiet: bool) -> None:
    """Do the work, then exit without running the parent's exit handlers."""
    code = 1
    try:
        faulthandler.disable()
        listen(None)
        if not _IS_CHILD.get():  # a child's child stays in its group
            os.setpgid(0, 0)
            _IS_CHILD.set(True)
        if quiet:
            _drop_output()
        torch.set_num_threads(1)  # the parent's OpenMP threads do not exist here
        work(writer)
        code = 0
    finally:
        os._exit(code)


def _drop_output() -> None:
    """Send all that this process prints nowhere, also what Python prints to where pytest gathers it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.stdout = sys.stderr = open(nowhere, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - until the exit
    for logger in (logging.getLogger(name) for name in [None, *logging.root.manager.loggerDict]):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.stream = sys.stderr


def _run_batches(model: nn.Module, batches: Sequence[Any], writer: int) -> None:
    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(_reporting(name, writer))
    with torch.inference_mode():
        for inputs in batches:
            call(model, inputs)


def _reporting(name: str, writer: int) -> Callable[..., None]:
    def enter(module: nn.Module, inputs: Any) -> None:
        os.write(writer, f"{name}\n".encode())
    return enter


def _read_until_end(reader: int, *, deadline: float) -> tuple[bytes, bool]:
    """Return the last part of what the child writes, and whether it still runs at the deadline."""
    written = b""
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([reader], [], [], max(0.0, min(left, _TICK_S)))
        if not ready:
            tick()
            if left <= _TICK_S:
                return written, True
            continue
        chunk = os.read(reader, 65536)
        if not chunk:
            return written, False
        written = (written + chunk)[-65536:]
