"""What paired latency leaves as it was, refuses and returns, with a scripted clock."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.errors import InvalidOption, MeasurementError
from pytest_qat.measure.latency import Speedup, TimingSettings, compare_latency
from tests.measure.scripted_clock import MS, Cost, Script, constant, uniform

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
    with pytest.raises(MeasurementError, match=f" calls of the {name} ") as caught:
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
