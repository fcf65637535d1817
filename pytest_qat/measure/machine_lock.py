"""One timing at a time on a machine: a timing holds a lock exclusively, and heavy stages of other processes share it.

The lock is a read-write lock on an SQLite file (filelock's), which the operating system releases when its holder
dies. A process must hold the gate, a second lock, while it waits for the first: so stages that start later do not
overtake a timing that waits. Between its steps, a long stage checks the gate and lets a waiting timing go first. A
suspended process (Ctrl-Z) keeps its locks, so every wait has a time limit.
"""

from __future__ import annotations

import contextlib
import getpass
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # filelock warns where the system has no file locks; none are used there
    from filelock import FileLock, Timeout

from pytest_qat.core import progress
from pytest_qat.core.system import can_lock
from pytest_qat.measure.lock_holders import Notes, told

if TYPE_CHECKING:
    from filelock import ReadWriteLock

__all__ = ["MachineLock"]

_WAIT_S = 0.2


class MachineLock:
    """A read-write lock that all pytest-qat processes of this user on this machine share.

    Args:
        folder: Folder of the lock files; default: one per user in the machine's temporary directory.
        patience_s: Most seconds to wait for other processes; after that, a warning is issued and this process
            continues without a lock.
    """

    def __init__(self, folder: Path | None = None, *, patience_s: float = 1800.0) -> None:
        self._patience_s = patience_s
        folder = folder or Path(tempfile.gettempdir()) / f"pytest-qat-{_user()}"
        self._lock: ReadWriteLock | None = None
        self._gate = FileLock(folder / "gate.lock")
        self._notes = Notes(folder)
        self._held = contextlib.ExitStack()
        if not can_lock():
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.ExitStack() as gate:
                self._wait(gate, self._at_gate, ends=time.monotonic() + patience_s)
                self._lock = _lock_at(folder / "timing.lock.db")
        except Timeout:
            self._continue_without()
        except OSError:
            pass  # measuring without a lock is better than not measuring at all

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the machine for a timing; waits until heavy stages of other processes have ended."""
        if self._lock is None:
            yield
            return
        with contextlib.ExitStack() as held:
            self._enter(held, self._lock.write_lock)
            yield

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Do heavy work, possibly while other processes do; waits until a timing has ended."""
        if self._lock is None:
            yield
            return
        try:
            self._enter(self._held, self._lock.read_lock)
            yield
        finally:
            self._held.close()

    def give_way(self) -> None:
        """Let a waiting timing go first; call this between the steps of a stage that shares the machine."""
        if self._lock is None:
            return
        try:
            with self._gate.acquire(timeout=0):
                return  # nobody is waiting
        except Timeout:
            self._held.close()
            self._enter(self._held, self._lock.read_lock)

    def _enter(self, held: contextlib.ExitStack, lock: Callable[[float], AbstractContextManager[object]]) -> None:
        """Acquire the gate, then the lock; if that takes too long, continue without a lock from now on."""
        ends = time.monotonic() + self._patience_s
        try:
            with contextlib.ExitStack() as gate:
                self._wait(gate, self._at_gate, ends=ends)
                self._wait(held, lock, ends=ends)
        except Timeout:
            self._continue_without()
        else:
            held.enter_context(self._notes.held())

    def _at_gate(self, timeout_s: float) -> AbstractContextManager[object]:
        return self._gate.acquire(timeout=timeout_s)

    def _wait(self, held: contextlib.ExitStack, lock: Callable[[float], AbstractContextManager[object]], *,
              ends: float) -> None:
        """Acquire a lock in short attempts: Ctrl-C cannot interrupt SQLite's own wait, and who has it may change.

        Raises:
            Timeout: others held it until `ends`.
        """
        if _acquired(held, lock, min(_WAIT_S, max(0.0, ends - time.monotonic()))):
            return
        with progress.step("waiting for the machine", still=True) as shown:
            while True:
                shown.advance(0, detail=told(self._notes.others(), now_s=time.time()))
                left = ends - time.monotonic()
                if left <= _WAIT_S:
                    held.enter_context(lock(max(0.0, left)))
                    return
                if _acquired(held, lock, _WAIT_S):
                    return

    def _continue_without(self) -> None:
        self._lock = None
        holders = self._notes.others()
        which = f" ({told(holders, now_s=time.time())})" if holders else ""
        warnings.warn(f"another pytest-qat process has held the timing lock for {self._patience_s:g} s and may be "
                      f"suspended{which}. This process continues without the lock, so its timings may be noisier. To "
                      "avoid this, resume or end the other process.", RuntimeWarning, stacklevel=3)


def _lock_at(path: Path) -> ReadWriteLock | None:
    """Return the lock on a file, or None where SQLite cannot use the file."""
    import sqlite3  # Python can be built without it, see can_lock

    from filelock import ReadWriteLock

    try:
        return ReadWriteLock(path)
    except sqlite3.Error:
        return None


def _acquired(held: contextlib.ExitStack, lock: Callable[[float], AbstractContextManager[object]],
              timeout_s: float) -> bool:
    try:
        held.enter_context(lock(timeout_s))
    except Timeout:
        return False
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # Windows without a user in the environment has no pwd module
        return "unknown"
