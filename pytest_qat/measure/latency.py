"""Paired latency of two callables, side by side in one process.

Short blocks of both sides are timed in pairs, so that a slow moment of the machine affects both. The order within each
pair is random, so that no periodic disturbance can favor one side. Each block discards its first calls, because they
pay for switching sides (caches, thread pools). The estimate is the median of the pairs' log ratios. Its interval is
valid at every look (`statistics.median_interval`), so stopping as soon as the answer is clear does not raise the error
rate. The clock is a parameter, so that tests can script the times.
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
_SHORTEST_SAMPLE_NS = 200_000  # keeps the cost of reading the clock, about 2 µs, at one percent
_MOST_CALLS = 2**20
_LEAST_NS = 1e-3
_DISCARDED, _DISCARDED_BLOCKS = 2, 34
_COIN_SEED = 0
_CLEAR = 2.0
"""A ratio that is at least this factor away from the floor is decided after the fewest possible pairs."""
_MOST_OVER = 5.0
"""These pairs may take at most this multiple of the time budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """How long to measure, and with what confidence.

    Attributes:
        max_time_s: Budget for one comparison, in seconds. Each side is called at least once, whatever the budget.
        confidence: Confidence of the interval, over all looks at it.
        block_s: Target length of the timed part of a block, in seconds; a block has at least three timings.
        discard_s: Target length of the calls that a block discards first, in seconds; at least two calls, or one if
            two would take longer than 34 times `block_s`.
        margin: Measuring stops when the whole interval is at least this factor away from the floor.
        precision: If the interval is closer to the floor than `margin`, measuring continues until the interval is
            within this fraction of the estimate, so that two runs agree within twice that.
        least_s: Measure for at least this many seconds even if the answer is already clear, because an estimate from
            a tenth of a second is not repeatable.
        max_pairs: Stop after this many pairs, whatever they show; None: only the time is limited.

    Raises:
        InvalidOption: a time or count is not positive, `margin` is below 1, or the confidence is not between 0 and 1.
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
                bound = f"of at least {least}" if included else f"greater than {least}"
                raise InvalidOption(f"{name} is {value}, expected a number {bound}.", hint=f"Remove {name}.")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise InvalidOption(f"max_pairs is {self.max_pairs}, expected at least 1.", hint="Remove max_pairs.")
        if not 0 < self.confidence < 1:
            raise InvalidOption(f"confidence is {self.confidence}, expected a value between 0 and 1.", hint="Use 0.95.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The time of one call of one side, in seconds.

    Calls that take less than 0.2 ms are timed several at a time, which moves their percentiles closer together.

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
        ci: Interval of the estimate; (0, inf) if there were too few pairs for one.
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
        """Whether the whole interval is on one side of `floor`."""
        low, high = self.ci
        return low >= floor or high < floor

    def seconds_to_settle(self, floor: float) -> float:
        """Return roughly how many seconds a comparison needs to settle a ratio; infinity if no time is enough.

        This assumes that the interval narrows with the square root of time and that the noise stays the same.
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
        floor: A ratio to decide about; measuring stops once it is clear on which side the speedup is. None: measuring
            stops once the interval is within `settings.precision` of the estimate.
        clock: The clock to read; default: the best one of this machine.

    Returns:
        The estimate and its interval. The caller decides whether that settles the floor.

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
    coin = random.Random(_COIN_SEED)  # noqa: S311 - only orders blocks
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
    """Measure the fewest pairs that an interval needs, over the time budget, if the ratio is clear but calls are slow.

    A ratio below half the floor or above twice the floor needs no long blocks, so each block is one call. There is no
    interval (None) if even these calls would take over five times the budget, or if the ratio is less clear than that.
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
    """Whether no more pairs are needed."""
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
    """One side and its calibrated block: `discard` discarded calls, then `samples` timings of `inner` calls each.

    Attributes:
        first_ns: Time of a call during calibration.
        times: All timings so far, in nanoseconds per call.
    """

    call: Callable[[], object]
    first_ns: float
    discard: int
    samples: int
    inner: int
    times: list[float] = field(default_factory=list)

    @property
    def block_ns(self) -> float:
        """Expected duration of a block in nanoseconds."""
        return (self.discard + self.samples * self.inner) * self.first_ns

    def run(self, clock: Clock) -> float:
        """Run a block and return the median time of a call in nanoseconds."""
        for _ in range(self.discard):
            self.call()
        times = [time_calls(self.call, times=self.inner, clock=clock) / self.inner for _ in range(self.samples)]
        self.times.extend(times)
        return max(plain.median(times), _LEAST_NS)

    def run_once(self, clock: Clock) -> float:
        """Run a block of a single timing, discarding nothing, and return the time of a call in nanoseconds."""
        self.times.append(time_calls(self.call, times=self.inner, clock=clock) / self.inner)
        return max(self.times[-1], _LEAST_NS)

    def latency(self) -> Latency:
        """Return the percentiles of all timings."""
        times: Sequence[float] = self.times or [self.first_ns]
        p50, p90, p99 = (max(float(value), _LEAST_NS) / 1e9 for value in np.quantile(times, [0.5, 0.9, 0.99]))
        return Latency(p50=p50, p90=p90, p99=p99)


def _calibrated(call: Callable[[], object], name: str, settings: TimingSettings, clock: Clock, *,
                deadline: float) -> _Side:
    """Find out how many calls make a block, by making calls that also warm the side up; at least one call is made.

    Raises:
        MeasurementError: the clock does not advance during a million calls.
    """
    per_call_ns, calls, spent_ns = float(time_calls(call, times=1, clock=clock)), 1, 0.0  # this first call is cold
    while spent_ns < settings.block_s * 1e9 and clock.now_ns() + calls * per_call_ns <= deadline:
        if calls > _MOST_CALLS and spent_ns == 0:
            raise MeasurementError(
                f"{calls - 1:,} calls of the {name} took less time than the clock can measure, expected a callable "
                "that computes something.", hint="Time several calls, or larger inputs, in one callable.")
        passed = time_calls(call, times=calls, clock=clock)
        per_call_ns, spent_ns, calls = passed / calls, spent_ns + passed, calls * 2
    per_call_ns = max(per_call_ns, 1.0)
    inner = math.ceil(_SHORTEST_SAMPLE_NS / per_call_ns)
    return _Side(call=call, first_ns=per_call_ns, inner=inner,
                 discard=max(math.ceil(settings.discard_s * 1e9 / per_call_ns),
                             _least_discarded(per_call_ns, block_ns=settings.block_s * 1e9)),
                 samples=max(_LEAST_SAMPLES, math.ceil(settings.block_s * 1e9 / (per_call_ns * inner))))


def _least_discarded(per_call_ns: float, *, block_ns: float) -> int:
    """Return how many calls a side needs, after calls of the other side, until its time is steady again.

    Measured on MobileNetV2 in ExecuTorch and LiteRT with calls of 1 to 9 ms: the first call takes up to 27 % longer and
    the second up to 14 %, and float suffers more than int8. The third takes up to 6 % longer, which the median of three
    removes. In a call of 100 ms, cold caches matter little.
    """
    return max(1, min(_DISCARDED, int(_DISCARDED_BLOCKS * block_ns / per_call_ns)))


def _fewest_pairs(confidence: float) -> int:
    """Return the smallest number of pairs that gives an interval."""
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
