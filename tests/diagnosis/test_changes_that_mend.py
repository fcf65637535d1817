"""Remedies for lost accuracy: found by running the pipeline, and good for what they promise when they are pasted."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fixtures import faults
from pytest_qat import QATCase, Tolerances
from pytest_qat.checks import CheckResult, ModelChecks
from pytest_qat.diagnosis import recipes, remedies
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.diagnosis.changes import Change, changes_for, skippable, with_next
from pytest_qat.diagnosis.remedies import mended
from pytest_qat.findings import Finding
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.probe import Probe
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

MENDING: dict[str, tuple[Callable[..., QATCase], str]] = {
    "dim calibration": (faults.dim_calibration, "calibration_data=[inputs for inputs, _ in eval_data]"),
    "outlier in calibration": (faults.outlier_in_calibration, "calibration_data=[inputs.clamp("),
    "drifted statistics": (faults.drifted_statistics, "train with momentum=0 in every batch norm"),
    "shifted labels": (faults.shifted_labels, "train=None, train_data=None"),
    "high rate": (faults.high_rate, "a learning rate of 0.1 times that of the optimizer"),
    "frozen observers": (faults.frozen_observers, "train=None, train_data=None"),
    "weights per tensor": (faults.per_tensor_weights, "qconfig_mapping=None"),
    "heavy column": (faults.heavy_column, "skip=('second',)"),
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., ModelChecks]]:
    """Return what makes the checks of a case; other recipes refuse it, and nobody else uses the machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(recipes, "try_all", lambda case, trials, **_: [
        Probe(recipe=trial.recipe, skip=trial.skip, takes=False) for trial in trials])
    runs: list[ModelRun] = []

    def make(case: QATCase, recipe: str = "fx-x86", **settings: Any) -> ModelChecks:
        runs.append(ModelRun(case, get_recipe(recipe), RunSettings(
            **{"tolerances": case.tolerances, "diagnose_s": 60.0, "max_time_s": 1.0, **settings}), lock=MachineLock()))
        return ModelChecks(runs[-1], reference="faults:case")

    yield make
    for run in runs:
        run.close()


def judged(checks: ModelChecks) -> CheckResult:
    """Make the accuracy check, with what mends it."""
    return with_causes(checks, checks.check("accuracy"))


def test_what_was_known_when_time_ran_out_is_told(made: Callable[..., ModelChecks],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(run: ModelRun, floor: float) -> Any:
        time.sleep(1000)

    checks = made(faults.heavy_column(), diagnose_s=10.0)
    checks.check("accuracy")
    monkeypatch.setattr(ModelRun, "speed", waits)
    found = mended(checks.run, [Change(text="skip=('second',)", fields={"skip": ("second",)})])
    assert found is not None
    assert found.code == "remedy-mends"
    assert "a speed that was not measured in time" in found.message


@pytest.mark.parametrize("name", [name if index < 2 else pytest.param(name, marks=pytest.mark.slow)
                                  for index, name in enumerate(MENDING)])
def test_what_mends_is_found_and_keeps_its_promise_when_pasted(name: str, made: Callable[..., ModelChecks]) -> None:
    make, text = MENDING[name]
    checks = made(make())
    result = judged(checks)
    assert result.verdict.outcome.value == "failed"
    [found] = [each for each in result.findings if "remedies" in each.evidence]
    assert found.code == "remedy-mends"
    best = found.evidence["remedies"][-1]
    assert best["change"].startswith(text), [each["why_not"] for each in found.evidence["remedies"]]
    assert best["tried"]
    changes = changes_for(checks.run, result.findings)
    pasted = next(change for change in changes if change.text == best["change"])
    again = made(replace(make(), **pasted.fields))
    assert again.check("accuracy").verdict.outcome.value == "passed"
    assert again.run.accuracy().int8 == pytest.approx(best["accuracy"], abs=0.01)


def test_the_record_keeps_what_was_tried(made: Callable[..., ModelChecks]) -> None:
    checks = made(faults.heavy_column())
    judged(checks)
    kept = checks.record()["diagnosis"]
    assert kept is not None
    assert kept["seconds"] > 0
    assert kept["layers"][0]["module"] == "second"
    assert kept["remedies"][-1]["patch"] == "skip=('second',)"
    assert kept["remedies"][-1]["size_reduction"] is not None


def test_nothing_is_tried_for_a_model_that_passes(made: Callable[..., ModelChecks]) -> None:
    checks = made(faults.heavy_column(broken=False))
    assert not [each for each in judged(checks).findings if "remedies" in each.evidence]
    assert checks.record()["diagnosis"] is None


def test_without_time_nothing_is_tried(made: Callable[..., ModelChecks]) -> None:
    checks = made(faults.heavy_column(), diagnose_s=1e-3)
    assert not [each for each in judged(checks).findings if each.code == "remedy-mends"]


class Listener(nn.Module):
    """A recurrent layer, whose fake-quantized form runs step by step, between others."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.rnn, self.head = nn.Linear(4, 8), kind(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.first(x))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_where_there_was_no_time_to_look_layers_that_are_taken_apart_are_left_out_first(
        kind: type[nn.Module], made: Callable[..., ModelChecks]) -> None:
    checks = made(QATCase(model=Listener(kind).eval(), example_inputs=(torch.randn(3, 2, 4),)))
    assert "skip=('rnn',)" in [change.text for change in changes_for(checks.run, [])]
    known = Finding(code="error-is-spread", severity="note", message="", evidence={"largest": [["head", 0.3]]})
    assert "skip=('rnn',)" not in [change.text for change in changes_for(checks.run, [known])]


# -- how a change is tried ----------------------------------------------------------------------------------------


def aborts(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    os.abort()


def hangs(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    time.sleep(1000)
    return target


@pytest.mark.parametrize(("fields", "says"), [
    ({"skip": ("first",)}, "accuracy still fails"), ({"skip": ("first", "second", "head")}, "fail"),
    ({"metric": aborts}, "its process ended without an answer"),
    ({"train": lambda prepared: 1 / 0}, "fails (")])
def test_a_change_that_does_not_mend_is_told_as_such(fields: Mapping[str, object], says: str,
                                                     made: Callable[..., ModelChecks]) -> None:
    run = made(faults.heavy_column()).run
    run.accuracy()
    found = mended(run, [Change(text="this", fields=fields)])
    assert found is not None
    assert found.code == "no-remedy-mends"
    assert says in found.message, found.message


def test_a_change_that_takes_too_long_is_stopped_in_time(made: Callable[..., ModelChecks]) -> None:
    run = made(faults.heavy_column(), diagnose_s=5.0).run
    found = mended(run, [Change(text="this", fields={"metric": hangs}), Change(text="that")])
    assert found is not None
    assert "this: not settled within 5 s" in found.message
    assert "that: not tried" in found.message


def test_the_same_change_is_tried_once(made: Callable[..., ModelChecks], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def note(run: ModelRun, change: Change) -> remedies.Remedy:
        tried.append(change.text)
        return remedies.Remedy(change=change, why_not="noted")

    monkeypatch.setattr(remedies, "_tried", note)
    mended(made(faults.heavy_column()).run, [Change(text=text) for text in ("a", "b", "a")])
    assert tried == ["a", "b"]


def test_without_changes_there_is_nothing_to_say(made: Callable[..., ModelChecks]) -> None:
    assert mended(made(faults.heavy_column()).run, []) is None


# -- which modules to leave in float ------------------------------------------------------------------------------


def test_modules_come_with_the_layers_that_read_them(made: Callable[..., ModelChecks]) -> None:
    run = made(faults.heavy_column()).run
    assert with_next(run, ("first",)) == ("first", "second")
    assert with_next(run, ("head",)) == ("head",)


@pytest.mark.parametrize(("blamed", "names"), [
    (["second", "", "second"], ("second",)), (["second", "elsewhere"], ()), ([], ())])
def test_only_modules_of_the_model_can_be_skipped(blamed: list[str], names: tuple[str, ...],
                                                  made: Callable[..., ModelChecks]) -> None:
    assert skippable(made(faults.heavy_column()).run, blamed) == names


@pytest.mark.slow
def test_the_error_of_an_lstm_is_the_layers(made: Callable[..., ModelChecks]) -> None:
    class Reader(nn.Module):
        """Reads a sum over many steps, which rounded states do not keep."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.head = nn.LSTM(4, 16, batch_first=True), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cell(x)[0][:, -1])  # type: ignore[no-any-return]

    torch.manual_seed(1)
    model = Reader().eval()
    with torch.no_grad():
        model.cell.weight_hh_l0.mul_(6)
    inputs = [torch.randn(32, 40, 4) for _ in range(4)]
    data = [(batch, model(batch).argmax(1).detach()) for batch in inputs]
    result = judged(made(QATCase(model=model, example_inputs=(inputs[0],), calibration_data=inputs, eval_data=data,
                                 tolerances=Tolerances(accuracy_drop=0.05, min_coverage=0.0))))
    assert result.verdict.outcome.value == "failed"
    error = next(each for each in result.findings if each.severity == "error")
    assert error.module == "cell"
    assert re.search(r"cell \(\d+ weights and activations\)", error.message)
    [mends] = [each for each in result.findings if "remedies" in each.evidence]
    assert mends.code == "remedy-mends", mends.message
    assert "skip=('cell'" in mends.remedy
