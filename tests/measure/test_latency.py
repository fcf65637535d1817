"""Paired latency, with a scripted clock: nothing here looks at real time."""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.errors import InvalidOption
from pytest_qat.measure.latency import Speedup, TimingSettings, compare_latency

MS = 1_000_000
Cost = Callable[["Script"], int]


class Script:
    """A clock in nanoseconds that only the scripted callables move, and the log of their calls."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def side(self, name: str, cost: int | Cost) -> Callable[[], None]:
        def call() -> None:
            self.now += cost if isinstance(cost, int) else cost(self)
            self.log.append(name)
        return call

    def blocks(self) -> list[tuple[str, int]]:
        """Runs of calls of one side: its name and their number."""
        return [(name, len(list(calls))) for name, calls in itertools.groupby(self.log)]

    def compare(self, baseline: int | Cost, candidate: int | Cost, *, floor: float | None = None,
                **changes: Any) -> Speedup:
        return compare_latency(self.side("A", baseline), self.side("B", candidate), floor=floor, clock=self.clock,
                               settings=TimingSettings(**changes))


def in_turn(*costs: int) -> Cost:
    endless = itertools.cycle(costs)
    return lambda script: next(endless)


@pytest.mark.parametrize(("slow", "fast"), [
    (3 * MS, MS), (MS, 3 * MS), (MS, MS), (3_000, 1_000), (90 * MS, 30 * MS), (70, 30), (3 * MS, 200),
])
def test_constant_times_give_their_exact_ratio(slow: int, fast: int) -> None:
    found = Script().compare(slow, fast, max_pairs=8, block_s=0.001, discard_s=0.0004)
    assert found.estimate == pytest.approx(slow / fast, rel=1e-9)
    assert found.ci == pytest.approx((slow / fast, slow / fast), rel=1e-9)
    assert (found.baseline_s, found.candidate_s) == pytest.approx((slow / 1e9, fast / 1e9), rel=1e-9)


def test_an_outlier_in_every_block_changes_nothing() -> None:
    costs = itertools.chain([3 * MS] * 12, itertools.cycle([3 * MS] * 4 + [500 * MS] + [3 * MS] * 5))
    found = Script().compare(lambda script: next(costs), MS, max_pairs=9)
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.baseline_s == pytest.approx(0.003, rel=1e-9)


def test_blocks_alternate_in_abba_order() -> None:
    script = Script()
    script.compare(MS, MS, max_pairs=4)
    calibration, blocks = script.blocks()[:2], script.blocks()[2:]
    length = blocks[0][1]
    assert [name for name, _ in calibration] == ["A", "B"]
    assert blocks == [("A", length), ("B", 2 * length), ("A", 2 * length), ("B", 2 * length), ("A", length)]


def test_the_first_calls_of_a_block_are_thrown_away() -> None:
    def cold_after_the_other(script: Script) -> int:
        return 15 * MS if script.log[-1:] == ["B"] else 150 * MS

    found = Script().compare(45 * MS, cold_after_the_other, max_pairs=9)
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.candidate_s == pytest.approx(0.015, rel=1e-9)


def test_short_calls_are_timed_many_at_once() -> None:
    script = Script()
    readings = 0

    def counted() -> int:
        nonlocal readings
        readings += 1
        return script.now

    compare_latency(script.side("A", 100), script.side("B", 100), clock=counted,
                    settings=TimingSettings(max_pairs=8, block_s=0.002))
    assert len(script.log) > 100 * readings


@pytest.mark.parametrize("cost_ms", [0.1, 1, 30, 300, 3_000])
@pytest.mark.parametrize("max_time_s", [0.5, 2.0, 10.0])
def test_the_budget_is_kept_or_a_single_pair_is_measured(cost_ms: float, max_time_s: float) -> None:
    script = Script()
    cost = int(cost_ms * MS)
    noisy = in_turn(cost, cost, cost * 2, cost * 3)
    found = script.compare(noisy, noisy, floor=1.0, max_time_s=max_time_s)
    assert found.pairs >= 1
    assert found.elapsed_s == pytest.approx(script.now / 1e9)
    assert found.elapsed_s <= max_time_s or found.pairs == 1


def test_a_call_slower_than_the_whole_budget_is_made_only_a_few_times() -> None:
    script = Script()
    found = script.compare(30_000 * MS, 10_000 * MS, max_time_s=1.0)
    assert found.pairs == 1
    assert len(script.log) <= 6
    assert found.estimate == pytest.approx(3)
    assert found.ci == (0.0, math.inf), "one pair gives no interval"


@pytest.mark.parametrize(("floor", "passes"), [(1.0, True), (2.9, True), (3.1, False), (10.0, False)])
def test_a_clear_answer_stops_early(floor: float, passes: bool) -> None:
    found = Script().compare(3 * MS, MS, floor=floor, max_time_s=1000)
    assert found.settles(floor)
    assert (found.ci[0] >= floor) is passes
    assert found.elapsed_s < 1


def test_an_unclear_answer_uses_the_whole_budget() -> None:
    noise = random.Random(1)
    found = Script().compare(lambda script: int(noise.uniform(1.5, 4.5) * MS), MS, floor=3.0, max_time_s=30)
    assert not found.settles(3.0)
    assert found.ci[0] < 3.0 < found.ci[1]
    assert 28 < found.elapsed_s <= 30


def test_the_least_time_is_spent_even_when_the_answer_is_clear() -> None:
    assert Script().compare(3 * MS, MS, floor=1.0, min_time_s=5).elapsed_s >= 5


def test_measuring_stops_at_the_largest_number_of_pairs() -> None:
    found = Script().compare(3 * MS, MS, max_time_s=1000, min_time_s=1000, max_pairs=11)
    assert found.pairs == 11


def test_without_a_floor_measuring_stops_at_a_narrow_interval() -> None:
    noise = random.Random(1)
    found = Script().compare(lambda script: int(noise.uniform(1.5, 4.5) * MS), MS, max_time_s=1000)
    assert found.ci[1] / found.ci[0] <= 1.05**2
    assert 8 < found.pairs < 1000


def test_a_machine_that_slows_down_meanwhile_does_not_favour_a_side() -> None:
    def heating(script: Script) -> int:
        return int(MS * (1 + 2 * script.now / 1e9))

    found = Script().compare(heating, heating, min_time_s=100, max_pairs=40)
    assert found.estimate == pytest.approx(1, abs=0.005)


def test_a_slow_warm_up_does_not_favour_a_side() -> None:
    def warming(script: Script) -> int:
        return int(MS * (1 + 20 * math.exp(-script.now / 3e8)))

    found = Script().compare(lambda script: 3 * warming(script), warming, min_time_s=100, max_pairs=400)
    assert found.estimate == pytest.approx(3, rel=0.001)


def test_the_confidence_is_reported() -> None:
    assert Script().compare(MS, MS, confidence=0.9, max_pairs=3).confidence == 0.9


def test_more_confidence_never_narrows_the_interval() -> None:
    def width(confidence: float) -> float:
        costs = in_turn(*(MS + 7919 * index**2 % 400_000 for index in range(1013)))
        low, high = Script().compare(costs, MS, confidence=confidence, max_pairs=20, min_time_s=100).ci
        return high / low

    assert width(0.8) < width(0.9999)


# -- garbage collection and errors ----------------------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_meanwhile_and_then_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    seen = set()

    def noting(script: Script) -> int:
        seen.add(gc.isenabled())
        return MS

    Script().compare(noting, MS, max_pairs=1)
    assert seen == {False}
    assert gc.isenabled() is enabled


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_tenth_call_comes_through_and_restores_garbage_collection(error: type[BaseException]) -> None:
    gc.enable()
    script = Script()

    def breaking(script: Script) -> int:
        if script.log.count("B") == 9:
            raise error("the tenth")
        return MS

    with pytest.raises(error, match="the tenth"):
        script.compare(MS, breaking)
    assert gc.isenabled()


# -- settings and results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [
    ("max_time_s", 0), ("max_time_s", -1), ("max_time_s", math.nan), ("max_time_s", math.inf),
    ("confidence", 0), ("confidence", 1), ("confidence", 95), ("confidence", math.nan),
    ("min_time_s", -1), ("min_time_s", math.nan),
    ("block_s", 0), ("block_s", -1), ("block_s", math.nan), ("block_s", math.inf),
    ("discard_s", -1), ("discard_s", math.nan), ("discard_s", math.inf),
    ("first_look", 0), ("max_pairs", 0), ("max_pairs", -1),
])
def test_a_setting_that_makes_no_sense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidOption, match=f"^{field} is ") as caught:
        TimingSettings(**{field: value})
    assert caught.value.hint


@pytest.mark.parametrize(("ci", "floor", "settled"), [
    ((1.1, 1.3), 1.0, True), ((1.0, 1.3), 1.0, True), ((0.8, 0.99), 1.0, True), ((0.8, 1.0), 1.0, False),
    ((0.9, 1.1), 1.0, False), ((0.0, math.inf), 1.0, False), ((0.0, math.inf), 0.0, True),
])
def test_an_interval_settles_a_floor_it_does_not_straddle(ci: tuple[float, float], floor: float, settled: bool) -> None:
    made = Speedup(estimate=1, ci=ci, pairs=8, confidence=0.95, baseline_s=1, candidate_s=1, elapsed_s=1)
    assert made.settles(floor) is settled


def test_a_speedup_reads_as_a_line() -> None:
    made = Speedup(estimate=2.5, ci=(2.25, 2.75), pairs=9, confidence=0.95, baseline_s=1, candidate_s=1, elapsed_s=1)
    assert str(made) == "2.50x [2.25, 2.75], 9 pairs"


@settings(deadline=None, derandomize=True, max_examples=30)
@given(slow=st.lists(st.integers(MS, 9 * MS), min_size=1, max_size=30),
       fast=st.lists(st.integers(MS, 9 * MS), min_size=1, max_size=30), factor=st.integers(2, 50))
def test_stretching_all_times_leaves_the_estimate_as_it_is(slow: list[int], fast: list[int], factor: int) -> None:
    def measure(scale: int) -> Speedup:
        return Script().compare(
            in_turn(*(cost * scale for cost in slow)), in_turn(*(cost * scale for cost in fast)), max_pairs=10,
            max_time_s=20.0 * scale, min_time_s=0.5 * scale, block_s=0.02 * scale, discard_s=0.008 * scale)

    plain, stretched = measure(1), measure(factor)
    assert stretched.pairs == plain.pairs
    assert stretched.estimate == pytest.approx(plain.estimate, rel=1e-9)
    assert stretched.ci == pytest.approx(plain.ci, rel=1e-9)
    assert stretched.baseline_s == pytest.approx(plain.baseline_s * factor, rel=1e-9)
