"""How long paired latency goes on, with a scripted clock: the budget, when to stop, and confidence."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_qat.measure.latency import Speedup
from tests.measure.scripted_clock import MS, Script, constant, in_turn, uniform

# -- the budget -----------------------------------------------------------------------------------------------------


def longest_pair_s(cost_ms: float) -> float:
    """No pair of the usual settings is longer if no call is."""
    return 2 * (0.0015 + 0.003 + 4 * cost_ms / 1000)


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
    found = script.compare(30_000 * MS, 16_000 * MS, floor=1.0, max_time_s=1.0)
    assert script.log == ["A", "B"]
    assert found.pairs == 0
    assert found.estimate == pytest.approx(30 / 16)
    assert found.ci == (0.0, math.inf), "no pair gives no interval"
    assert (found.baseline, found.candidate) == (constant(30), constant(16))
    assert found.elapsed_s == 46
    assert not found.settles(1.0)
    assert 80 <= found.seconds_to_settle(1.0) < math.inf


@pytest.mark.parametrize(("costs_ms", "floor", "holds"), [
    ((1_000, 7_000), 1.0, False), ((7_000, 1_000), 1.0, True), ((1_000, 1_000), 3.0, False),
    ((9_000, 1_000), 4.0, True)])
def test_a_ratio_far_from_the_floor_is_called_though_the_budget_is_too_short_for_pairs(
        costs_ms: tuple[int, int], floor: float, holds: bool) -> None:
    found = Script().compare(*(cost * MS for cost in costs_ms), floor=floor, max_time_s=20.0)
    assert found.settles(floor)
    assert (found.ci[0] >= floor) is holds
    assert found.estimate == pytest.approx(costs_ms[0] / costs_ms[1])
    assert found.elapsed_s <= 6 * 20.0


def test_pairs_that_would_take_over_five_times_the_budget_are_not_made() -> None:
    script = Script()
    found = script.compare(1_000 * MS, 7_000 * MS, floor=1.0, max_time_s=1.0)
    assert script.log == ["A", "B"]
    assert not found.settles(1.0)


def test_a_ratio_that_turns_out_to_be_near_the_floor_is_not_called() -> None:
    slow = in_turn(7_000, *[1_000] * 60)
    found = Script().compare(1_000 * MS, slow, floor=1.0, max_time_s=9.0)
    assert not found.settles(1.0) or found.ci[0] >= 1.0


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


@pytest.mark.parametrize("center", [3.15, 2.85])
def test_near_the_floor_measuring_goes_on_until_the_interval_is_precise(center: float) -> None:
    def measure(most: int | None) -> Speedup:
        return Script().compare(uniform(center - 0.4, center + 0.4), MS, floor=3.0, margin=1.1, precision=0.03,
                                max_time_s=30, max_pairs=most)

    found = measure(None)
    assert found.settles(3.0)
    assert (found.ci[0] >= 3.0) is (center > 3)
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


@pytest.mark.parametrize("floor", [1.0, 2.9])
def test_the_least_time_is_spent_on_a_precise_estimate_which_may_be_of_one_moment(floor: float) -> None:
    assert Script().compare(3 * MS, MS, floor=floor).pairs == 8
    assert 5 <= Script().compare(3 * MS, MS, floor=floor, least_s=5).elapsed_s < 5.1


def test_measuring_stops_at_the_largest_number_of_pairs() -> None:
    found = Script().compare(uniform(2.4, 3.6), MS, max_time_s=100, least_s=100, max_pairs=11, precision=0.001)
    assert found.pairs == 11


@pytest.mark.parametrize("precision", [0.05, 0.02])
def test_without_a_floor_measuring_stops_at_a_narrow_interval(precision: float) -> None:
    found = Script().compare(uniform(1.5, 4.5), MS, max_time_s=200, precision=precision)
    assert found.ci[1] / found.ci[0] <= (1 + precision)**2 + 1e-9
    assert 8 < found.pairs < 10_000
    assert found.elapsed_s < 190


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
