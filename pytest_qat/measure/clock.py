"""The clock for timings: monotonic time, and how long this thread has waited for a CPU.

On Linux, the scheduler counts for each thread the nanoseconds in which it was ready to run while other processes had
the CPU (the second field of `/proc/thread-self/schedstat`). These waits are not part of a model's latency, so timings
subtract them. Where the count is not available, waits are zero and timings are plain wall time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

__all__ = ["Clock", "system_clock", "time_calls"]


class Clock(Protocol):
    """The interface that timings use; tests replace it with scripted times."""

    def now_ns(self) -> int:
        """Return monotonic time in nanoseconds."""

    def waited_ns(self) -> int:
        """Return how long this thread has waited for a CPU so far, in nanoseconds."""


def time_calls(call: Callable[[], object], *, times: int, clock: Clock) -> int:
    """Make `times` calls in a row and return how many nanoseconds they took, without the waits for a CPU."""
    start, waited_before = _reading(clock)
    for _ in range(times):
        call()
    end, waited_after = _reading(clock)
    return max(0, (end - start) - (waited_after - waited_before))


def _reading(clock: Clock) -> tuple[int, int]:
    """Read the time and the waits at the same moment; read again if the thread had to wait in between."""
    waited = clock.waited_ns()
    while True:
        now, again = clock.now_ns(), clock.waited_ns()
        if again == waited:
            return now, waited
        waited = again


class _PlainClock:
    """Wall time without waits."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def waited_ns(self) -> int:
        return 0


class _SchedulerClock(_PlainClock):
    """Wall time, and the waits of this thread as the scheduler counts them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def waited_ns(self) -> int:
        return int(os.pread(self._descriptor, 80, 0).split()[1])


@contextlib.contextmanager
def system_clock(schedstat: str | None = None) -> Iterator[Clock]:
    """Yield the best clock that this machine has. Use it in the calling thread only.

    Args:
        schedstat: Path of the scheduler's statistics; default: those of this thread.
    """
    path = schedstat or f"/proc/self/task/{threading.get_native_id()}/schedstat"
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
    if descriptor is None:
        yield _PlainClock()
        return
    try:
        clock = _SchedulerClock(descriptor)
        yield clock if _counts(clock) else _PlainClock()
    finally:
        os.close(descriptor)


def _counts(clock: Clock) -> bool:
    try:
        return clock.waited_ns() >= 0
    except (OSError, ValueError, IndexError):
        return False
