"""One timing at a time on a machine: timings hold a lock alone, heavy stages of other processes share it.

The lock is SQLite's, through filelock: the operating system frees it when its holder dies. Whoever wants the lock
first passes a gate, and whoever waits for it keeps the gate meanwhile: stages that begin later do not overtake a
timing. A long stage looks at the gate between its steps and lets a timing go first. A process that was suspended (by
Ctrl-Z, say) holds what it had: nobody waits for that for ever.
"""

from __future__ import annotations

import contextlib
import getpass
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, ReadWriteLock, Timeout

__all__ = ["MachineLock"]

_WAIT_S = 0.2


class MachineLock:
    """A read-write lock that every pytest-qat process of this user on this machine respects.

    Args:
        folder: Where the lock file lies; default: one folder per user in the machine's temporary directory.
        patience_s: Most seconds to wait for others, before going on beside them with a warning, and without a lock.
    """

    def __init__(self, folder: Path | None = None, *, patience_s: float = 1800.0) -> None:
        self._patience_s = patience_s
        folder = folder or Path(tempfile.gettempdir()) / f"pytest-qat-{_user()}"
        self._lock: ReadWriteLock | None
        self._gate = FileLock(folder / "gate.lock")
        self._held = contextlib.ExitStack()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._gate.acquire(timeout=patience_s):
                self._lock = ReadWriteLock(folder / "timing.lock.db")
        except Timeout:
            self._go_on_without()
        except (OSError, sqlite3.Error):
            self._lock = None  # nowhere to put a lock: measure without one rather than not at all

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the machine for a timing; waits for heavy stages to end."""
        if self._lock is None:
            yield
            return
        with contextlib.ExitStack() as held:
            self._enter(held, self._lock.write_lock)
            yield

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Do heavy work beside other heavy work; waits for a timing to end."""
        if self._lock is None:
            yield
            return
        try:
            self._enter(self._held, self._lock.read_lock)
            yield
        finally:
            self._held.close()

    def give_way(self) -> None:
        """Let a timing that waits go first; to be called between the steps of a stage that shares the machine."""
        if self._lock is None:
            return
        try:
            with self._gate.acquire(timeout=0):
                return  # nobody waits
        except Timeout:
            self._held.close()
            self._enter(self._held, self._lock.read_lock)

    def _enter(self, held: contextlib.ExitStack, lock: Callable[[float], AbstractContextManager[None]]) -> None:
        """Pass the gate and take the lock; if they are not let go, do without a lock from now on."""
        ends = time.monotonic() + self._patience_s
        try:
            with self._gate.acquire(timeout=self._patience_s):
                _take(held, lock, ends)
        except Timeout:
            self._go_on_without()

    def _go_on_without(self) -> None:
        self._lock = None
        warnings.warn(f"another pytest-qat process has held this machine for {self._patience_s:g} s; is it suspended? "
                      "Going on beside it, so timings are noisier.", RuntimeWarning, stacklevel=3)


def _take(held: contextlib.ExitStack, lock: Callable[[float], AbstractContextManager[None]], ends: float) -> None:
    """Take a lock in short waits, because SQLite's own cannot be interrupted by Ctrl-C.

    Raises:
        Timeout: it was not to be had until `ends`.
    """
    while (left := ends - time.monotonic()) > _WAIT_S:
        with contextlib.suppress(Timeout):
            held.enter_context(lock(_WAIT_S))
            return
    held.enter_context(lock(max(0.0, left)))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
