"""Paired latency, with a scripted clock: nothing here looks at real time."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.errors import InvalidOption, MeasurementError
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
        """Pass time in which a neighbour has the CPU."""
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


def parts(latency: Latency) -> tuple[float, float, float]:
    return latency.p50, latency.p90, latency.p99


# -- the estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slow", "fast"), [
    (3 * MS, MS), (MS, 3 * MS), (MS, MS), (3_000, 1_000), (90 * MS, 30 * MS), (70, 30), (3 * MS, 200),
])
def test_constant_times_give_their_exact_ratio(slow: int, fast: int) -> None:
    found = Script().compare(slow, fast, max_pairs=8, block_s=0.001, discard_s=0.0004)
    assert found.pairs == 8
    assert found.estimate == pytest.approx(slow / fast, rel=1e-9)
    assert found.ci == pytest.approx((slow / fast, slow / fast), rel=1e-9)
    assert parts(found.baseline) == pytest.approx((slow / 1e9,) * 3, rel=1e-9)
    assert parts(found.candidate) == pytest.approx((fast / 1e9,) * 3, rel=1e-9)


def test_an_outlier_in_every_block_changes_neither_the_ratio_nor_the_median() -> None:
    script = Script()
    costs = itertools.chain([3 * MS] * 4, itertools.cycle([3 * MS, 3 * MS, 500 * MS, 3 * MS]))
    found = script.compare(lambda script: next(costs), MS, max_pairs=8)
    assert script.log.count("A") == 4 + 8 * 4, "blocks are not of four calls as this test assumes"
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.ci == pytest.approx((3, 3), rel=1e-9)
    assert parts(found.baseline) == pytest.approx((0.003, 0.5, 0.5), rel=1e-9)


def test_percentiles_are_those_of_the_timed_calls_alone() -> None:
    timed = list(range(10, 31))
    random.Random(0).shuffle(timed)
    blocks = [[77, *timed[start:start + 3]] for start in range(0, 21, 3)]  # the first call of a block is thrown away
    costs = iter([5, 5, *itertools.chain.from_iterable(blocks)])
    found = Script().compare(lambda script: next(costs) * MS, lambda script: 5 * MS, max_pairs=7)
    assert found.pairs == 7
    assert parts(found.baseline) == pytest.approx((0.020, 0.028, 0.0298), rel=1e-9)
    assert parts(found.candidate) == pytest.approx((0.005, 0.005, 0.005), rel=1e-9)


def test_the_estimate_is_the_median_of_the_ratios_of_the_blocks_medians() -> None:
    ratios = [2.0, 8.0, 3.0, 5.0, 4.0]
    costs = iter([10 * MS] * 2 + [int(10 * MS * ratio) for ratio in ratios for _ in range(4)])
    assert Script().compare(lambda script: next(costs), 10 * MS, max_pairs=5).estimate == pytest.approx(4, rel=1e-9)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(slow=st.lists(st.integers(MS, 9 * MS), min_size=1, max_size=30),
       fast=st.lists(st.integers(MS, 9 * MS), min_size=1, max_size=30), factor=st.sampled_from([2, 4, 32]))
def test_stretching_all_times_leaves_the_estimate_as_it_is(slow: list[int], fast: list[int], factor: int) -> None:
    def measure(scale: int) -> Speedup:
        return Script().compare(
            in_turn(*(cost * scale for cost in slow)), in_turn(*(cost * scale for cost in fast)), max_pairs=10,
            max_time_s=20.0 * scale, least_s=0.5 * scale, block_s=0.02 * scale, discard_s=0.008 * scale)

    plain, stretched = measure(1), measure(factor)
    assert stretched.pairs == plain.pairs
    assert stretched.estimate == pytest.approx(plain.estimate, rel=1e-9)
    assert stretched.ci == pytest.approx(plain.ci, rel=1e-9)
    assert parts(stretched.baseline) == pytest.approx([part * factor for part in parts(plain.baseline)], rel=1e-9)
    assert stretched.elapsed_s == pytest.approx(plain.elapsed_s * factor, rel=1e-9)


# -- blocks ---------------------------------------------------------------------------------------------------------


def test_every_pair_holds_a_block_of_each_side_in_an_order_of_its_own() -> None:
    script = Script()
    noise = random.Random(3)
    script.compare(lambda script: MS + noise.randrange(1000), MS, max_pairs=200, block_s=0.004, discard_s=0.002,
                   precision=1e-9)
    length, pairs = 6, 200
    calls = "".join(script.log[-2 * length * pairs:])
    orders = [calls[start:start + 2 * length] for start in range(0, len(calls), 2 * length)]
    assert set(orders) == {"A" * length + "B" * length, "B" * length + "A" * length}
    first = [order[0] for order in orders]
    assert 75 <= first.count("A") <= 125, "one side goes first too often for a coin"
    repeats = sum(one == other for one, other in itertools.pairwise(first))
    assert 75 <= repeats <= 125, "the order of a pair tells the next one's"


def test_the_first_calls_of_a_block_are_thrown_away() -> None:
    def cold_after_the_other(script: Script) -> int:
        return 15 * MS if script.log[-1:] == ["B"] else 150 * MS

    found = Script().compare(45 * MS, cold_after_the_other, max_pairs=9)
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.candidate == constant(0.015), "a cold call reached the percentiles"


def test_a_block_is_as_long_as_the_settings_say() -> None:
    script = Script()
    script.compare(MS, MS, max_pairs=1, block_s=0.008, discard_s=0.003)
    assert sorted(script.log[-22:]) == ["A"] * (3 + 8) + ["B"] * (3 + 8)
    assert len(set(script.log[-11:])) == 1


def test_at_least_one_call_is_thrown_away_and_three_are_timed() -> None:
    script = Script()
    script.compare(50 * MS, 50 * MS, max_pairs=1, discard_s=0)
    assert sorted(script.log[-8:]) == ["A"] * 4 + ["B"] * 4
    assert len(script.log) == 2 * 2 + 8


def test_short_calls_are_timed_many_at_once() -> None:
    script = Script()
    found = compare_latency(script.side("A", 100), script.side("B", 100), clock=script,
                            settings=TimingSettings(max_pairs=8, block_s=0.002))
    assert len(script.log) > 100 * script.readings
    assert found.baseline == constant(100e-9)


# -- waits for a CPU ------------------------------------------------------------------------------------------------


def test_waiting_for_a_cpu_is_no_part_of_a_latency_but_uses_the_budget_up() -> None:
    def kept_waiting(script: Script) -> int:
        script.wait(9 * MS)
        return MS

    calm, crowded = Script(), Script()
    options: dict[str, Any] = {"floor": 3.0, "max_time_s": 2.0}  # a ratio of just the floor: precise, never clear
    alone = calm.compare(uniform(2, 4), MS, **options)
    noise = uniform(2, 4)
    found = crowded.compare(lambda script: kept_waiting(script) - MS + noise(script), kept_waiting, **options)
    assert found.candidate == constant(0.001)
    assert 0.0025 < found.baseline.p50 < 0.0035
    assert found.baseline.p99 < 0.004
    assert found.elapsed_s == pytest.approx(crowded.now / 1e9)
    assert found.elapsed_s <= 2.0
    assert found.pairs < alone.pairs / 2, "waits did not count against the budget"


def test_a_neighbour_that_hits_one_side_only_does_not_change_the_ratio() -> None:
    def hit(script: Script) -> int:
        script.wait(random.Random(script.now).randrange(20 * MS))
        return 2 * MS

    found = Script().compare(6 * MS, hit, max_pairs=8)
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.ci == pytest.approx((3, 3), rel=1e-9)


# -- the budget -----------------------------------------------------------------------------------------------------


def longest_pair_s(cost_ms: float) -> float:
    """No pair of the usual settings is longer if no call is."""
    return 2 * (0.002 + 0.005 + 4 * cost_ms / 1000)


@pytest.mark.parametrize("cost_ms", [0.1, 1, 30, 300, 3_000])
@pytest.mark.parametrize("max_time_s", [0.5, 2.0, 10.0])
def test_the_budget_is_kept_or_each_side_is_called_once(cost_ms: float, max_time_s: float) -> None:
    script = Script()
    steady = [uniform(0.99 * cost_ms, 1.01 * cost_ms, seed=seed) for seed in (1, 2)]
    found = script.compare(*steady, floor=1.0, max_time_s=max_time_s)
    assert found.elapsed_s == pytest.approx(script.now / 1e9)
    assert found.elapsed_s <= max_time_s + 0.025 * longest_pair_s(cost_ms) or script.log == ["A", "B"]


@pytest.mark.parametrize("cost_ms", [0.1, 1, 30, 300])
@pytest.mark.parametrize("max_time_s", [0.5, 2.0, 10.0])
def test_a_pair_that_gets_longer_on_the_way_is_the_most_that_the_budget_is_overrun_by(
        cost_ms: float, max_time_s: float) -> None:
    script = Script()
    noisy = [uniform(cost_ms, 3 * cost_ms, seed=seed) for seed in (1, 2)]
    found = script.compare(*noisy, floor=1.0, max_time_s=max_time_s)
    assert found.elapsed_s == pytest.approx(script.now / 1e9)
    assert found.elapsed_s <= max_time_s + longest_pair_s(3 * cost_ms)


def test_the_budget_is_used_but_for_less_than_a_pair() -> None:
    found = Script().compare(uniform(2, 4), uniform(2, 4, seed=2), floor=1.0, max_time_s=3.0)
    assert not found.settles(1.0)
    assert 2.9 < found.elapsed_s <= 3.0


def test_a_call_slower_than_the_whole_budget_is_made_once_a_side() -> None:
    script = Script()
    found = script.compare(30_000 * MS, 10_000 * MS, max_time_s=1.0)
    assert script.log == ["A", "B"]
    assert found.pairs == 0
    assert found.estimate == pytest.approx(3)
    assert found.ci == (0.0, math.inf), "no pair gives no interval"
    assert (found.baseline, found.candidate) == (constant(30), constant(10))
    assert found.elapsed_s == 40
    assert not found.settles(1.0)
    assert 80 <= found.seconds_to_settle(1.0) < math.inf


@pytest.mark.parametrize("cost_ms", [30_000, 1])
def test_half_of_the_budget_at_most_goes_into_finding_out_how_long_the_baseline_takes(cost_ms: int) -> None:
    script = Script()
    script.compare(cost_ms * MS, MS, max_time_s=100.0, block_s=1000, max_pairs=1)
    spent_s = script.blocks()[0][1] * cost_ms / 1000
    assert 25 <= spent_s <= 50


def test_too_few_pairs_for_an_interval_still_give_an_estimate_from_pairs() -> None:
    found = Script().compare(3 * MS, MS, max_pairs=7)
    assert found.pairs == 7
    assert found.ci == (0.0, math.inf)
    assert found.estimate == pytest.approx(3, rel=1e-9)


# -- when to stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "passes"), [
    (1.0, True), (2.9, True), (3.1, False), (10.0, False), (0.0, True), (-1.0, True),
])
def test_a_clear_answer_stops_at_the_eight_pairs_that_an_interval_takes(floor: float, passes: bool) -> None:
    found = Script().compare(3 * MS, MS, floor=floor, max_time_s=100)
    assert found.pairs == 8
    assert found.settles(floor)
    assert (found.ci[0] >= floor) is passes


@pytest.mark.parametrize(("floor", "passes"), [(1.5, True), (6.0, False)])
def test_a_noisy_but_clear_answer_stops_at_eight_pairs_too(floor: float, passes: bool) -> None:
    found = Script().compare(uniform(2.4, 3.6), MS, floor=floor, margin=1.1, max_time_s=100)
    assert found.pairs == 8
    assert found.ci[1] / found.ci[0] > 1.05**2, "not precise: stopped because it is clear"
    assert (found.ci[0] >= floor) is passes
    assert found.settles(floor)


@pytest.mark.parametrize("centre", [3.15, 2.85])
def test_near_the_floor_measuring_goes_on_until_the_interval_is_precise(centre: float) -> None:
    def measure(most: int | None) -> Speedup:
        return Script().compare(uniform(centre - 0.4, centre + 0.4), MS, floor=3.0, margin=1.1, precision=0.03,
                                max_time_s=30, max_pairs=most)

    found = measure(None)
    assert found.settles(3.0)
    assert (found.ci[0] >= 3.0) is (centre > 3)
    assert found.ci[1] / found.ci[0] <= 1.03**2 + 1e-9
    assert found.elapsed_s < 20
    for most in range(8, found.pairs):
        low, high = measure(most).ci
        clear = low >= 3.0 * 1.1 or high <= 3.0 / 1.1
        assert not clear, f"clear after {most} pairs already"
        assert high / low > 1.03**2 or low < 3.0 <= high, f"precise and settled after {most} pairs already"


def test_a_settled_interval_that_is_neither_clear_nor_precise_is_not_enough() -> None:
    found = Script().compare(uniform(3.0, 3.6), MS, floor=3.0, margin=1.5, precision=0.001, max_time_s=100,
                             max_pairs=60)
    assert found.ci[0] >= 3.0
    assert found.pairs == 60


def test_an_unclear_answer_uses_the_whole_budget() -> None:
    found = Script().compare(uniform(1.5, 4.5), MS, floor=3.0, max_time_s=30)
    assert not found.settles(3.0)
    assert found.ci[0] < 3.0 < found.ci[1]
    assert 28 < found.elapsed_s <= 30


def test_a_precise_interval_that_holds_the_floor_goes_on() -> None:
    found = Script().compare(uniform(2.97, 3.03), MS, floor=3.0, max_time_s=10)
    assert found.ci[1] / found.ci[0] < 1.02
    assert found.elapsed_s > 9.5


def test_the_least_time_is_spent_on_a_rough_estimate_even_when_the_answer_is_clear() -> None:
    options: dict[str, Any] = {"floor": 1.0, "margin": 1.1, "precision": 0.001, "max_time_s": 100}
    assert Script().compare(uniform(2.4, 3.6), MS, **options).elapsed_s < 1
    found = Script().compare(uniform(2.4, 3.6), MS, least_s=5, **options)
    assert 5 <= found.elapsed_s < 5.1


def test_the_least_time_is_not_spent_on_an_estimate_that_is_precise() -> None:
    assert Script().compare(3 * MS, MS, floor=1.0, least_s=5).pairs == 8


def test_measuring_stops_at_the_largest_number_of_pairs() -> None:
    found = Script().compare(uniform(2.4, 3.6), MS, max_time_s=100, least_s=100, max_pairs=11, precision=0.001)
    assert found.pairs == 11


@pytest.mark.parametrize("precision", [0.05, 0.02])
def test_without_a_floor_measuring_stops_at_a_narrow_interval(precision: float) -> None:
    found = Script().compare(uniform(1.5, 4.5), MS, max_time_s=100, precision=precision)
    assert found.ci[1] / found.ci[0] <= (1 + precision)**2 + 1e-9
    assert 8 < found.pairs < 10_000
    assert found.elapsed_s < 90


# -- machines that change -------------------------------------------------------------------------------------------


def test_a_machine_that_slows_down_meanwhile_does_not_favour_a_side() -> None:
    def heating(script: Script) -> int:
        return int(MS * (1 + 2 * script.now / 1e9))

    found = Script().compare(heating, heating, precision=1e-9, max_pairs=40)
    assert found.pairs == 40
    assert found.ci[0] <= 1 <= found.ci[1]
    assert found.estimate == pytest.approx(1, abs=0.05)


def test_a_slow_warm_up_does_not_favour_a_side() -> None:
    def warming(script: Script) -> int:
        return int(MS * (1 + 20 * math.exp(-script.now / 3e8)))

    found = Script().compare(lambda script: 3 * warming(script), warming, precision=1e-9, max_time_s=100,
                             max_pairs=400)
    assert found.pairs > 100
    assert found.estimate == pytest.approx(3, rel=0.001)


# -- confidence -----------------------------------------------------------------------------------------------------


def test_the_confidence_is_reported() -> None:
    assert Script().compare(MS, MS, confidence=0.9, max_pairs=3).confidence == 0.9


@pytest.mark.parametrize(("confidence", "fewest"), [(0.9, 7), (0.95, 8), (0.99, 11), (0.999, 14)])
def test_more_confidence_takes_more_pairs(confidence: float, fewest: int) -> None:
    assert Script().compare(3 * MS, MS, floor=1.0, confidence=confidence).pairs == fewest


def test_more_confidence_never_narrows_the_interval() -> None:
    def width(confidence: float) -> float:
        costs = in_turn(*(MS + 7919 * index**2 % 400_000 for index in range(1013)))
        found = Script().compare(costs, MS, confidence=confidence, max_pairs=40, precision=1e-9)
        assert found.pairs == 40
        return found.ci[1] / found.ci[0]

    assert width(0.8) < width(0.99) < width(0.9999)


# -- garbage collection, the clock and errors -----------------------------------------------------------------------


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
@pytest.mark.parametrize("name", ["A", "B"])
def test_an_error_in_the_tenth_call_comes_through_and_restores_garbage_collection(
        name: str, error: type[BaseException]) -> None:
    gc.enable()
    script = Script()

    def breaking(script: Script) -> int:
        if script.log.count(name) == 9:
            raise error("the tenth")
        return MS

    sides: dict[str, int | Cost] = {"A": MS, "B": MS, name: breaking}
    with pytest.raises(error, match=r"^the tenth$"):
        script.compare(sides["A"], sides["B"])
    assert script.log.count(name) == 9
    assert gc.isenabled()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize(("slow", "fast", "name"), [(0, MS, "baseline"), (MS, 0, "candidate"), (0, 0, "baseline")])
def test_a_side_that_takes_no_time_is_an_error_that_names_it(slow: int, fast: int, name: str) -> None:
    script, calls = Script(), 0

    def instant() -> None:
        nonlocal calls
        calls += 1

    sides = [instant if cost == 0 else script.side("A", cost) for cost in (slow, fast)]
    gc.enable()
    with pytest.raises(MeasurementError, match=f" calls of the {name} took no time ") as caught:
        compare_latency(*sides, clock=script)
    assert caught.value.hint
    assert 2**20 <= calls <= 2**22
    assert gc.isenabled()


def test_this_machine_s_clock_is_the_default_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    script, events = Script(), []

    @contextlib.contextmanager
    def scripted_clock() -> Iterator[Script]:
        events.append("taken")
        try:
            yield script
        finally:
            events.append("given back")

    def breaking(script: Script) -> int:
        raise ValueError("broken")

    monkeypatch.setattr("pytest_qat.measure.latency.system_clock", scripted_clock)
    found = compare_latency(script.side("A", 3 * MS), script.side("B", MS))
    assert (found.pairs, found.estimate) == (8, pytest.approx(3))
    with pytest.raises(ValueError, match="broken"):
        compare_latency(script.side("A", breaking), script.side("B", MS))
    assert events == ["taken", "given back"] * 2


# -- settings and results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [
    ("max_time_s", 0), ("max_time_s", -1), ("max_time_s", math.nan), ("max_time_s", math.inf),
    ("confidence", 0), ("confidence", 1), ("confidence", 95), ("confidence", math.nan),
    ("least_s", -1), ("least_s", math.nan), ("least_s", math.inf),
    ("block_s", 0), ("block_s", -1), ("block_s", math.nan), ("block_s", math.inf),
    ("discard_s", -1), ("discard_s", math.nan), ("discard_s", math.inf),
    ("margin", 0.99), ("margin", -1), ("margin", math.nan), ("margin", math.inf),
    ("precision", 0), ("precision", -1), ("precision", math.nan), ("precision", math.inf),
    ("max_pairs", 0), ("max_pairs", -1),
])
def test_a_setting_that_makes_no_sense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidOption, match=f"^{field} is ") as caught:
        TimingSettings(**{field: value})
    assert caught.value.hint


@pytest.mark.parametrize(("field", "value"), [
    ("max_time_s", 1e-9), ("confidence", 0.001), ("least_s", 0), ("block_s", 1e-9), ("discard_s", 0), ("margin", 1),
    ("precision", 1e-9), ("max_pairs", 1), ("max_pairs", None),
])
def test_the_least_value_that_makes_sense_is_taken(field: str, value: float | None) -> None:
    assert getattr(TimingSettings(**{field: value}), field) == value


def speedup(*, estimate: float = 1.0, ci: tuple[float, float] = (0.9, 1.1), pairs: int = 8,
            elapsed_s: float = 2.0) -> Speedup:
    return Speedup(estimate=estimate, ci=ci, pairs=pairs, confidence=0.95, baseline=constant(1), candidate=constant(1),
                   elapsed_s=elapsed_s)


@pytest.mark.parametrize(("ci", "floor", "settled"), [
    ((1.1, 1.3), 1.0, True), ((1.0, 1.3), 1.0, True), ((0.8, 0.99), 1.0, True), ((0.8, 1.0), 1.0, False),
    ((0.9, 1.1), 1.0, False), ((0.0, math.inf), 1.0, False), ((0.0, math.inf), 0.0, True),
])
def test_an_interval_settles_a_floor_it_does_not_straddle(ci: tuple[float, float], floor: float, settled: bool) -> None:
    assert speedup(ci=ci).settles(floor) is settled


def test_a_speedup_reads_as_a_line() -> None:
    assert str(speedup(estimate=2.5, ci=(2.25, 2.75), pairs=9)) == "2.50x [2.25, 2.75], 9 pairs"


def log_interval(estimate: float, below: float, above: float) -> dict[str, Any]:
    return {"estimate": estimate, "ci": (estimate * math.exp(-below), estimate * math.exp(above))}


@pytest.mark.parametrize(("found", "floor", "seconds"), [
    (log_interval(2.0, 0.2, 0.2), 2.0 * math.exp(-0.1), 8.0),  # reaches twice as far: four times as long
    (log_interval(2.0, 0.2, 0.2), 2.0 * math.exp(0.1), 8.0),
    (log_interval(2.0, 0.3, 0.1), 2.0 * math.exp(0.1), 18.0),  # the further end counts
    (log_interval(2.0, 0.1, 0.3), 2.0 * math.exp(0.1), 18.0),
    (log_interval(2.0, 0.2, 0.2), 2.0 * math.exp(-0.4), 2.0),  # settled already
    (log_interval(2.0, 0.2, 0.2), 2.0, math.inf),
    (log_interval(2.0, 0.2, 0.2), 0.0, 2.0),
    (log_interval(2.0, 0.2, 0.2), -1.0, 2.0),
    ({"ci": (0.0, math.inf), "pairs": 2}, 1.0, 8.0),  # two of the eight pairs that an interval takes
    ({"ci": (0.0, math.inf), "pairs": 7}, 1.0, 4.0),
])
def test_the_time_to_settle_a_floor_follows_from_how_far_the_interval_reaches(
        found: dict[str, Any], floor: float, seconds: float) -> None:
    assert speedup(**found).seconds_to_settle(floor) == pytest.approx(seconds)


@settings(deadline=None, derandomize=True)
@given(below=st.floats(0.001, 2), above=st.floats(0.001, 2), near=st.floats(0.001, 2), further=st.floats(0, 2))
def test_a_floor_further_off_never_takes_longer(below: float, above: float, near: float, further: float) -> None:
    found = speedup(**log_interval(1.0, below, above))
    for sign in (-1, 1):
        seconds = found.seconds_to_settle(math.exp(sign * near))
        assert found.elapsed_s <= found.seconds_to_settle(math.exp(sign * (near + further))) <= seconds * (1 + 1e-9)


def test_the_time_said_to_settle_a_floor_is_of_the_right_size() -> None:
    def measure(seed: int, max_time_s: float) -> Speedup:
        return Script().compare(uniform(2.4, 3.9, seed=seed), uniform(2.4, 3.6, seed=-seed - 1), floor=1.0,
                                max_time_s=max_time_s)

    tried = half = enough = 0
    for seed in range(60):
        found = measure(seed, 0.6)
        if not found.settles(1.0):
            said = found.seconds_to_settle(1.0)
            assert found.elapsed_s < said < math.inf
            tried += 1
            half += measure(seed, min(said, 60)).settles(1.0)
            enough += measure(seed, min(4 * said, 60)).settles(1.0)
    assert tried > 30
    assert 0.3 * tried < half < 0.8 * tried, "the estimate it rests on errs to either side about as often"
    assert enough > 0.8 * tried
