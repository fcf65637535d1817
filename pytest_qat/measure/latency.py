"""Paired latency of two callables, side by side in one process.

Blocks of both sides alternate in ABBA order; each block throws its first calls away, because single-call alternation
makes thread pools and caches fight. The estimate is the median of the pairs' log ratios with a distribution-free
interval; looks at the data share one error rate (`statistics.look_alpha`), so stopping early is sound.
Clock and callables are seams: tests script the times.
"""

from __future__ import annotations

import gc
import math
import statistics as plain
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_qat.errors import InvalidOption
from pytest_qat.measure.statistics import look_alpha, median_interval

__all__ = ["Speedup", "TimingSettings", "compare_latency"]

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """How long and how surely to measure.

    Attributes:
        max_time_s: Budget for one comparison, in seconds.
        min_time_s: Time to spend even if the verdict is sure earlier, for the sake of the estimate.
        confidence: Confidence of the interval over all looks.
        block_s: Aimed length of a block's timed part.
        discard_s: Aimed length of the calls thrown away at a block's head.
        first_look: Pairs before the first look.
        max_pairs: Stop after so many pairs whatever they show; None: only time limits.

    Raises:
        InvalidOption: a time is not positive, or the confidence not inside (0, 1).
    """

    max_time_s: float = 20.0
    min_time_s: float = 0.5
    confidence: float = 0.95
    block_s: float = 0.02
    discard_s: float = 0.008
    first_look: int = 8
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_time_s", 0.0), ("block_s", 0.0), ("min_time_s", None), ("discard_s", None)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or value == least:
                bound = "over 0" if least is not None else "of at least 0"
                raise InvalidOption(f"{name} is {value}, expected seconds {bound}.", hint="Leave it out, say.")
        for name in ("first_look", "max_pairs"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InvalidOption(f"{name} is {count}, expected at least 1 pair.", hint="Leave it out, say.")
        if not 0 < self.confidence < 1:
            raise InvalidOption(f"confidence is {self.confidence}, expected a value inside (0, 1).", hint="Give 0.95.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How much faster a candidate is than a baseline.

    Attributes:
        estimate: Median of time(baseline) / time(candidate).
        ci: Its interval; (0, inf) if there were too few pairs for one.
        pairs: Number of paired blocks.
        confidence: Confidence of the interval.
        baseline_s: Median time of one baseline call, in seconds.
        candidate_s: Median time of one candidate call, in seconds.
        elapsed_s: Time the comparison took.
    """

    estimate: float
    ci: tuple[float, float]
    pairs: int
    confidence: float
    baseline_s: float
    candidate_s: float
    elapsed_s: float

    def settles(self, floor: float) -> bool:
        """Whether the interval lies on one side of a ratio."""
        low, high = self.ci
        return low >= floor or high < floor

    def __str__(self) -> str:
        low, high = self.ci
        return f"{self.estimate:.2f}x [{low:.2f}, {high:.2f}], {self.pairs} pairs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """One side's calibrated block: `discard` calls thrown away, then `samples` timings of `inner` calls each."""

    call: Callable[[], object]
    discard: int
    samples: int
    inner: int

    def run(self, clock: Clock) -> float:
        """Return the median time of one call in nanoseconds."""
        for _ in range(self.discard):
            self.call()
        times = []
        for _ in range(self.samples):
            start = clock()
            for _ in range(self.inner):
                self.call()
            times.append(clock() - start)
        return max(plain.median(times) / self.inner, 1e-3)


def compare_latency(baseline_fn: Callable[[], object], candidate_fn: Callable[[], object], *,
                    settings: TimingSettings | None = None, floor: float | None = None,
                    clock: Clock = time.perf_counter_ns) -> Speedup:
    """Measure `time(baseline_fn) / time(candidate_fn)`.

    Args:
        baseline_fn: One call of the slower side, without arguments.
        candidate_fn: One call of the faster side.
        settings: Budget and confidence.
        floor: A ratio to decide about: measuring stops once the interval lies on one side of it. None: stop once
            the interval is within 5 % of the estimate.
        clock: Monotonic nanoseconds.

    Returns:
        The estimate and its interval. Whether it settles the floor is for the caller to conclude.
    """
    settings = settings or TimingSettings()
    started = clock()
    with _no_garbage_collection():
        baseline = _calibrate(baseline_fn, settings, clock)
        candidate = _calibrate(candidate_fn, settings, clock)
        times: list[tuple[float, float]] = []
        interval: tuple[float, float] | None = None
        look, next_look = 0, settings.first_look
        while True:
            times.append(_pair(baseline, candidate, clock, baseline_first=len(times) % 2 == 0))
            elapsed = (clock() - started) / 1e9
            enough = elapsed + elapsed / len(times) > settings.max_time_s or len(times) == settings.max_pairs
            if len(times) < next_look and not enough:
                continue
            look, next_look = look + 1, math.ceil(len(times) * 1.5)
            logs = [math.log(slow / fast) for slow, fast in times]
            interval = median_interval(logs, alpha=look_alpha(look, alpha=1 - settings.confidence)) or interval
            if enough or (elapsed >= settings.min_time_s and _settled(interval, floor)):
                break
    return _summary(times, interval, settings, elapsed)


def _summary(times: list[tuple[float, float]], interval: tuple[float, float] | None, settings: TimingSettings,
             elapsed: float) -> Speedup:
    low, high = interval or (-math.inf, math.inf)
    return Speedup(
        estimate=math.exp(plain.median(math.log(slow / fast) for slow, fast in times)),
        ci=(math.exp(low), math.exp(high)),
        pairs=len(times),
        confidence=settings.confidence,
        baseline_s=plain.median(slow for slow, _ in times) / 1e9,
        candidate_s=plain.median(fast for _, fast in times) / 1e9,
        elapsed_s=elapsed,
    )


def _pair(baseline: _Block, candidate: _Block, clock: Clock, *, baseline_first: bool) -> tuple[float, float]:
    if baseline_first:
        slow = baseline.run(clock)
        return slow, candidate.run(clock)
    fast = candidate.run(clock)
    return baseline.run(clock), fast


def _settled(interval: tuple[float, float] | None, floor: float | None) -> bool:
    if interval is None:
        return False
    low, high = interval
    if floor is None or floor <= 0:
        return high - low <= 2 * math.log(1.05)
    return low >= math.log(floor) or high < math.log(floor)


def _calibrate(call: Callable[[], object], settings: TimingSettings, clock: Clock) -> _Block:
    """Find how many calls make a block, from calls that also warm the side up."""
    per_call_ns, spent_ns, calls = 0.0, 0, 1
    while spent_ns < settings.block_s * 1e9 and calls <= 2**20:
        start = clock()
        for _ in range(calls):
            call()
        passed = clock() - start
        per_call_ns, spent_ns, calls = passed / calls, spent_ns + passed, calls * 2
    per_call_ns = max(per_call_ns, 1.0)
    inner = max(1, math.ceil(50_000 / per_call_ns))  # keep the clock's own cost under a percent
    samples = max(1, min(1000, math.ceil(settings.block_s * 1e9 / (per_call_ns * inner))))
    discard = math.ceil(settings.discard_s * 1e9 / per_call_ns)
    return _Block(call=call, discard=min(discard, 5 * inner), samples=samples, inner=inner)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
