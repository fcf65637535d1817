"""`--qat-probe`, and the trial of other recipes after a refusal (`--qat-diagnose`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project
from torch import nn

from pytest_qat.case import Tolerances
from pytest_qat.pipeline.probe import Probe, Trial
from pytest_qat.plugin.registry import RunRegistry
from pytest_qat.record.keys import ModelSource
from tests.plugin.inner_runs import everything

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="recipes are tried in forked processes")

OPTIONS: Any = SimpleNamespace(stage_timeout_s=900.0, seed=0, tolerances=lambda own: Tolerances())
RESIDUAL = """
    class Residual(Net):
        def forward(self, x):
            y = self.relu(self.conv(x))
            return self.fc((y + y).mean((2, 3)))

    def residual():
        return case(model=Residual().eval())

    class Broken(Net):
        def forward(self, x):
            raise RuntimeError("this model does not run")

    def broken():
        return case(model=Broken().eval())
"""


def test_probing_prints_a_table_and_writes_the_record(project: Project) -> None:
    project.add(RESIDUAL)
    result = project.run("--qat-model=models:residual", "--qat-probe", "--qat-recipe=fx-x86", "--qat-recipe=eager-x86",
                         "--qat-json=qat.json", "-v")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["qat-model:models:residual::probe PASSED*", "*fx-x86*yes*100.0%*", "*eager-x86*no*"])
    assert "pytest --qat-model=models:residual --qat-recipe=fx-x86" in everything(result)
    [probed] = json.loads((project.path / "qat.json").read_text())["probes"]
    assert [(found["recipe"], found["takes"]) for found in probed["probes"]] == [("fx-x86", True), ("eager-x86", False)]


def test_probing_fails_where_no_recipe_takes_the_model(project: Project) -> None:
    project.add(RESIDUAL)
    result = project.run("--qat-model=models:residual", "--qat-probe", "--qat-recipe=eager-x86")
    assert result.ret == 1
    assert "no recipe takes the model" in everything(result)


def test_a_recipe_that_puts_hardly_anything_into_int8_does_not_work(project: Project) -> None:
    project.add("""
        class Mostly(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.fc = nn.GRU(16, 64), nn.Linear(64, 2)

            def forward(self, x):
                return self.fc(self.rnn(x)[0][-1])

        def mostly():
            return Mostly().eval(), (torch.randn(20, 2, 16),)
        """)
    result = project.run("--qat-model=models:mostly", "--qat-probe", "--qat-recipe=fx-x86", "--qat-json=qat.json")
    assert result.ret == 1
    assert "it runs, but only" in everything(result)
    [probed] = json.loads((project.path / "qat.json").read_text())["probes"]
    assert [(found["takes"], found["code"]) for found in probed["probes"]] == [(False, "too-little-int8")]
    again = project.run("--qat-model=models:mostly", "--qat-probe", "--qat-recipe=fx-x86", "--qat-min-coverage=0")
    assert again.ret == 0


@pytest.mark.slow
def test_a_refusal_ends_with_a_recipe_that_was_tried_and_its_command_holds(project: Project) -> None:
    project.add(RESIDUAL)
    result = project.run("--qat-model=models:residual", "--qat-recipe=eager-x86", "--qat-diagnose=auto",
                         "--qat-diagnose-time=20", "-k", "prepare or convert")
    text = everything(result)
    assert result.ret == 1
    assert "tried: fx-x86 takes it (100.0% of MACs in int8" in text
    assert "run: pytest --qat-model=models:residual --qat-recipe=fx-x86" in text
    again = project.run("--qat-model=models:residual", "--qat-recipe=fx-x86", "-k", "prepare or convert")
    again.assert_outcomes(passed=2)


def test_nothing_is_tried_if_diagnosis_is_off_or_the_model_itself_does_not_run(project: Project) -> None:
    project.add(RESIDUAL)
    assert "tried:" not in everything(project.run("--qat-model=models:residual", "--qat-recipe=eager-x86"))
    assert "tried:" not in everything(project.run("--qat-model=models:broken", "--qat-diagnose=auto"))


def test_a_recipe_is_tried_once_a_session_whatever_other_models_come_between(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[str] = []

    def try_all(case: object, trials: Sequence[Trial], **limits: object) -> list[Probe]:
        names = [trial.recipe for trial in trials]
        tried.extend(names)
        return [Probe(recipe=name, takes=name == "eager-x86") for name in names]

    monkeypatch.setattr("pytest_qat.pipeline.probing.try_all", try_all)
    monkeypatch.setattr("pytest_qat.measure.machine_lock.tempfile.gettempdir", lambda: str(tmp_path))
    registry = RunRegistry(OPTIONS, root=tmp_path, workers=1)
    sources = [ModelSource(name, given=nn.Linear(2, 2)) for name in ("one", "other")]
    monkeypatch.setattr(registry, "case", lambda source: SimpleNamespace(tolerances=None))
    for source in (*sources, *sources):
        found = registry.probes(source, ["fx-x86", "eager-x86"])
        assert [probe.recipe for probe in found] == ["eager-x86", "fx-x86"]
    assert tried == ["fx-x86", "eager-x86"] * 2


@pytest.mark.parametrize("value", ["maybe", "-3", "nan"])
def test_a_bad_value_is_a_usage_error(project: Project, value: str) -> None:
    option = "--qat-diagnose-time" if value != "maybe" else "--qat-diagnose"
    result = project.run("--qat-model=models:good", f"{option}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert option in everything(result)


def test_the_command_of_a_model_without_inputs_of_its_own_says_its_shape(project: Project) -> None:
    project.add("""
        def bare():
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    """)
    text = everything(project.run("--qat-model=models:bare", "--qat-inputs=8x3x8x8", "--qat-probe",
                                  "--qat-recipe=fx-x86"))
    assert "pytest --qat-model=models:bare --qat-inputs=8x3x8x8 --qat-recipe=fx-x86" in text
