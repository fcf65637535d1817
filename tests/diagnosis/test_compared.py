"""The record of a failed check says how far each stage agrees with the one before it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures import faults
from pytest_qat.case import QATCase
from pytest_qat.checks import ModelChecks
from pytest_qat.diagnosis import causes, compared
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

Stages = list[dict[str, Any]]
IN_TORCH = [("float", "unrounded"), ("unrounded", "fake-quantize"), ("fake-quantize", "int8")]
EXPORTED = [*IN_TORCH[:2], ("fake-quantize", "reference"), ("reference", "int8")]


@pytest.fixture
def stages_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Stages | None]]:
    """Return what makes a check of a case and returns the stages in its record; nothing is tried that may mend it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(causes, "mended", lambda run, changes: None)
    monkeypatch.setattr(causes, "recipes_that_take", lambda *given, **named: None)
    monkeypatch.setattr(causes, "_what_would_do", lambda *given, **named: ())
    runs: list[ModelRun] = []

    def make(case: QATCase, recipe: str = "fx-x86", *, check: str = "accuracy",
             diagnose_s: float = 60.0) -> Stages | None:
        runs.append(ModelRun(case, get_recipe(recipe), RunSettings(
            tolerances=case.tolerances, diagnose_s=diagnose_s, max_time_s=1.0), lock=MachineLock()))
        checks = ModelChecks(runs[-1], reference="faults:case")
        with_causes(checks, checks.check(check))
        diagnosis: Any = checks.record()["diagnosis"]
        return None if diagnosis is None else diagnosis["stages"]

    yield make
    for run in runs:
        run.close()


def steps(stages: Stages | None) -> list[tuple[str, str]]:
    assert stages is not None
    return [(stage["before"], stage["after"]) for stage in stages]


def worst(stages: Stages | None) -> tuple[str, str]:
    assert stages is not None
    found = min(stages, key=lambda stage: float("inf") if stage["sqnr_db"] is None else stage["sqnr_db"])
    return found["before"], found["after"]


@pytest.mark.parametrize(("fault", "step"), [
    (faults.two_codes, ("unrounded", "fake-quantize")), (faults.shifted_labels, ("float", "unrounded"))])
def test_the_step_that_breaks_is_the_one_with_the_least_agreement(
        fault: Callable[..., QATCase], step: tuple[str, str], stages_of: Callable[..., Stages | None]) -> None:
    found = stages_of(fault(broken=True))
    assert steps(found) == IN_TORCH
    assert worst(found) == step


def test_kernels_that_are_wrong_show_in_the_last_step(stages_of: Callable[..., Stages | None],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    right = compared.run_batch
    monkeypatch.setattr(compared, "run_batch", lambda deployed, inputs: -right(deployed, inputs))
    assert worst(stages_of(faults.two_codes(broken=True))) == ("fake-quantize", "int8")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pt2e-executorch", "pt2e-onnxruntime"])
def test_between_fake_quantize_and_another_runtime_stands_the_reference(
        recipe: str, stages_of: Callable[..., Stages | None]) -> None:
    found = stages_of(faults.unlike_columns(broken=True), recipe)
    assert found is not None
    assert steps(found) == EXPORTED
    by_step = {(stage["before"], stage["after"]): stage for stage in found}
    assert by_step["fake-quantize", "reference"]["sqnr_db"] is None, "they agree to the bit"
    assert by_step["reference", "int8"]["sqnr_db"] > 20


def test_nothing_is_compared_where_nothing_is_looked_for_or_nothing_fails(
        stages_of: Callable[..., Stages | None]) -> None:
    assert stages_of(faults.two_codes(broken=True), diagnose_s=0.0) is None
    assert stages_of(faults.two_codes(broken=False)) is None
    assert stages_of(faults.two_codes(broken=True), check="size") is None
