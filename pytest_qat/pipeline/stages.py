"""How each stage of a run is made: prepare, train, convert, deploy, and the comparison of prepared with converted.

Each stage has a type of its own, so that none can be left out: training takes a `PreparedModel` and gives a
`TrainedModel`, only that becomes a `Conversion`, and only a `Conversion` is deployed. When a stage is made, under which
lock, seed and engine, is the business of `run`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core import progress
from pytest_qat.core.batches import call
from pytest_qat.errors import TrainingError
from pytest_qat.exported.model import ExportedModel, as_module
from pytest_qat.exported.program import export_program
from pytest_qat.finetune import FineTuning, calibrate, fine_tune, untrained_copy
from pytest_qat.measure.evaluation import CALIBRATION_BATCHES
from pytest_qat.measure.parity import Parity, compare_parity
from pytest_qat.pipeline.finite import refuse_broken
from pytest_qat.pipeline.first_call import try_once, with_right_kernels
from pytest_qat.pipeline.preflight import check_prepared, check_shapes, hold_to_model
from pytest_qat.pipeline.probe import Probe, Trial
from pytest_qat.recipe import Recipe
from pytest_qat.runtimes import DeployedPair, DeploySettings, load_runtime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.runtimes.exported import ExportedRuntime
from pytest_qat.workflows import ConvertedModel, PreparedModel, load_workflow
from pytest_qat.workflows.observers import (
    resume_fake_quantize,
    round_as_converted,
    switch_fake_quantize,
    switch_observers,
)

__all__ = ["Conversion", "SharedStages", "TrainedModel", "check_fit", "convert", "deploy", "measure_parity", "prepare",
           "take_converted", "train"]

T = TypeVar("T")
PARITY_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A prepared model after calibration and fine-tuning.

    Attributes:
        prepared: The trained module, with fake-quantize on.
        ptq: The control: the same model calibrated and not trained, converted where that is quick; None where the
            case brings its own prepared model.
        fine_tuning: What training did.
        left_off: Number of fake-quantize modules that were off when training ended.
    """

    prepared: PreparedModel
    ptq: ConvertedModel | None
    fine_tuning: FineTuning
    left_off: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The int8 model with what it was made from.

    Attributes:
        int8: The converted model.
        prepared: The model that it was converted from, with fake-quantize on; None if the case gives only the
            converted one.
        ptq: The untrained control, as in `TrainedModel`; None where there is none.
        fine_tuning: What training did.
        left_off: Number of fake-quantize modules that were off when training ended.
    """

    int8: ConvertedModel
    prepared: PreparedModel | None
    ptq: ConvertedModel | None
    fine_tuning: FineTuning
    left_off: int


class SharedStages:
    """Stages of one case that recipes with the same workflow, engine and quantizer have in common.

    Args:
        probes: What came of trials on the case; what is tried later is added.

    Attributes:
        probing_s: Seconds that went into trials of the case so far.
    """

    def __init__(self, *, probes: dict[Trial, Probe] | None = None) -> None:
        self.probing_s = 0.0
        self._made: dict[Hashable, Any] = {}
        self._probes = {} if probes is None else probes

    def once(self, stage: str, recipe: Recipe, make: Callable[[], T]) -> T:
        """Return what `make` gave for the first recipe that quantizes like this one; it is called at most once."""
        key = (stage, recipe.workflow, recipe.engine, recipe.quantizer)
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def probed(self, trials: Sequence[Trial], probe: Callable[[Sequence[Trial]], Sequence[Probe]]) -> list[Probe]:
        """Return what came of trials on the case; each is made once, `probe` gets those that were not."""
        missing = [trial for trial in trials if trial not in self._probes]
        self._probes.update(zip(missing, probe(missing) if missing else (), strict=True))
        return [self._probes[trial] for trial in trials]


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return the case's model with fake-quantize modules inserted, not yet calibrated; or its own prepared one.

    Raises:
        InvalidCase: the case's own prepared model comes from another workflow.
        CheckFailed: the model cannot be prepared.
    """
    if case.prepared is None:
        prepared = load_workflow(recipe.workflow).prepare(case, recipe)
    else:
        check_prepared(case, recipe)
        prepared = PreparedModel(module=as_module(copy.deepcopy(case.prepared)), float_modules={})
    round_as_converted(prepared.module)
    return prepared


def check_fit(case: QATCase, recipe: Recipe, prepared: PreparedModel, *, timeout_s: float) -> None:
    """Find out before training what would stop the artifact from being built or from taking the data.

    Args:
        case: Whose data to look at.
        recipe: Where the model will run.
        prepared: The prepared model.
        timeout_s: Most seconds for building.

    Raises:
        CheckFailed: the artifact would not fit the data, or would not be built in time.
    """
    runtime = load_runtime(recipe.runtime)
    if isinstance(runtime, ExportedRuntime):
        check_shapes(case)
        if isinstance(prepared.module, ExportedModel):
            runtime.check_graph(prepared.module.graph_module.graph, timeout_s=timeout_s)


def train(case: QATCase, recipe: Recipe, first: PreparedModel, *, device: str,
          between_steps: Callable[[], None]) -> TrainedModel:
    """Calibrate and fine-tune a copy of a prepared model, after a control without training was made of it.

    Args:
        case: Whose data and loop to use.
        recipe: How to convert the control.
        first: The prepared model; left as it is.
        device: Where to train.
        between_steps: Called after each step of training.

    Raises:
        DataError: calibration or training data do not fit the model.
        StageError: the case's own training failed.
        CheckFailed: the control cannot run.
    """
    workflow = load_workflow(recipe.workflow)
    prepared = replace(first, module=copy.deepcopy(first.module))
    ptq = None
    if case.prepared is None:
        calibrate(prepared.module, calibration_batches(case, limit=CALIBRATION_BATCHES))
        twin = replace(prepared, module=untrained_copy(prepared.module))
        if workflow.CONVERTS_SLOWLY:
            ptq = ConvertedModel(module=twin.module)  # as fake-quantize simulates it
        else:
            # before any time goes into training
            with progress.step("converting the control"):
                ptq = with_right_kernels(workflow.convert(twin, recipe), case, engine=recipe.engine)
    try:
        done = fine_tune(prepared.module, case, device=device, between_steps=between_steps)
    except TrainingError as error:
        refuse_broken(prepared.module, ended=error.message)
        raise
    return TrainedModel(prepared=prepared, ptq=ptq, fine_tuning=done, left_off=resume_fake_quantize(prepared.module))


def convert(case: QATCase, recipe: Recipe, trained: TrainedModel, shared: SharedStages) -> Conversion:
    """Convert a trained model and call the result once.

    Raises:
        CheckFailed: training left weights that are not finite, or the model cannot be converted, or the converted one
            cannot run.
        StageError: the converted model raised an error that is not a known one.
    """
    refuse_broken(trained.prepared.module)
    int8 = shared.once(f"converted, folded={recipe.fold_quantize}", recipe, lambda: with_right_kernels(
        load_workflow(recipe.workflow).convert(trained.prepared, recipe), case, engine=recipe.engine))
    return Conversion(int8=int8, prepared=trained.prepared, ptq=trained.ptq, fine_tuning=trained.fine_tuning,
                      left_off=trained.left_off)


def take_converted(case: QATCase, recipe: Recipe) -> Conversion:
    """Return the converted model that the case brings, with its prepared one if it brings that, too.

    Raises:
        CheckFailed: the converted model cannot run.
        StageError: it raised an error that is not a known one.
    """
    assert case.converted is not None, "unreachable because only a case with a converted model comes here"
    int8 = as_module(copy.deepcopy(case.converted)).eval()
    given, left_off = None, 0
    if case.prepared is not None:
        given = prepare(case, recipe)
        switch_observers(given.module.eval(), on=False)
        left_off = resume_fake_quantize(given.module)
    try_once(int8, case, engine=recipe.engine)
    return Conversion(int8=ConvertedModel(module=int8), prepared=given, ptq=None,
                      fine_tuning=FineTuning(kind="given"), left_off=left_off)


def deploy(case: QATCase, recipe: Recipe, conversion: Conversion, *, float_model: nn.Module, folder: Path,
           settings: DeploySettings) -> DeployedPair:
    """Write the float and the int8 artifact, and check that the float one computes what the user's model does.

    Args:
        case: Whose inputs count.
        recipe: Which runtime.
        conversion: The int8 model.
        float_model: The user's model in eval mode.
        folder: Where the artifacts go.
        settings: Engine, threads and time limit.

    Raises:
        CheckFailed: the runtime cannot take a model, or the deployed float model computes something else.
        StageError: writing or converting failed otherwise.
    """
    twin = load_workflow(recipe.workflow).float_twin(case).eval()
    with progress.step(f"building the artifacts of {recipe.runtime}"):
        pair = load_runtime(recipe.runtime).deploy(twin, conversion.int8.module, case.example_inputs, folder, settings)
    shipped = pair.fp32["contiguous"]
    with shipped.session():
        hold_to_model(float_model, partial(run_batch, shipped),
                      [case.example_inputs, *calibration_batches(case, limit=1)], exported=None if shipped.batch is None
                      else lambda: export_program(twin, case.example_inputs, any_batch=False).module())
    return pair


def measure_parity(case: QATCase, prepared: nn.Module, shipped: Callable[[Any], Any]) -> Parity:
    """Compare the outputs of the prepared model with those of the int8 artifact.

    Args:
        case: Whose calibration data to use.
        prepared: The trained model with fake-quantize on.
        shipped: Runs the int8 artifact on a batch.
    """
    plain = copy.deepcopy(prepared)
    switch_fake_quantize(plain, on=False)
    with torch.no_grad():
        return compare_parity(partial(call, plain), partial(call, prepared), shipped,
                              calibration_batches(case, limit=PARITY_BATCHES))
