"""Accuracy that a known fault costs: its kind and place are named by what mends it; healthy twins are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fixtures import faults
from pytest_qat.case import QATCase
from pytest_qat.checks import CheckResult, ModelChecks
from pytest_qat.diagnosis import causes, recipes
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.probe import Probe
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

FAULTS: dict[str, tuple[Callable[..., QATCase], str, str | None]] = {
    "dim calibration": (faults.dim_calibration, "calibration-unlike-evaluation", None),
    "outlier in calibration": (faults.outlier_in_calibration, "outliers-set-the-range", None),
    "spikes": (faults.spikes, "outliers-set-the-range", None),
    "drifted statistics": (faults.drifted_statistics, "batch-norm-drifted", "norm"),
    "shifted labels": (faults.shifted_labels, "lost-in-training", None),
    "frozen observers": (faults.frozen_observers, "stale-range", "head"),
    "unlike columns": (faults.unlike_columns, "one-scale-for-unlike-columns", "first"),
    "heavy column": (faults.heavy_column, "rounding-too-coarse", "second"),
    "weights per tensor": (faults.per_tensor_weights, "one-scale-for-all-channels", "second"),
    "two codes": (faults.two_codes, "range-does-not-fit", "second"),
    "shared module": (faults.shared_module, "one-range-for-all-calls", "sum"),
}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CheckResult]]:
    """Return what judges the accuracy of a case, with its causes; nothing is tried that may mend it."""
    monkeypatch.setattr(causes, "mended", lambda run, changes: None)
    monkeypatch.setattr(recipes, "try_all", lambda case, trials, **_: [
        Probe(recipe=trial.recipe, skip=trial.skip, takes=False) for trial in trials])
    runs: list[ModelRun] = []

    def judge(case: QATCase, recipe: str = "", **settings: Any) -> CheckResult:
        runs.append(ModelRun(case, get_recipe(recipe or next(iter(case.recipes), "fx-x86")), RunSettings(
            **{"tolerances": case.tolerances, "diagnose_s": 60.0, "max_time_s": 1.0, **settings}), lock=MachineLock()))
        checks = ModelChecks(runs[-1], reference="faults:case")
        return with_causes(checks, checks.check("accuracy"))

    yield judge
    for run in runs:
        run.close()


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_named_with_its_place(name: str, judged: Callable[..., CheckResult]) -> None:
    make, code, module = FAULTS[name]
    result = judged(make(broken=True))
    assert result.verdict.outcome.value == "failed", result.verdict.reasons
    errors = [(found.code, found.module) for found in result.findings if found.severity == "error"]
    assert errors == [(code, module)], [(found.code, found.message) for found in result.findings]


@pytest.mark.parametrize("name", FAULTS)
def test_the_healthy_twin_passes_in_silence(name: str, judged: Callable[..., CheckResult]) -> None:
    result = judged(FAULTS[name][0](broken=False))
    assert result.verdict.outcome.value in ("passed", "inconclusive"), result.verdict.reasons
    assert [found.code for found in result.findings if found.severity != "note"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unlike columns", "dim calibration"])
def test_the_same_is_found_in_an_exported_model(name: str, judged: Callable[..., CheckResult]) -> None:
    make, code, module = FAULTS[name]
    result = judged(make(broken=True), "pt2e-torch")
    [error] = [found for found in result.findings if found.severity == "error"]
    assert error.code == code
    assert module is None or error.module is not None


def test_a_prepared_model_that_has_seen_nothing_is_refused(judged: Callable[..., CheckResult]) -> None:
    result = judged(faults.never_calibrated(broken=True))
    assert result.verdict.outcome.value == "blocked"
    assert "never calibrated" in str(result.verdict.reasons)
    assert judged(faults.never_calibrated(broken=False)).verdict.outcome.value == "passed"


def test_a_cause_comes_with_its_share_of_the_error_and_an_interval(judged: Callable[..., CheckResult]) -> None:
    [found] = [each for each in judged(faults.two_codes(broken=True)).findings if each.severity == "error"]
    low, high = found.evidence["interval"]
    assert 0.7 <= low <= found.evidence["share"] <= high <= 1
    assert found.evidence["places"] == ["the weight of second"]


def test_without_labels_rounding_is_not_blamed_for_what_training_changed(judged: Callable[..., CheckResult]) -> None:
    shifted = faults.shifted_labels(broken=True)
    result = judged(replace(shifted, eval_data=None))
    assert result.verdict.outcome.value == "failed", "training has made another model of it"
    codes = [found.code for found in result.findings]
    assert "changed-by-training" in codes
    assert [found.code for found in result.findings if found.severity == "error"] == []
    assert next(found.code for found in judged(replace(faults.two_codes(broken=True), eval_data=None)).findings
            if found.severity == "error") == "range-does-not-fit"


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_nothing_is_looked_for_without_time(seconds: float, judged: Callable[..., CheckResult]) -> None:
    result = judged(faults.two_codes(broken=True), diagnose_s=seconds)
    assert [found.code for found in result.findings if found.severity == "error"] == []


def test_looking_leaves_the_prepared_model_as_it_was(judged: Callable[..., CheckResult]) -> None:
    case = faults.never_calibrated(broken=True)
    assert case.prepared is not None
    before = {name: tensor.clone() for name, tensor in case.prepared.state_dict().items()}
    judged(case)
    assert all(torch.equal(before[name], tensor) for name, tensor in case.prepared.state_dict().items())


def test_behind_one_cause_another_is_found(judged: Callable[..., CheckResult]) -> None:
    case = faults.per_tensor_weights(broken=True)
    with torch.no_grad():  # what destroys the outputs hides what destroys them, too
        case.model.norm.weight[1] *= 5000
        case.model.norm.bias[1] *= 5000
        case.model.second.weight[:, 1] /= 5000
    found = {(each.module, each.code) for each in judged(case).findings if "place" in each.evidence}
    assert {("first", "one-scale-for-unlike-columns"), ("second", "one-scale-for-all-channels")} <= found
