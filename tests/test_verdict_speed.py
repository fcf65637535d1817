"""From intervals to the outcome of speed: tables, and laws for all numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.measure.latency import Latency, Speedup
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, judge_speedup
from tests.verdict_laws import FAILED, INCONCLUSIVE, PASSED, RANK, STABLE, TOLERANCES, is_whole


def speedup(low: float, high: float, *, estimate: float | None = None, **changes: Any) -> Speedup:
    fields = {"estimate": (low + min(high, 10)) / 2 if estimate is None else estimate, "ci": (low, high), "pairs": 20,
              "confidence": 0.95, "baseline": latency(0.002), "candidate": latency(0.001), "elapsed_s": 3}
    return Speedup(**{**fields, **changes})


def latency(seconds: float) -> Latency:
    return Latency(p50=seconds, p90=seconds, p99=seconds)


# -- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ci", "noise", "required", "outcome"), [
    ((1.2, 1.4), None, 1.0, PASSED), ((1.0, 1.4), None, 1.0, PASSED), ((0.7, 0.9), None, 1.0, FAILED),
    ((0.9, 1.0), None, 1.0, INCONCLUSIVE), ((0.9, 1.2), None, 1.0, INCONCLUSIVE),
    ((0.0, math.inf), None, 1.0, INCONCLUSIVE), ((0.0, math.inf), None, 0.0, PASSED),
    ((1.9, 2.1), None, 2.0, INCONCLUSIVE), ((2.0, 2.1), None, 2.0, PASSED), ((1.8, 1.9), None, 2.0, FAILED),
    # An interval of float against itself that holds 1 says nothing against the machine, however wide it is.
    ((1.01, 1.4), (0.9, 1.1), 1.0, PASSED), ((0.7, 0.99), (0.9, 1.1), 1.0, FAILED),
    ((1.01, 1.4), (0.0, math.inf), 1.0, PASSED), ((1.01, 1.4), (1.0, 1.0), 1.0, PASSED),
    # One that does not hold 1 must be cleared, either way.
    ((1.04, 1.4), (1.05, 1.2), 1.0, INCONCLUSIVE), ((1.05, 1.4), (1.05, 1.2), 1.0, PASSED),
    ((1.2, 1.4), (0.5, 0.8), 1.0, INCONCLUSIVE), ((1.25, 1.4), (0.5, 0.8), 1.0, PASSED),
    ((0.7, 0.81), (0.5, 0.8), 1.0, INCONCLUSIVE), ((0.7, 0.79), (0.5, 0.8), 1.0, FAILED),
    ((0.7, 0.96), (1.05, 1.2), 1.0, INCONCLUSIVE), ((0.7, 0.95), (1.05, 1.2), 1.0, FAILED),
    ((2.05, 2.4), (1.05, 1.2), 2.0, INCONCLUSIVE), ((2.1, 2.4), (1.05, 1.2), 2.0, PASSED),
    ((0.0, 0.1), (1.05, 1.2), 0.0, PASSED),
])
def test_speed_is_judged_by_the_side_on_which_the_interval_lies_and_by_how_much(
        ci: tuple[float, float], noise: tuple[float, float] | None, required: float, outcome: Outcome) -> None:
    against = None if noise is None else speedup(*noise)
    assert judge_speedup(speedup(*ci), Tolerances(min_speedup=required), noise=against).outcome is outcome


def test_a_speedup_is_told_with_all_that_it_rests_on() -> None:
    verdict = judge_speedup(speedup(1.2, 1.4, estimate=1.31), Tolerances(), noise=speedup(0.97, 1.02, estimate=0.99))
    [reason] = verdict.reasons
    for number in ("1.31x", "95%", "[1.20, 1.40]", "20 pairs", "3.0 s", "0.99x [0.97, 1.02]", "1.00x is required"):
        assert number in reason


@pytest.mark.parametrize(("measured", "noise", "required", "missing"), [
    # The interval reaches log(1.05 / 0.9) down, the floor is log(1.05) away: 3 s * 3.16**2, and as much again.
    (speedup(0.9, 1.2, estimate=1.05), None, 1.0, "raise --qat-max-time to about 60 s."),
    (speedup(0.9, 1.2, estimate=1.001), None, 1.0, "lower --qat-min-speedup"),
    (speedup(0.9, 1.2, estimate=1.0), None, 1.0, "lower --qat-min-speedup"),
    (speedup(0.0, math.inf, estimate=2.0, pairs=2), None, 1.0,
     "only 2 pairs"),
    (speedup(0.0, math.inf, estimate=2.0, pairs=0), None, 1.0, "smaller example_inputs."),
    (speedup(1.1, 1.2), speedup(1.25, 1.3), 1.0, "off by 1.25x"),
    (speedup(0.85, 0.9), speedup(0.5, 0.8), 1.0, "Run it again"),
])
def test_an_inconclusive_speed_says_what_is_missing(measured: Speedup, noise: Speedup | None, required: float,
                                                    missing: str) -> None:
    verdict = judge_speedup(measured, Tolerances(min_speedup=required), noise=noise)
    assert verdict.outcome is INCONCLUSIVE
    assert missing in verdict.reasons[0]


def test_the_time_asked_for_would_have_settled_it() -> None:
    measured = speedup(0.9, 1.2, estimate=1.05)
    reason = judge_speedup(measured, Tolerances()).reasons[0]
    asked = float(reason.rpartition("about ")[2].removesuffix(" s."))
    assert measured.seconds_to_settle(1.0) <= asked <= measured.seconds_to_settle(1.0) * 2 + 1


@st.composite
def speedups(draw: st.DrawFn) -> Speedup:
    """What a comparison can find: an interval around the estimate, or none."""
    ratio = st.floats(0.001, 1000)
    low, estimate, high = sorted((draw(ratio), draw(ratio), draw(ratio)))
    settled = draw(st.booleans())
    return speedup(low if settled else 0.0, high if settled else math.inf, estimate=estimate,
                   pairs=draw(st.integers(0, 10**6)), elapsed_s=draw(st.floats(0, 1e6)))


@STABLE
@given(speedups(), st.none() | speedups(), st.floats(0, 10), st.floats(0, 10))
def test_asking_for_less_speed_never_makes_it_worse(measured: Speedup, noise: Speedup | None, one: float,
                                                    other: float) -> None:
    loose, tight = (judge_speedup(measured, Tolerances(min_speedup=floor), noise=noise)
                    for floor in sorted((one, other)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]


@STABLE
@given(speedups(), st.floats(0, 10))
def test_without_noise_an_outcome_is_settled_exactly_where_the_interval_is(measured: Speedup, floor: float) -> None:
    outcome = judge_speedup(measured, Tolerances(min_speedup=floor)).outcome
    assert (outcome is not INCONCLUSIVE) == measured.settles(floor)
    assert (outcome is PASSED) == (measured.ci[0] >= floor)


@STABLE
@given(speedups(), speedups(), st.floats(0, 10))
def test_an_unsteady_machine_makes_an_outcome_unclear_and_never_turns_it(measured: Speedup, noise: Speedup,
                                                                         floor: float) -> None:
    plain, careful = (judge_speedup(measured, Tolerances(min_speedup=floor), noise=against).outcome
                      for against in (None, noise))
    assert careful in (plain, INCONCLUSIVE)


@STABLE
@given(speedups(), st.none() | speedups(), TOLERANCES)
def test_every_speed_has_an_outcome(measured: Speedup, noise: Speedup | None, tolerances: Tolerances) -> None:
    is_whole(judge_speedup(measured, tolerances, noise=noise))


@STABLE
@given(st.floats(0, math.inf), st.floats(0, math.inf), st.floats(0, math.inf), st.floats(0, math.inf), TOLERANCES)
def test_every_pair_of_intervals_has_an_outcome(one: float, other: float, first: float, second: float,
                                                tolerances: Tolerances) -> None:
    low, high = sorted((one, other))
    measured = speedup(low, high, estimate=min(max(1.0, low), high) if high > 0 else 1.0)
    is_whole(judge_speedup(measured, tolerances, noise=speedup(*sorted((first, second)), estimate=1.0)))
