"""A clock that only the measured callables move, and costs for them, as the tests of paired latency take them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

from pytest_qat.measure.latency import Latency, Speedup, TimingSettings, compare_latency

MS = 1_000_000
Cost = Callable[["Script"], int]


class Script:
    """A clock in nanoseconds that only the scripted callables move, and the log of their calls."""

    def __init__(self) -> None:
        self.now = 0
        self.waited = 0
        self.readings = 0
        self.limit = math.inf
        self.log: list[str] = []

    def now_ns(self) -> int:
        self.readings += 1
        return self.now

    def waited_ns(self) -> int:
        return self.waited

    def wait(self, spent: int) -> None:
        """Pass time in which a neighbor has the CPU."""
        self.now += spent
        self.waited += spent

    def side(self, name: str, cost: int | Cost) -> Callable[[], None]:
        def call() -> None:
            spent = cost if isinstance(cost, int) else cost(self)  # may wait, which moves the clock, too
            self.now += spent
            assert self.now < self.limit, "this measurement does not end"
            self.log.append(name)
        return call

    def blocks(self) -> list[tuple[str, int]]:
        """Runs of calls of one side: its name and their number."""
        return [(name, len(list(calls))) for name, calls in itertools.groupby(self.log)]

    def compare(self, baseline: int | Cost, candidate: int | Cost, *, floor: float | None = None,
                **changes: Any) -> Speedup:
        chosen = TimingSettings(**changes)
        self.limit = self.now + (chosen.max_time_s + 100) * 2e9
        return compare_latency(self.side("A", baseline), self.side("B", candidate), floor=floor, clock=self,
                               settings=chosen)


def in_turn(*costs: int) -> Cost:
    endless = itertools.cycle(costs)
    return lambda script: next(endless)


def uniform(low_ms: float, high_ms: float, *, seed: int = 1) -> Cost:
    noise = random.Random(seed)
    return lambda script: int(noise.uniform(low_ms, high_ms) * MS)


def constant(seconds: float) -> Latency:
    return Latency(p50=seconds, p90=seconds, p99=seconds)
