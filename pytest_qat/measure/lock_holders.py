"""Who holds the machine's lock: a note for each holder beside the lock's files, for whoever has to wait.

A holder keeps a lock on its note, which the operating system frees when the holder dies, so a note that can be locked
is a dead process's, and is removed by whoever finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_qat.core.progress import current_work
from pytest_qat.core.text import duration

__all__ = ["Holder", "Notes", "told"]

_MOST_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds the lock.

    Attributes:
        pid: Its number.
        work: What it does: a model, its recipe and the stage; else its command.
        since_s: When it got the lock, in seconds since the epoch.
    """

    pid: int
    work: str
    since_s: float


class Notes:
    """The notes of all processes that share a lock.

    Args:
        folder: Folder of the lock files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: str | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a note that this process holds the lock; nothing depends on it, so failing to write it is no error."""
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        alive, note = self._folder / f"{name}.holder", self._folder / f"{name}.json"
        lock = FileLock(alive)
        with contextlib.suppress(OSError):
            lock.acquire(timeout=0)
            note.write_text(json.dumps(asdict(Holder(pid=os.getpid(), work=_work(), since_s=time.time()))),
                            encoding="utf-8")
        self._own = alive.name
        try:
            yield
        finally:
            self._own = None
            for path in (note, alive):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            lock.release()

    def others(self) -> list[Holder]:
        """Return who else holds the lock, the longest first."""
        found = []
        for alive in self._folder.glob("*.holder"):
            if alive.name == self._own:
                continue
            note = alive.with_suffix(".json")
            try:
                with FileLock(alive, timeout=0):  # a process that died without a word
                    note.unlink(missing_ok=True)
                    alive.unlink(missing_ok=True)
            except Timeout:
                with contextlib.suppress(OSError, ValueError, TypeError):  # it is being written, or gone by now
                    found.append(Holder(**json.loads(note.read_text(encoding="utf-8"))))
            except OSError:
                continue
        return sorted(found, key=lambda holder: holder.since_s)


def told(holders: list[Holder], *, now_s: float) -> str:
    """Return who holds the lock and for how long, as a clause; empty if nobody is known to.

    Args:
        holders: The longest first.
        now_s: Seconds since the epoch.
    """
    if not holders:
        return ""
    first = holders[0]
    more = f", and {len(holders) - 1} more" if len(holders) > 1 else ""
    return f"pid {first.pid} ({first.work}) has had it for {duration(now_s - first.since_s)}{more}"


def _work() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "python"
    work = current_work() or command
    return work if len(work) <= _MOST_CHARACTERS else f"{work[:_MOST_CHARACTERS - 3]}..."
