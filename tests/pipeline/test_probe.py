"""Trying recipes on a model without training."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline import probing as module
from pytest_qat.pipeline.probe import Probe, Trial, best_first, held_to
from pytest_qat.pipeline.probing import ProbeSettings, probe_recipe, try_all
from pytest_qat.recipe import get_recipe

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="recipes are tried in forked processes")
IMAGES = torch.randn(8, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Residual(Net):
    """Adds with a plain +, which eager mode cannot quantize."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        return self.fc((y + y).mean((2, 3)))


def case(model: nn.Module, **changes: Any) -> QATCase:
    return QATCase(**{"model": model.eval(), "example_inputs": (IMAGES,), **changes})


def tried(recipe: str, made: QATCase, *, timeout_s: float = 120.0) -> Probe:
    return probe_recipe(made, Trial(recipe=recipe), settings=ProbeSettings(timeout_s=timeout_s))


@needs_fork
def test_a_recipe_that_takes_the_model_says_how_much_runs_in_int8_and_how_small_it_gets() -> None:
    found = tried("fx-x86", case(Net()))
    assert (found.takes, found.mac_share, found.reason) == (True, 1.0, "")
    assert found.size_reduction is not None
    assert found.seconds > 0


@needs_fork
def test_a_recipe_that_refuses_the_model_gives_the_code_of_its_finding() -> None:
    found = tried("eager-x86", case(Residual()))
    assert found.takes is False
    assert found.code is not None
    assert found.reason


@needs_fork
def test_nothing_is_trained_and_the_model_stays_as_it_was() -> None:
    def train(model: nn.Module) -> None:
        raise AssertionError("a probe does not train")

    made = case(Net(), train=train)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert tried("fx-x86", made).takes is True
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


@needs_fork
@pytest.mark.parametrize(("work", "takes", "code"), [("crash", False, "native-crash"), ("hang", None, "out-of-time")])
def test_a_recipe_that_crashes_or_hangs_costs_its_answer_alone(work: str, takes: bool | None, code: str | None,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def misbehave(*args: object, **kwargs: object) -> Probe:
        if work == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
        raise AssertionError("unreachable because the process is killed")

    monkeypatch.setattr(module, "_tried", misbehave)
    found = tried("fx-x86", case(Net()), timeout_s=2.0)
    assert (found.takes, found.code) == (takes, code)
    assert "starting" in found.reason


def test_a_recipe_whose_packages_are_missing_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = tried("pt2e-executorch", case(Net()))
    assert found.takes is None
    assert "pytest-qat[executorch]" in found.reason


def test_without_forked_processes_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_fork", lambda: False)
    assert tried("fx-x86", case(Net())).takes is None


@needs_fork
def test_recipes_are_tried_side_by_side_and_come_best_first() -> None:
    heard: list[str] = []
    trials = [Trial(recipe=name) for name in ("eager-x86", "fx-x86")]
    found = try_all(case(Residual()), trials, settings=ProbeSettings(),
                    done=lambda probe: heard.append(probe.recipe))
    assert [probe.recipe for probe in found] == ["eager-x86", "fx-x86"]
    assert [probe.recipe for probe in sorted(found, key=best_first)] == ["fx-x86", "eager-x86"]
    assert sorted(heard) == ["eager-x86", "fx-x86"]


def test_what_does_not_begin_within_the_budget_is_not_tried() -> None:
    found = try_all(case(Net()), [Trial(recipe=name) for name in ("fx-x86", "eager-x86")],
                    settings=ProbeSettings(budget_s=0.0))
    assert [probe.takes for probe in found] == [None, None]


def test_the_order_is_by_answer_then_share_in_int8_then_size() -> None:
    probes = [Probe(recipe="refuses", takes=False), Probe(recipe="silent", takes=None),
              Probe(recipe="half", takes=True, mac_share=0.5, size_reduction=3.9),
              Probe(recipe="big", takes=True, mac_share=0.99, size_reduction=2.0),
              Probe(recipe="small", takes=True, mac_share=0.99, size_reduction=3.0)]
    assert [probe.recipe for probe in sorted(probes, key=best_first)] == ["small", "big", "half", "silent", "refuses"]


def test_an_engine_of_another_machine_comes_after_that_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [Probe(recipe=name, takes=True, mac_share=1.0, size_reduction=size) for name, size in (
        ("fx-qnnpack", 3.9), ("fx-x86", 3.7), ("pt2e-executorch", 3.6))]
    for machine, expected in (("x86_64", ["fx-x86", "pt2e-executorch", "fx-qnnpack"]),
                              ("arm64", ["fx-qnnpack", "pt2e-executorch", "fx-x86"]),
                              ("AARCH64", ["fx-qnnpack", "pt2e-executorch", "fx-x86"])):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert [probe.recipe for probe in sorted(probes, key=best_first)] == expected


@pytest.mark.parametrize(("share", "floor", "takes"), [
    (0.0001, 0.1, False), (0.0999, 0.1, False), (0.1, 0.1, True), (None, 0.1, True), (0.0001, 0.0, True)])
def test_a_recipe_that_leaves_too_much_in_float_takes_nothing(share: float | None, floor: float, takes: bool) -> None:
    found = held_to(Probe(recipe="pt2e-litert", takes=True, mac_share=share), floor)
    assert found.takes is takes
    assert (found.code == "too-little-int8") is not takes
    if not takes:
        assert "coverage requires 10.0%" in found.reason
    refusing = Probe(recipe="pt2e-litert", takes=False, mac_share=0.0, reason="no.")
    assert held_to(refusing, floor) == refusing


@needs_fork
def test_outputs_are_compared_if_asked() -> None:
    plain, looked_at = (probe_recipe(case(Net()), Trial(recipe="fx-x86", numbers=numbers), settings=ProbeSettings())
                        for numbers in (False, True))
    assert (plain.agrees, plain.sqnr_db) == (None, None)
    assert looked_at.agrees is True
    assert looked_at.sqnr_db is not None
    assert looked_at.sqnr_db > 20


@pytest.mark.slow
@needs_fork
def test_where_only_outputs_are_compared_no_float_artifact_is_built() -> None:
    """Which takes as long as that of int8."""
    if reason := module.not_installed(get_recipe("pt2e-onnxruntime")):
        pytest.skip(reason)
    plain, looked_at = (probe_recipe(case(Net()), Trial(recipe="pt2e-onnxruntime", numbers=numbers),
                                     settings=ProbeSettings()) for numbers in (False, True))
    assert plain.size_reduction is not None
    assert (looked_at.takes, looked_at.agrees, looked_at.size_reduction) == (True, True, None)
    assert looked_at.mac_share == plain.mac_share


@needs_fork
@pytest.mark.parametrize("recipe", [
    "fx-x86", *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "fx-torchscript", "pt2e-onnxruntime", "pt2e-executorch", "pt2e-litert"))])
def test_an_artifact_is_timed_if_asked(recipe: str) -> None:
    if reason := module.not_installed(get_recipe(recipe)):
        pytest.skip(reason)
    plain = tried(recipe, case(Net()))
    timed = probe_recipe(case(Net()), Trial(recipe=recipe, floor=1.0), settings=ProbeSettings(locks=True))
    assert (plain.speedup, plain.speedup_ci) == (None, None)
    assert timed.takes is True, timed.reason
    assert timed.speedup is not None
    assert timed.speedup_ci is not None
    assert timed.speedup_ci[0] <= timed.speedup <= timed.speedup_ci[1]


def test_a_speedup_without_an_interval_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls so slow that few fit into the time show nothing, however large their ratio is."""
    def measured(high: float) -> Any:
        return lambda **_: SimpleNamespace(like_for_like=SimpleNamespace(estimate=3076.0, ci=(0.0, high)))

    monkeypatch.setattr(module, "measure_speed", measured(math.inf))
    first = Probe(recipe="fx-x86", takes=True)
    form = SimpleNamespace(session=contextlib.nullcontext, run=lambda inputs: inputs, adapt=lambda inputs: inputs)
    pair: Any = SimpleNamespace(fp32={"contiguous": form}, int8={"contiguous": form})
    assert module._timed(first, case(Net()), pair, floor=1.0) == first
    monkeypatch.setattr(module, "measure_speed", measured(3077.0))
    assert module._timed(first, case(Net()), pair, floor=1.0).speedup == 3076.0


@needs_fork
def test_a_timing_waits_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the lock: without an answer in time, nothing is said of the speed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with MachineLock().alone():
        found = probe_recipe(case(Net()), Trial(recipe="fx-x86", floor=1.0),
                             settings=ProbeSettings(locks=True, timeout_s=4.0))
    assert (found.takes, found.speedup) == (None, None)


@needs_fork
def test_a_kernel_that_is_wrong_agrees_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.run_batch
    monkeypatch.setattr(module, "run_batch", lambda deployed, inputs: -right(deployed, inputs))
    found = probe_recipe(case(Net()), Trial(recipe="fx-x86", numbers=True), settings=ProbeSettings())
    assert (found.takes, found.agrees) == (True, False)


@needs_fork
def test_what_is_skipped_for_a_trial_stays_in_float() -> None:
    given = case(Net())
    found = probe_recipe(given, Trial(recipe="fx-x86", skip=("conv",)), settings=ProbeSettings())
    assert (found.takes, found.skip) == (True, ("conv",))
    assert found.mac_share is not None
    assert 0 < found.mac_share < 0.5
    assert given.skip == ()


@pytest.mark.slow
@needs_fork
def test_trials_that_differ_in_what_is_skipped_are_made_apart_and_keep_their_order() -> None:
    trials = [Trial(recipe="fx-x86", skip=("conv",)), Trial(recipe="fx-x86"), Trial(recipe="fx-x86", skip=("conv",))]
    found = try_all(case(Net()), trials, settings=ProbeSettings())
    assert [probe.skip for probe in found] == [("conv",), (), ("conv",)]
    assert found[0] is found[2]


@needs_fork
@pytest.mark.parametrize(("floor", "reason"), [
    (0.14, "at most 12.9% of the multiply-accumulates could be in int8, and coverage requires 14.0%."),
    (0.12, "built")])
def test_inductor_compiles_nothing_that_cannot_reach_the_coverage(floor: float, reason: str,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao takes the linear layer, with 32 of 248 multiply-accumulates."""
    def deploy(*given: Any) -> Any:
        raise NotImplementedError("built")

    monkeypatch.setattr(module, "load_runtime", lambda name: SimpleNamespace(deploy=deploy))
    net = Net()
    net.conv = nn.Conv2d(3, 8, 3, stride=6)
    found = probe_recipe(case(net), Trial(recipe="torchao-int8"), settings=ProbeSettings(floor=floor))
    assert found.takes is False
    assert reason in found.reason
    assert (found.code == "too-little-int8") is (floor > 32 / 248)
