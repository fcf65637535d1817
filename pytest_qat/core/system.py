"""What this operating system offers beyond Python's common ground, and what is lost where it does not.

Linux has all of it, macOS and Windows have parts. Everything works without; `lost_here` says what is lost.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["Death", "available_memory_bytes", "can_fork", "can_lock", "death_by", "kill_group", "lost_here",
           "peak_memory_bytes"]

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")
_SCHEDULER_STATISTICS = Path("/proc/self/schedstat")
_FIRST_NTSTATUS = 0xC0000000
_NTSTATUS = {0xC0000005: "access violation", 0xC000001D: "illegal instruction", 0xC0000094: "integer division by zero",
             0xC00000FD: "stack overflow", 0xC0000374: "heap corruption", 0xC0000409: "stack buffer overrun"}
"""Exit codes of Windows processes that died in native code (winnt.h, ntstatus.h)."""


class Death(NamedTuple):
    """What ended a process from outside, or in its native code.

    Attributes:
        name: Such as `SIGSEGV`, or `0xC0000005` on Windows.
        meaning: The same in words.
    """

    name: str
    meaning: str


def death_by(status: int) -> Death | None:
    """Return what ended a process, from its exit status as `subprocess` gives it; None if it ended by itself."""
    if status < 0:
        known = -status in set(signal.Signals)
        return Death(signal.Signals(-status).name if known else f"signal {-status}",
                     signal.strsignal(-status) or "unknown signal")
    if status >= _FIRST_NTSTATUS:
        return Death(f"0x{status:08X}", _NTSTATUS.get(status, "see NTSTATUS values in Windows' documentation"))
    return None


def can_fork() -> bool:
    """Whether a process can be forked."""
    return hasattr(os, "fork")


def can_lock() -> bool:
    """Whether the system frees a file's lock when its holder dies, and Python has SQLite, whose lock is read-write."""
    return (_has_module("fcntl") or _has_module("msvcrt")) and _has_module("sqlite3")


def kill_group(group: int) -> None:
    """Kill all processes of a group (0: this process's own), where the system has groups; else do nothing."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def peak_memory_bytes() -> int | None:
    """Return this process's peak resident set size so far, or None where the system does not report it."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory_bytes() -> int | None:
    """Return how much memory this process may still take, of the machine's or its container's; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        [line] = [line for line in _MEMORY.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:")]
        found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit, used = (int((_CONTAINER / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
        found.append(limit - used)
    return min(found, default=None)


def lost_here() -> tuple[str, ...]:
    """Return what this system cannot do, one clause each; empty on a usual Linux."""
    lost = (
        ("a crash in native code ends the whole session (no os.fork)", can_fork()),
        ("processes that a converter starts may outlive --qat-stage-timeout (no os.killpg)", hasattr(os, "killpg")),
        ("timings include waits for a CPU (no /proc/self/schedstat)", _SCHEDULER_STATISTICS.exists()),
        ("peak memory cannot be measured (no /proc, no resource module)", peak_memory_bytes() is not None),
        ("several sessions may measure at the same time (no file locks or no sqlite3)", can_lock()),
    )
    return tuple(clause for clause, available in lost if not available)


def _has_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
