"""From intervals and batch sizes to speed's outcome: tables, and laws for all numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.measure.latency import Latency, Speedup
from pytest_qat.measure.speed import BatchSpeed
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, judge_speedup
from tests.verdict_laws import FAILED, FRACTION, INCONCLUSIVE, PASSED, RANK, STABLE, TOLERANCES, codes, is_whole


def speedup(low: float, high: float, *, estimate: float | None = None, **changes: Any) -> Speedup:
    fields = {"estimate": (low + min(high, 10)) / 2 if estimate is None else estimate, "ci": (low, high), "pairs": 20,
              "confidence": 0.95, "baseline": latency(0.002), "candidate": latency(0.001), "elapsed_s": 3}
    return Speedup(**{**fields, **changes})


def latency(seconds: float) -> Latency:
    return Latency(p50=seconds, p90=seconds, p99=seconds)


def at(batch: int, low: float, high: float, *, overhead: float | None = None) -> BatchSpeed:
    return BatchSpeed(batch=batch, speedup=speedup(low, high), overhead=overhead)


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
    assert reason == ("int8 is 1.31x as fast as float, 95% interval [1.20, 1.40] from 20 pairs in 3.0 s "
                      "(float against itself: 0.99x [0.97, 1.02]); required is 1.00x.")
    assert verdict.findings == ()


@pytest.mark.parametrize(("measured", "noise", "required", "missing"), [
    # The interval reaches log(1.05 / 0.9) down, the floor is log(1.05) away: 3 s * 3.16**2, and as much again.
    (speedup(0.9, 1.2, estimate=1.05), None, 1.0, "The interval straddles it: raise --qat-max-time to about 60 s."),
    (speedup(0.9, 1.2, estimate=1.001), None, 1.0, "too near for any reasonable time to tell: lower --qat-min-speedup"),
    (speedup(0.9, 1.2, estimate=1.0), None, 1.0, "too near for any reasonable time to tell: lower --qat-min-speedup"),
    (speedup(0.0, math.inf, estimate=2.0, pairs=2), None, 1.0,
     "A pair of blocks takes so long that 2 fitted into the budget"),
    (speedup(0.0, math.inf, estimate=2.0, pairs=0), None, 1.0, "or use smaller example_inputs."),
    (speedup(1.1, 1.2), speedup(1.25, 1.3), 1.0, "But float against itself is 1.25x off: this machine is too unsteady"),
    (speedup(0.85, 0.9), speedup(0.5, 0.8), 1.0, "Run it again when nothing else runs."),
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


SWEEPS = st.lists(st.builds(BatchSpeed, batch=st.integers(1, 64), speedup=st.none() | speedups(),
                            overhead=st.none() | FRACTION), max_size=4, unique_by=lambda entry: entry.batch)


@STABLE
@given(speedups(), st.none() | speedups(), SWEEPS, st.floats(0, 10), st.floats(0, 10))
def test_asking_for_less_speed_never_makes_it_worse(measured: Speedup, noise: Speedup | None,
                                                    batches: list[BatchSpeed], one: float, other: float) -> None:
    loose, tight = (judge_speedup(measured, Tolerances(min_speedup=floor), noise=noise, batches=batches, own_batch=1)
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
@given(speedups(), st.none() | speedups(), SWEEPS, TOLERANCES, st.none() | st.integers(1, 64))
def test_every_speed_has_an_outcome(measured: Speedup, noise: Speedup | None, batches: list[BatchSpeed],
                                    tolerances: Tolerances, own: int | None) -> None:
    verdict = judge_speedup(measured, tolerances, noise=noise, batches=batches, own_batch=own)
    is_whole(verdict)
    json.dumps([finding.as_dict() for finding in verdict.findings], allow_nan=False)


@STABLE
@given(st.floats(0, math.inf), st.floats(0, math.inf), st.floats(0, math.inf), st.floats(0, math.inf), TOLERANCES)
def test_every_pair_of_intervals_has_an_outcome(one: float, other: float, first: float, second: float,
                                                tolerances: Tolerances) -> None:
    low, high = sorted((one, other))
    measured = speedup(low, high, estimate=min(max(1.0, low), high) if high > 0 else 1.0)
    is_whole(judge_speedup(measured, tolerances, noise=speedup(*sorted((first, second)), estimate=1.0)))


# -- speed by batch size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sweep", "expected"), [
    ([], []),
    ([at(1, 1.2, 1.4), at(8, 1.5, 1.6)], []),
    ([at(1, 0.8, 0.9), at(8, 1.2, 1.4)], ["verdict-depends-on-batch"]),
    ([at(1, 0.8, 1.1), at(8, 1.2, 1.4)], []),
    ([at(1, 1.2, 1.4, overhead=0.5), at(8, 1.2, 1.4, overhead=0.1)], []),
    ([at(1, 1.2, 1.4, overhead=0.51), at(8, 1.2, 1.4, overhead=0.1)], ["overhead-bound"]),
    ([at(1, 0.8, 0.9, overhead=0.9), at(8, 1.2, 1.4)], ["overhead-bound", "verdict-depends-on-batch"]),
    ([BatchSpeed(batch=1, speedup=None, problem="RuntimeError: no"), at(8, 1.2, 1.4)], []),
])
def test_batches_give_findings_only_where_there_is_something_to_see(sweep: list[BatchSpeed],
                                                                    expected: list[str]) -> None:
    assert codes(judge_speedup(speedup(1.2, 1.4), Tolerances(), batches=sweep, own_batch=8)) == expected


def test_a_verdict_that_depends_on_the_batch_is_told_with_the_other_batches() -> None:
    sweep = [at(1, 0.8, 0.9), at(2, 0.9, 1.1), at(4, 0.9, 0.95), at(8, 1.2, 1.4), at(16, 1.4, 1.6)]
    verdict = judge_speedup(speedup(1.2, 1.4), Tolerances(), batches=sweep, own_batch=8)
    assert verdict.outcome is PASSED
    [finding] = verdict.findings
    assert finding.severity == "warning"
    assert finding.message == "at batch 8 int8 is 1.30x as fast, but 0.85x at batch 1, 0.93x at batch 4."
    assert "example_inputs" in finding.remedy


def test_a_failure_that_another_batch_would_pass_is_told_too() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 1.2, 1.4)]
    verdict = judge_speedup(speedup(0.8, 0.9), Tolerances(), batches=sweep, own_batch=1)
    assert verdict.outcome is FAILED
    assert codes(verdict) == ["verdict-depends-on-batch"]


def test_an_unclear_speed_depends_on_nothing_yet() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 0.9, 1.4)]
    assert codes(judge_speedup(speedup(0.9, 1.4), Tolerances(), batches=sweep, own_batch=8)) == []


def test_the_floor_decides_on_which_side_a_batch_is() -> None:
    sweep = [at(1, 1.2, 1.4), at(8, 2.0, 2.2)]
    found = [codes(judge_speedup(speedup(2.0, 2.2), Tolerances(min_speedup=floor), batches=sweep, own_batch=8))
             for floor in (1.0, 1.5)]
    assert found == [[], ["verdict-depends-on-batch"]]


def test_calls_bound_by_overhead_are_told_by_batch() -> None:
    sweep = [at(1, 1.2, 1.4, overhead=0.93), at(2, 1.2, 1.4, overhead=0.86), at(64, 1.2, 1.4, overhead=0.2)]
    [finding] = judge_speedup(speedup(1.2, 1.4), Tolerances(), batches=sweep, own_batch=1).findings
    assert (finding.code, finding.severity) == ("overhead-bound", "note")
    assert "(93% at batch 1, 86% at batch 2)" in finding.message
    assert finding.evidence == {"1": 0.93, "2": 0.86}
