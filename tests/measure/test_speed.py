"""The latency figures of a run, on made-up models that move a scripted clock: nothing here looks at real time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.core.batches import sample_count
from pytest_qat.measure import latency, speed
from pytest_qat.measure.energy import NO_COUNTER, NOT_MOVING, EnergyMeter
from pytest_qat.measure.latency import Latency, Speedup, TimingSettings
from pytest_qat.measure.speed import BatchSpeed, Speed, measure_speed, overhead_share
from pytest_qat.runtimes.base import Deployed

MS = 1_000_000
ADAPTING_MS = 50
INPUTS = (torch.zeros(2, 3),)
Cost = Callable[[int], float]


class Machine:
    """A clock that only the made-up models move, and the log of their calls."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[tuple[str, int]] = []
        self.sessions: list[str] = []
        self.answers: dict[str, float] = {}

    def now_ns(self) -> int:
        return self.now

    def waited_ns(self) -> int:
        return 0

    def spend(self, name: str, batch: int, ms: float) -> None:
        self.log.append((name, batch))
        self.now += round(ms * MS)

    def calls(self, name: str, batch: int = 2) -> int:
        return self.log.count((name, batch))

    def form(self, name: str, cost: float | Cost, *, layout: str = "contiguous") -> Deployed:
        """A deployed model whose call takes some milliseconds, by the size of the batch."""
        label = name if layout == "contiguous" else f"{name} in {layout}"

        def adapt(inputs: Any) -> Any:
            self.now += ADAPTING_MS * MS
            return (layout, inputs)

        def run(adapted: Any) -> torch.Tensor:
            assert adapted[0] == layout, "inputs must be adapted"
            assert {"fp32", "int8"} <= set(self.sessions), "both sessions must be open"
            batch = sample_count(adapted[1])
            self.spend(label, batch, cost(batch) if callable(cost) else cost)
            return torch.full((batch, 2), self.answers.get(label, 1.0))

        @contextlib.contextmanager
        def session() -> Iterator[None]:
            self.sessions.append(name)
            try:
                yield
            finally:
                self.sessions.remove(name)

        return Deployed(artifact=Path("none"), size_bytes=0, tensors=(), layout=layout, adapt=adapt, run=run,
                        session=session, save_program=lambda inputs, path: None)

    def measure(self, fp32: Any, int8: Any, *, eager: float = 9, floor: float = 1.0, batches: tuple[int, ...] = (),
                inputs: tuple[Any, ...] = INPUTS, **changes: Any) -> Speed:
        """Measure two sides, each a cost or costs by layout."""
        sides = {name: {layout: self.form(name, cost, layout=layout) for layout, cost in (
            costs if isinstance(costs, dict) else {"contiguous": costs}).items()}
            for name, costs in (("fp32", fp32), ("int8", int8))}

        def run_eager() -> None:
            assert torch.is_inference_mode_enabled()
            self.spend("eager", 2, eager)

        found = measure_speed(**sides, eager=run_eager, inputs=inputs, floor=floor, batches=batches,
                              settings=TimingSettings(**{"max_time_s": 60, **changes}))
        assert self.sessions == []
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    @contextlib.contextmanager
    def scripted() -> Iterator[Machine]:
        yield made

    monkeypatch.setattr(latency, "system_clock", scripted)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: made.now / 1e9))
    monkeypatch.setattr(speed, "find_meter", lambda: (None, NO_COUNTER))
    return made


def wobbly(ms: float, spread: float, *, seed: int) -> Cost:
    drawn = random.Random(seed)
    return lambda batch: ms * math.exp(drawn.gauss(0, spread))


def speedup(low: float, high: float) -> Speedup:
    side = Latency(p50=0.001, p90=0.001, p99=0.001)
    return Speedup(estimate=1.0, ci=(low, high), pairs=9, confidence=0.95, baseline=side, candidate=side, elapsed_s=1)


# -- like for like --------------------------------------------------------------------------------------------------


def test_each_figure_is_the_ratio_of_what_it_is_named_for(machine: Machine) -> None:
    found = machine.measure(6, 2, eager=8)
    assert found.like_for_like.estimate == pytest.approx(3)
    assert found.over_eager is not None
    assert found.over_eager.estimate == pytest.approx(4)
    assert found.noise is not None
    assert found.noise.estimate == pytest.approx(1)
    assert found.noise_floor == pytest.approx(0, abs=1e-9)
    assert (found.samples, found.batches) == (2, ())
    assert found.layouts == {"fp32": "contiguous", "int8": "contiguous"}
    assert found.like_for_like.baseline.p50 == pytest.approx(0.006)
    assert found.like_for_like.candidate.p50 == pytest.approx(0.002)


def test_turning_inputs_into_what_a_runtime_takes_is_no_part_of_the_latency(machine: Machine) -> None:
    found = machine.measure(6, 2)
    assert found.like_for_like.baseline.p99 == pytest.approx(0.006)
    assert found.like_for_like.elapsed_s < 1


@pytest.mark.parametrize(("fp32", "int8", "layouts", "ratio"), [
    ({"contiguous": 6, "channels_last": 4}, {"contiguous": 2, "channels_last": 3}, ("channels_last", "contiguous"), 2),
    ({"contiguous": 6, "channels_last": 8}, {"contiguous": 3, "channels_last": 2}, ("contiguous", "channels_last"), 3),
    ({"contiguous": 6, "channels_last": 3}, {"contiguous": 3, "channels_last": 1},
     ("channels_last", "channels_last"), 3),
    ({"contiguous": 6, "channels_last": 6}, {"contiguous": 3, "channels_last": 3}, ("contiguous", "contiguous"), 2),
    (6, {"contiguous": 3, "channels_last": 1}, ("contiguous", "channels_last"), 6),
])
def test_each_side_runs_in_its_faster_layout(machine: Machine, fp32: Any, int8: Any, layouts: tuple[str, str],
                                             ratio: float) -> None:
    found = machine.measure(fp32, int8, eager=12)
    assert found.layouts == dict(zip(("fp32", "int8"), layouts, strict=True))
    assert found.like_for_like.estimate == pytest.approx(ratio)
    chosen = int8[layouts[1]] if isinstance(int8, dict) else int8
    assert found.over_eager is not None
    assert found.over_eager.estimate == pytest.approx(12 / chosen)


@pytest.mark.parametrize(("contiguous", "channels_last", "layout", "runs"), [
    (5.0, 5.0, "contiguous", 170), (5.05, 5.0, "contiguous", 170), (5.0, 5.05, "contiguous", 170),
    (6.0, 5.0, "channels_last", 200), (5.0, 6.0, "contiguous", 200),
])
def test_of_two_hundred_runs_on_a_noisy_machine_most_take_the_same_layout(machine: Machine, contiguous: float,
                                                                     channels_last: float, layout: str,
                                                                     runs: int) -> None:
    taken = [machine.measure({"contiguous": wobbly(contiguous, 0.1, seed=seed),
                              "channels_last": wobbly(channels_last, 0.1, seed=1000 + seed)}, 5, max_pairs=1)
             .layouts["fp32"] for seed in range(200)]
    assert taken.count(layout) >= runs


def test_a_layout_that_computes_something_else_is_not_taken_however_fast(machine: Machine) -> None:
    machine.answers["int8 in channels_last"] = -1.0
    found = machine.measure(6, {"contiguous": 3, "channels_last": 1})
    assert found.layouts["int8"] == "contiguous"
    assert found.like_for_like.estimate == pytest.approx(2)


def test_a_side_with_one_layout_is_not_compared_with_itself_to_choose_it(machine: Machine) -> None:
    machine.measure(6, 2, max_pairs=1)
    alone = machine.calls("fp32")
    machine.log.clear()
    machine.measure({"contiguous": 6, "channels_last": 9}, 2, max_pairs=1)
    assert machine.calls("fp32") > alone
    assert machine.calls("fp32 in channels_last") > 0


@pytest.mark.parametrize(("low", "high", "floor"), [
    (0.97, 1.05, 0.05), (0.9, 1.02, 0.1), (1.0, 1.0, 0.0), (1.1, 1.3, 0.3), (0.6, 0.8, 0.4), (0.0, math.inf, math.inf),
])
def test_the_noise_floor_is_the_largest_difference_that_float_against_itself_leaves(low: float, high: float,
                                                                                    floor: float) -> None:
    found = Speed(like_for_like=speedup(2, 3), over_eager=None, noise=speedup(low, high), layouts={}, samples=1,
                  batches=(), energy=None, energy_note=None)
    assert found.noise_floor == pytest.approx(floor)


# -- within a budget ------------------------------------------------------------------------------------------------


def test_a_model_too_slow_for_the_budget_is_compared_once_and_the_rest_left_out(machine: Machine) -> None:
    found = machine.measure({"contiguous": 4000, "channels_last": 1}, {"contiguous": 3200, "channels_last": 1},
                            max_time_s=10, batches=(1, 4))
    assert (machine.calls("fp32"), machine.calls("int8")) == (1, 1)
    assert {name for name, _ in machine.log} == {"fp32", "int8"}, "no other layout, no eager model"
    assert found.like_for_like.estimate == pytest.approx(1.25)
    assert found.like_for_like.ci == (0, math.inf)
    assert found.like_for_like.pairs == 0
    assert (found.over_eager, found.noise, found.noise_floor, found.energy) == (None, None, None, None)
    assert found.batches == ()
    assert found.layouts == {"fp32": "contiguous", "int8": "contiguous"}
    assert found.samples == 2
    assert found.energy_note is not None
    assert "--qat-max-time" in found.energy_note


def test_a_quarter_of_the_budget_is_where_too_slow_begins(machine: Machine) -> None:
    alone = machine.measure(60, 20, max_time_s=1000, max_pairs=1).like_for_like.elapsed_s
    assert machine.calls("eager") > 0
    for budget, too_slow in ((alone * 3.9, True), (alone * 4.1, False)):
        found = machine.measure(60, 20, max_time_s=budget, max_pairs=1)
        assert (found.over_eager is None) is too_slow


@pytest.mark.parametrize("max_time_s", [5, 20])
def test_figures_that_do_not_settle_take_the_budget_and_hardly_more(machine: Machine, max_time_s: float) -> None:
    costs = {layout: wobbly(5, 0.8, seed=seed) for seed, layout in enumerate(("contiguous", "channels_last"))}
    found = machine.measure(costs, costs, max_time_s=max_time_s, eager=5)
    assert not found.like_for_like.settles(1.0)
    assert machine.now / 1e9 <= max_time_s * 1.1
    assert found.like_for_like.elapsed_s >= max_time_s / 3


def test_the_floor_is_what_the_main_comparison_decides_about(machine: Machine) -> None:
    near, far = (machine.measure(wobbly(6, 0.2, seed=1), wobbly(2, 0.2, seed=2), floor=floor).like_for_like
                 for floor in (2.9, 1.0))
    assert far.settles(1.0)
    assert near.pairs > far.pairs


def test_side_comparisons_stop_after_a_few_pairs(machine: Machine) -> None:
    found = machine.measure(wobbly(6, 0.5, seed=1), wobbly(6, 0.5, seed=2), max_time_s=60)
    assert found.noise is not None
    assert found.over_eager is not None
    assert max(found.noise.pairs, found.over_eager.pairs) <= speed.SIDE_PAIRS < found.like_for_like.pairs


# -- by batch size --------------------------------------------------------------------------------------------------


def test_a_sweep_compares_at_each_batch_smallest_first_with_the_own_one_among_them(machine: Machine) -> None:
    found = machine.measure(lambda batch: 1 + 3 * batch, lambda batch: 1 + batch, batches=(8, 1, 4))
    assert [entry.batch for entry in found.batches] == [1, 2, 4, 8]
    assert [entry.speedup.estimate for entry in found.batches if entry.speedup] == pytest.approx(
        [4 / 2, 7 / 3, 13 / 5, 25 / 9])
    assert found.batches[1].speedup is found.like_for_like
    assert [entry.overhead for entry in found.batches] == pytest.approx([1 / 2, 1 / 3, 1 / 5, 1 / 9])
    assert all(entry.problem is None for entry in found.batches)


def test_the_own_batch_is_not_measured_twice(machine: Machine) -> None:
    found = machine.measure(6, 2, batches=(2,))
    assert found.batches == (BatchSpeed(batch=2, speedup=found.like_for_like),)
    assert {batch for _, batch in machine.log} == {2}


def test_a_sweep_uses_the_layouts_that_were_chosen(machine: Machine) -> None:
    machine.measure({"contiguous": 6, "channels_last": 4}, {"contiguous": 2, "channels_last": 3}, batches=(4,))
    assert {name for name, batch in machine.log if batch == 4} == {"fp32 in channels_last", "int8"}


@pytest.mark.parametrize("side", ["fp32", "int8"])
def test_a_batch_that_a_side_refuses_is_told_with_the_reason_and_the_others_go_on(machine: Machine, side: str) -> None:
    def fixed(batch: int) -> float:
        if batch == 4:
            raise RuntimeError("expected a batch of 2\nand a long story")
        return 1.0 + batch

    costs = {"fp32": lambda batch: 2.0 * batch, "int8": lambda batch: 1.0 + batch, side: fixed}
    found = machine.measure(costs["fp32"], costs["int8"], batches=(1, 4, 8))
    refused = next(entry for entry in found.batches if entry.batch == 4)
    assert refused == BatchSpeed(batch=4, speedup=None, problem="RuntimeError: expected a batch of 2")
    others = [entry for entry in found.batches if entry.batch != 4]
    assert [entry.batch for entry in others] == [1, 2, 8]
    assert all(entry.speedup is not None and entry.overhead is not None for entry in others)


def test_a_model_of_one_batch_size_tells_no_overhead(machine: Machine) -> None:
    def fixed(batch: int) -> float:
        if batch != 2:
            raise IndexError
        return 1.0

    found = machine.measure(fixed, 1, batches=(1, 4))
    assert [(entry.batch, entry.speedup is None, entry.overhead) for entry in found.batches] == [
        (1, True, None), (2, False, None), (4, True, None)]
    assert found.batches[2].problem == "IndexError: no message"


@pytest.mark.parametrize(("latency_s", "batch", "share"), [
    ({1: 2.0, 3: 4.0}, 1, 0.5),              # 1 s and 1 s a sample
    ({1: 2.0, 3: 4.0}, 3, 0.25),
    ({1: 2.0, 3: 4.0, 2: 3.0}, 2, 1 / 3),
    ({1: 2.0, 3: 4.0, 2: 1.0}, 2, 1.0),      # the line goes through the ends, and a share ends at 1
    ({2: 4.0, 8: 16.0}, 2, 0.0),             # no overhead at all
    ({1: 1.0, 4: 5.0}, 1, 0.0),              # grows faster than the batch: none, not less than none
    ({1: 3.0, 16: 3.0}, 16, 1.0),            # the batch costs nothing
    ({1: 3.0, 16: 2.0}, 1, 1.0),             # faster with more samples: noise
    ({10: 2.0, 30: 4.0}, 10, 0.5),
])
def test_the_overhead_is_what_a_straight_line_through_the_ends_leaves_at_no_samples(
        latency_s: dict[int, float], batch: int, share: float) -> None:
    assert overhead_share(latency_s, batch) == pytest.approx(share)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.integers(1, 1000), st.floats(1e-6, 100), min_size=2, max_size=5))
def test_an_overhead_is_always_a_share(latency_s: dict[int, float]) -> None:
    for batch in latency_s:
        assert 0 <= overhead_share(latency_s, batch) <= 1


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 10), st.floats(0.001, 10), st.integers(1, 50), st.integers(51, 500))
def test_a_known_overhead_is_found_again(fixed: float, per_sample: float, small: int, large: int) -> None:
    times = {batch: fixed + per_sample * batch for batch in (small, large)}
    for batch, seconds in times.items():
        assert overhead_share(times, batch) == pytest.approx(fixed / seconds, abs=1e-6)


# -- energy ---------------------------------------------------------------------------------------------------------


def metered(package_j: float) -> EnergyMeter:
    """A meter whose package uses so much in every window."""
    used = SimpleNamespace(cpu_energy={0: package_j}, dram_energy=None, gpu_energy={})
    return EnergyMeter(SimpleNamespace(begin_window=lambda *args, **kwargs: None,
                                       end_window=lambda *args, **kwargs: used))


@pytest.mark.parametrize(("package_j", "joules", "note"), [
    (6.0, {"fp32": 3.0, "int8": 3.0}, None), (0.0, None, NOT_MOVING),
])
def test_energy_is_that_of_a_sample_in_the_chosen_layouts(
        machine: Machine, monkeypatch: pytest.MonkeyPatch, package_j: float, joules: dict[str, float] | None,
        note: str | None) -> None:
    monkeypatch.setattr(speed, "_ENERGY_WINDOW_S", 0)
    monkeypatch.setattr(speed, "find_meter", lambda: (metered(package_j), ""))
    found = machine.measure({"contiguous": 6, "channels_last": 4}, 2)
    assert (None if found.energy is None else found.energy.joules) == joules
    assert found.energy_note == note
    assert [name for name, _ in machine.log[-4:]] == ["fp32 in channels_last", "int8", "int8", "fp32 in channels_last"]


def test_without_a_counter_the_reason_is_told(machine: Machine) -> None:
    found = machine.measure(6, 2)
    assert (found.energy, found.energy_note) == (None, NO_COUNTER)


def test_inputs_without_a_batch_are_one_sample(machine: Machine) -> None:
    found = machine.measure(6, 2, inputs=(torch.tensor(1.0),))
    assert found.samples == 1
    assert {batch for name, batch in machine.log if name != "eager"} == {1}


def test_kernels_that_settle_with_their_first_call_are_timed_fresh(machine: Machine) -> None:
    """oneDNN's int8 layers stay slow if their first call had another number of threads or another batch."""
    def used(name: str, ms: float) -> Deployed:
        form = machine.form(name, 10 * ms, layout="used before")
        return dataclasses.replace(form, fresh=lambda: lambda adapted: machine.spend(name, 2, ms))

    found = measure_speed(fp32={"contiguous": used("fp32", 2)}, int8={"contiguous": used("int8", 1)}, batches=(8,),
                          eager=lambda: machine.spend("eager", 2, 4), inputs=INPUTS, floor=1.0,
                          settings=TimingSettings(max_time_s=20))
    assert {name for name, _ in machine.log} == {"fp32", "int8", "eager"}
    assert found.like_for_like.estimate == pytest.approx(2)
