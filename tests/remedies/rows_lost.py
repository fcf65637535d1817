"""Advice about accuracy that was lost on the way, followed on models with one known fault each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from fixtures import faults
from pytest_qat.case import QATCase
from pytest_qat.checks import CheckResult, ModelChecks
from pytest_qat.core import memory
from pytest_qat.core.memory import hold_to_memory
from pytest_qat.diagnosis import recipes
from pytest_qat.diagnosis.causes import _accuracy, with_causes
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.probe import Probe
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe
from tests.remedies.walk import Row, World


def lost(make: Callable[..., QATCase], *, broken: bool) -> Callable[[World], Any]:
    """Judge the accuracy of a case, and look for what lost it."""
    def work(world: World) -> object:
        case = make(broken=broken)
        run = ModelRun(case, get_recipe(next(iter(case.recipes), "fx-x86")), RunSettings(
            tolerances=case.tolerances, diagnose_s=60.0, max_time_s=1.0), lock=MachineLock())
        try:
            result: CheckResult = ModelChecks(run, reference="faults:case").check("accuracy")
            run.converted()  # or it says what stopped it
            return _accuracy(run, result) if result.verdict.outcome.value == "failed" else ""
        finally:
            run.close()
    return work


def mended(make: Callable[..., QATCase], **changes: Any) -> Callable[[World], Any]:
    """Judge the accuracy of a case with its faults, and return what was tried."""
    def work(world: World) -> object:
        world.patch.setattr(recipes, "try_all", lambda case, trials, **_: [
            Probe(recipe=trial.recipe, skip=trial.skip, takes=False) for trial in trials])
        case = replace(make(), **changes)
        run = ModelRun(case, get_recipe("fx-x86"), RunSettings(
            tolerances=case.tolerances, diagnose_s=60.0, max_time_s=1.0), lock=MachineLock(world.path))
        try:
            checks = ModelChecks(run, reference="faults:case")
            found = with_causes(checks, checks.check("accuracy")).findings
            return [finding for finding in found if "remedies" in finding.evidence]
        finally:
            run.close()
    return work


def tried(make: Callable[..., QATCase], text: str, path: str = "diagnosis/changes.py", **changes: Any) -> Row:
    return Row(path=path, text=text, calls=mended(make), follow=mended(make, **changes))


def keeps_statistics(prepared: nn.Module) -> None:
    for module in prepared.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0
    train = faults.drifted_statistics().train
    assert train is not None
    train(prepared)


def row(make: Callable[..., QATCase], text: str, path: str = "diagnosis/lost.py") -> Row:
    return Row(path=path, text=text, calls=lost(make, broken=True), follow=lost(make, broken=False))


def roomy(gibibytes: float) -> Callable[[World], object]:
    """Ask for the weights of a model of that size, where 16 GiB are left."""
    def work(world: World) -> object:
        world.patch.setattr(memory, "available_memory_bytes", lambda: 16 * 2**30)
        return hold_to_memory("net", int(gibibytes * 2**30))
    return work


_ROUNDING = "diagnosis/rounding.py"
LOST_ROWS = [
    row(faults.frozen_observers, "leave observers on until weights"),
    row(faults.outlier_in_calibration, "take these values out of calibration_data"),
    row(faults.dim_calibration, "give calibration_data like those"),
    row(faults.drifted_statistics, "leave out train and train_data: the PTQ model was measured"),
    row(faults.drifted_statistics, "{}freeze batch norm's statistics"),
    row(faults.shifted_labels, "{}look at the training loop"),
    row(faults.two_codes, "give these values an observer of their own", _ROUNDING),
    row(faults.spikes, "clip these values in the model", _ROUNDING),
    row(faults.shared_module, "use one module for each call", _ROUNDING),
    row(faults.per_tensor_weights, "quantize these weights per channel", _ROUNDING),
    row(faults.unlike_columns, "bring the columns to one range", _ROUNDING),
    row(faults.heavy_column, "leave this module in float with skip=", _ROUNDING),
    row(faults.never_calibrated, "run representative batches through the prepared model", "pipeline/finite.py"),
    tried(faults.heavy_column, "give the QATCase {}.", "diagnosis/remedies.py", skip=("second",)),
    tried(faults.dim_calibration, "give calibration_data that look like eval_data", calibration_data=[faults.TRAIN[0]]),
    tried(faults.shifted_labels, "leave out train and train_data (their inputs", train_data=None, loss_fn=None),
    tried(faults.drifted_statistics, "set momentum to 0 in every batch norm", train=keeps_statistics),
    Row(path="core/memory.py", text="Give a smaller configuration of the model", calls=roomy(1.5), follow=roomy(0.5)),
]
