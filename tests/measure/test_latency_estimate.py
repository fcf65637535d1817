"""Paired latency's ratio, blocks and percentiles, with a scripted clock: nothing here looks at real time."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.measure.latency import Latency, Speedup, TimingSettings, compare_latency
from tests.measure.scripted_clock import MS, Script, constant, in_turn, uniform


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
    costs = itertools.chain([3 * MS] * 2, itertools.cycle([3 * MS] * 3 + [500 * MS, 3 * MS]))
    found = script.compare(lambda script: next(costs), MS, max_pairs=8)
    assert script.log.count("A") == 2 + 8 * 5, "blocks are not of five calls as this test assumes"
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.ci == pytest.approx((3, 3), rel=1e-9)
    assert parts(found.baseline) == pytest.approx((0.003, 0.5, 0.5), rel=1e-9)


def test_percentiles_are_those_of_the_timed_calls_alone() -> None:
    timed = list(range(10, 31))
    random.Random(0).shuffle(timed)
    blocks = [[77, 78, *timed[start:start + 3]] for start in range(0, 21, 3)]  # the first two are thrown away
    costs = iter([5, 5, *itertools.chain.from_iterable(blocks)])
    found = Script().compare(lambda script: next(costs) * MS, lambda script: 5 * MS, max_pairs=7)
    assert found.pairs == 7
    assert parts(found.baseline) == pytest.approx((0.020, 0.028, 0.0298), rel=1e-9)
    assert parts(found.candidate) == pytest.approx((0.005, 0.005, 0.005), rel=1e-9)


def test_the_estimate_is_the_median_of_the_ratios_of_the_blocks_medians() -> None:
    ratios = [2.0, 8.0, 3.0, 5.0, 4.0]
    costs = iter([10 * MS] * 2 + [int(10 * MS * ratio) for ratio in ratios for _ in range(5)])
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


@pytest.mark.parametrize(("cost", "discarded"), [(10, 2), (33, 2), (51, 2), (52, 1), (400, 1)])
def test_two_calls_are_thrown_away_or_one_long_one_and_three_are_timed(cost: int, discarded: int) -> None:
    script = Script()
    script.compare(cost * MS, cost * MS, max_pairs=1, discard_s=0)
    length = discarded + 3
    assert sorted(script.log[-2 * length:]) == ["A"] * length + ["B"] * length
    assert len(script.log) == 2 * 2 + 2 * length


def test_a_side_that_needs_three_calls_to_recover_from_the_other_is_timed_when_it_has() -> None:
    def cold_after_the_other(script: Script) -> int:
        since = next((index for index, name in enumerate(reversed(script.log)) if name == "B"), 3)
        return (13 * MS, 12 * MS, 11 * MS, 10 * MS)[min(since, 3)]

    found = Script().compare(cold_after_the_other, 5 * MS, max_pairs=9)
    assert found.estimate == pytest.approx(2, rel=1e-9)


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


def test_a_neighbor_that_hits_one_side_only_does_not_change_the_ratio() -> None:
    def hit(script: Script) -> int:
        script.wait(random.Random(script.now).randrange(20 * MS))
        return 2 * MS

    found = Script().compare(6 * MS, hit, max_pairs=8)
    assert found.estimate == pytest.approx(3, rel=1e-9)
    assert found.ci == pytest.approx((3, 3), rel=1e-9)


# -- machines that change -------------------------------------------------------------------------------------------


def test_a_machine_that_slows_down_meanwhile_does_not_favor_a_side() -> None:
    def heating(script: Script) -> int:
        return int(MS * (1 + 2 * script.now / 1e9))

    found = Script().compare(heating, heating, precision=1e-9, max_pairs=40)
    assert found.pairs == 40
    assert found.ci[0] <= 1 <= found.ci[1]
    assert found.estimate == pytest.approx(1, abs=0.05)


def test_a_slow_warm_up_does_not_favor_a_side() -> None:
    def warming(script: Script) -> int:
        return int(MS * (1 + 20 * math.exp(-script.now / 3e8)))

    found = Script().compare(lambda script: 3 * warming(script), warming, precision=1e-9, max_time_s=100,
                             max_pairs=400)
    assert found.pairs > 100
    assert found.estimate == pytest.approx(3, rel=0.001)
