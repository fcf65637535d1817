"""Paired latency of two callables, side by side in one process.

Short blocks of both sides come in pairs, so that a slow moment of the machine hits both; a coin decides which side
goes first, so that no rhythm of the machine can favor one. Each block throws its first calls away, because they pay
for the switch of sides (caches, thread pools). The estimate is the median of the pairs' log ratios. Its interval holds
over all looks at once (`statistics.median_interval`), so stopping as soon as the answer is sure costs no error rate.
Clock and callables are seams: tests script the times.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics as plain
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pytest_qat.core.progress import tick
from pytest_qat.errors import InvalidOption, MeasurementError
from pytest_qat.measure.clock import Clock, system_clock, time_calls
from pytest_qat.measure.statistics import median_interval

__all__ = ["Latency", "Speedup", "TimingSettings", "compare_latency"]

_LEAST_SAMPLES = 3
_SHORTEST_SAMPLE_NS = 200_000  # keeps the clock's own cost, about 2 µs, to a percent
_MOST_CALLS = 2**20
_LEAST_NS = 1e-3
_DISCARDED, _DISCARDED_BLOCKS = 2, 34
_COIN_SEED = 0
_CLEAR = 2.0
"""Factor from the floor from which on a ratio is called after the fewest pairs."""
_MOST_OVER = 5.0
"""Largest multiple of the time budget that such pairs may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """How long and how surely to measure.

    Attributes:
        max_time_s: Budget for one comparison, in seconds. Each side is called at least once whatever it says.
        confidence: Confidence of the interval, over all looks at it.
        block_s: Aimed length of a block's timed part; at least three calls.
        discard_s: Aimed length of the calls thrown away at a block's head; at least two calls, or one where two
            take longer than 34 times `block_s`.
        margin: An interval whose near end is this factor away from the floor is clear: measuring stops.
        precision: Nearer to the floor it goes on until the interval is within this fraction of the estimate, so that
            two runs agree within twice as much.
        least_s: Once the answer is sure, go on for the sake of the estimate until so many seconds have gone into the
            comparison: what a tenth of a second shows, another one may not.
        max_pairs: Stop after so many pairs whatever they show; None: only time limits.

    Raises:
        InvalidOption: a time or count is not positive, `margin` under 1, or the confidence not inside (0, 1).
    """

    max_time_s: float = 20.0
    confidence: float = 0.95
    block_s: float = 0.003
    discard_s: float = 0.0015
    margin: float = 1.15
    precision: float = 0.015
    least_s: float = 0.0
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        for name, least, included in (("max_time_s", 0, False), ("block_s", 0, False), ("discard_s", 0, True),
                                      ("precision", 0, False), ("least_s", 0, True), ("margin", 1, True)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least or (value == least and not included):
                bound = f"{'at least' if included else 'over'} {least}"
                raise InvalidOption(f"{name} is {value}, expected a number of {bound}.", hint="Leave it out, say.")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise InvalidOption(f"max_pairs is {self.max_pairs}, expected at least 1.", hint="Leave it out, say.")
        if not 0 < self.confidence < 1:
            raise InvalidOption(f"confidence is {self.confidence}, expected a value inside (0, 1).", hint="Give 0.95.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The time of one call of one side, in seconds.

    Calls under 0.2 ms are timed several at once, which evens their percentiles out.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
    """

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How much faster a candidate is than a baseline.

    Attributes:
        estimate: Median of time(baseline) / time(candidate).
        ci: Its interval; (0, inf) if there were too few pairs for one.
        pairs: Number of paired blocks.
        confidence: Confidence of the interval.
        baseline: Latency of the baseline.
        candidate: Latency of the candidate.
        elapsed_s: Time the comparison took.
    """

    estimate: float
    ci: tuple[float, float]
    pairs: int
    confidence: float
    baseline: Latency
    candidate: Latency
    elapsed_s: float

    def settles(self, floor: float) -> bool:
        """Whether the interval lies on one side of a ratio."""
        low, high = self.ci
        return low >= floor or high < floor

    def seconds_to_settle(self, floor: float) -> float:
        """Return about how long a comparison must take to settle a ratio; infinity if no time is enough.

        Intervals narrow with the square root of time, and the noise is taken to stay as it was.
        """
        low, high = self.ci
        if low == 0 or math.isinf(high):
            fewest = _fewest_pairs(self.confidence)
            return self.elapsed_s * max(2.0, fewest / max(self.pairs, 0.2))
        distance = abs(math.log(self.estimate / floor)) if floor > 0 else math.inf
        reach = max(math.log(high / self.estimate), math.log(self.estimate / low))
        return math.inf if distance == 0 else self.elapsed_s * max(1.0, (reach / distance) ** 2)

    def __str__(self) -> str:
        low, high = self.ci
        return f"{self.estimate:.2f}x [{low:.2f}, {high:.2f}], {self.pairs} pairs"


def compare_latency(baseline_fn: Callable[[], object], candidate_fn: Callable[[], object], *,
                    settings: TimingSettings | None = None, floor: float | None = None,
                    clock: Clock | None = None) -> Speedup:
    """Measure `time(baseline_fn) / time(candidate_fn)`.

    Args:
        baseline_fn: One call of the slower side, without arguments.
        candidate_fn: One call of the faster side.
        settings: Budget and confidence.
        floor: A ratio to decide about: measuring stops once the answer is sure. None: stop once the interval is
            within `settings.precision` of the estimate.
        clock: Monotonic time and waits; default: this machine's.

    Returns:
        The estimate and its interval. Whether it settles the floor is for the caller to conclude.

    Raises:
        MeasurementError: a side is too fast for the clock.
    """
    settings = settings or TimingSettings()
    with contextlib.ExitStack() as stack:
        if clock is None:
            clock = stack.enter_context(system_clock())
        stack.enter_context(_no_garbage_collection())
        return _compare(baseline_fn, candidate_fn, settings, floor, clock)


def _compare(baseline_fn: Callable[[], object], candidate_fn: Callable[[], object], settings: TimingSettings,
             floor: float | None, clock: Clock) -> Speedup:
    started = clock.now_ns()
    deadline = started + settings.max_time_s * 1e9
    baseline = _calibrated(baseline_fn, "baseline", settings, clock, deadline=(started + deadline) / 2)
    candidate = _calibrated(candidate_fn, "candidate", settings, clock, deadline=deadline)
    ratios: list[float] = []
    interval: tuple[float, float] | None = None
    coin = random.Random(_COIN_SEED)  # noqa: S311 - shuffles blocks, guards nothing
    longest_ns = baseline.block_ns + candidate.block_ns
    while len(ratios) != settings.max_pairs and (began := clock.now_ns()) + longest_ns <= deadline:
        order = (baseline, candidate) if coin.random() < 0.5 else (candidate, baseline)
        times = {side: side.run(clock) for side in order}
        insort(ratios, times[baseline] / times[candidate])
        longest_ns = max(longest_ns, clock.now_ns() - began)
        interval = median_interval(ratios, alpha=1 - settings.confidence)
        if _enough(interval, floor, settings, elapsed_s=(clock.now_ns() - started) / 1e9):
            break
        tick()  # between blocks, which discard their first calls
    if interval is None and floor is not None:
        interval = _decide_clear_ratio(ratios, (baseline, candidate), floor, settings, clock)
    middle = (plain.median_low(ratios), plain.median_high(ratios)) if ratios else (
        baseline.first_ns / candidate.first_ns,) * 2
    return Speedup(
        estimate=math.sqrt(middle[0] * middle[1]), ci=interval or (0.0, math.inf), pairs=len(ratios),
        confidence=settings.confidence, baseline=baseline.latency(), candidate=candidate.latency(),
        elapsed_s=(clock.now_ns() - started) / 1e9)


def _decide_clear_ratio(ratios: list[float], sides: tuple[_Side, _Side], floor: float, settings: TimingSettings,
                        clock: Clock) -> tuple[float, float] | None:
    """Take the fewest pairs that an interval needs, over the time budget, where calls are slow and the ratio is clear.

    A ratio below half of the floor, or above twice it, needs no long blocks: each is one call. Where even that would
    take over five times the budget, or the ratio turns out to be less clear, there is no interval.
    """
    baseline, candidate = sides
    middle = plain.median(ratios) if ratios else baseline.first_ns / candidate.first_ns
    fewest = _fewest_pairs(settings.confidence)
    missing = fewest - len(ratios)
    took_ns = missing * (baseline.first_ns + candidate.first_ns)
    clear = middle < floor / _CLEAR or middle > floor * _CLEAR
    if not clear or took_ns > _MOST_OVER * settings.max_time_s * 1e9 or (settings.max_pairs or fewest) < fewest:
        return None
    for number in range(missing):
        order = sides if number % 2 else sides[::-1]
        times = {side: side.run_once(clock) for side in order}
        insort(ratios, times[baseline] / times[candidate])
        tick()
    return median_interval(ratios, alpha=1 - settings.confidence)


def _enough(interval: tuple[float, float] | None, floor: float | None, settings: TimingSettings, *,
            elapsed_s: float) -> bool:
    """Whether there is no need for more pairs."""
    if interval is None:
        return False
    low, high = interval
    precise = high <= low * (1 + settings.precision) ** 2
    if floor is None:
        return precise
    margin = 1.0 if precise else settings.margin
    return elapsed_s >= settings.least_s and (low >= floor * margin or high * margin < floor)


@dataclass(eq=False, slots=True, kw_only=True)
class _Side:
    """One side's calibrated block: `discard` calls thrown away, then `samples` timings of `inner` calls each.

    Attributes:
        first_ns: Time of a call while calibrating.
        times: Every timing so far, in nanoseconds a call.
    """

    call: Callable[[], object]
    first_ns: float
    discard: int
    samples: int
    inner: int
    times: list[float] = field(default_factory=list)

    @property
    def block_ns(self) -> float:
        """About how long a block takes."""
        return (self.discard + self.samples * self.inner) * self.first_ns

    def run(self, clock: Clock) -> float:
        """Run a block and return its median time of one call in nanoseconds."""
        for _ in range(self.discard):
            self.call()
        times = [time_calls(self.call, times=self.inner, clock=clock) / self.inner for _ in range(self.samples)]
        self.times.extend(times)
        return max(plain.median(times), _LEAST_NS)

    def run_once(self, clock: Clock) -> float:
        """Run a block of one timing and none thrown away, and return its time of one call in nanoseconds."""
        self.times.append(time_calls(self.call, times=self.inner, clock=clock) / self.inner)
        return max(self.times[-1], _LEAST_NS)

    def latency(self) -> Latency:
        """Return the percentiles of all timings."""
        times: Sequence[float] = self.times or [self.first_ns]
        p50, p90, p99 = (max(float(value), _LEAST_NS) / 1e9 for value in np.quantile(times, [0.5, 0.9, 0.99]))
        return Latency(p50=p50, p90=p90, p99=p99)


def _calibrated(call: Callable[[], object], name: str, settings: TimingSettings, clock: Clock, *,
                deadline: float) -> _Side:
    """Find how many calls make a block, from calls that also warm the side up; at least one is made.

    Raises:
        MeasurementError: the clock does not move during a million calls.
    """
    per_call_ns, calls, spent_ns = float(time_calls(call, times=1, clock=clock)), 1, 0.0  # the first one is cold
    while spent_ns < settings.block_s * 1e9 and clock.now_ns() + calls * per_call_ns <= deadline:
        if calls > _MOST_CALLS and spent_ns == 0:
            raise MeasurementError(
                f"{calls - 1:,} calls of the {name} took no time that the clock could tell, expected a model that "
                "computes something.", hint="Time several calls, or larger inputs, in one callable.")
        passed = time_calls(call, times=calls, clock=clock)
        per_call_ns, spent_ns, calls = passed / calls, spent_ns + passed, calls * 2
    per_call_ns = max(per_call_ns, 1.0)
    inner = math.ceil(_SHORTEST_SAMPLE_NS / per_call_ns)
    return _Side(call=call, first_ns=per_call_ns, inner=inner,
                 discard=max(math.ceil(settings.discard_s * 1e9 / per_call_ns),
                             _least_discarded(per_call_ns, block_ns=settings.block_s * 1e9)),
                 samples=max(_LEAST_SAMPLES, math.ceil(settings.block_s * 1e9 / (per_call_ns * inner))))


def _least_discarded(per_call_ns: float, *, block_ns: float) -> int:
    """Return how many calls a side needs after the other one until its own time is steady again.

    Measured on MobileNetV2 in ExecuTorch and LiteRT, calls of 1 to 9 ms: the first takes up to 27 % longer, the second
    14 %, and float suffers more than int8; the third 6 %, which the median of three leaves out. What caches lose
    weighs little in a call of 100 ms.
    """
    return max(1, min(_DISCARDED, int(_DISCARDED_BLOCKS * block_ns / per_call_ns)))


def _fewest_pairs(confidence: float) -> int:
    """Return the number of pairs that an interval takes at least."""
    pairs = 1
    while median_interval(range(pairs), alpha=1 - confidence) is None:
        pairs += 1
    return pairs


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
