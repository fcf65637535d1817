"""One model through one recipe: case -> prepare -> calibrate -> fine-tune -> convert -> deploy -> measure.

`ModelRun` computes each stage once, on first need, each from its own seed, so that results do not depend on which
checks run or in what order. A stage that failed fails again, with the same error, for everything that needs it.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_qat.case import QATCase, Tolerances, calibration_batches
from pytest_qat.core.batches import call
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine, threads, without_fast_path
from pytest_qat.diagnosis.divergence import Divergence, first_divergence
from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.exported.model import as_module
from pytest_qat.findings import Finding
from pytest_qat.finetune import FineTuning, Progress, calibrate, fine_tune, silent, untrained_copy
from pytest_qat.measure import evaluation
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.coverage import Coverage, coverage_of_kernels, measure_coverage
from pytest_qat.measure.latency import TimingSettings
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.measure.memory import Memory, MemoryProbes
from pytest_qat.measure.parity import Parity, compare_parity
from pytest_qat.measure.roundtrip import check_roundtrip, quantized_tensors
from pytest_qat.measure.speed import Speed, measure_speed
from pytest_qat.pipeline import preflight
from pytest_qat.pipeline.first_call import try_once
from pytest_qat.recipe import Recipe
from pytest_qat.runtimes import Deployed, DeployedPair, DeploySettings, load_runtime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.workflows import ConvertedModel, PreparedModel, load_workflow
from pytest_qat.workflows.known_errors import explain, unexplained
from pytest_qat.workflows.observers import (
    fake_quantizers,
    resume_fake_quantize,
    switch_fake_quantize,
    switch_observers,
)

__all__ = ["ModelRun", "NotApplicable", "RunSettings", "StageFailed"]

T = TypeVar("T")
PARITY_BATCHES = 4
_OTHERS_CODE = ("prepare", "convert", "deploy")
"""Stages in which quantization code of others works on the user's model."""
LEAST_TIMING_S = 1.0
"""A report is worth a second of timing, even where the verdict is sure before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the command line decides for a run.

    Attributes:
        tolerances: What the int8 model must hold.
        threads: Intra-op threads while timing.
        max_time_s: Budget of the speed measurement, in seconds.
        seed: Seed of every stage.
        device: Where fine-tuning takes place.
        strict: Whether inconclusive counts as failed.
        work_threads: Intra-op threads of every stage but timing; None: as torch has it.
        batches: Further batch sizes to compare latencies at.
        memory: Whether to measure peak memory, which takes two processes.
        stage_timeout_s: Most seconds for building artifacts in other processes.
    """

    tolerances: Tolerances
    threads: int = 1
    max_time_s: float = 20.0
    seed: int = 0
    device: str = "cpu"
    strict: bool = False
    work_threads: int | None = None
    batches: tuple[int, ...] = ()
    memory: bool = False
    stage_timeout_s: float = 900.0


class StageFailed(Exception):
    """A stage raised; `error` is what it raised, `stage` its name."""

    def __init__(self, stage: str, error: Exception) -> None:
        super().__init__(f"{stage} failed")
        self.stage = stage
        self.error = error


class NotApplicable(Exception):
    """A check has nothing to look at in this run; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Converted:
    """What training and converting gave; `left_off` fake-quantizers were off at the end of training."""

    converted: ConvertedModel
    prepared: PreparedModel | None
    ptq: ConvertedModel | None
    fine_tuning: FineTuning
    left_off: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What training gave."""

    prepared: PreparedModel
    ptq: ConvertedModel | None
    fine_tuning: FineTuning
    left_off: int


class ModelRun:
    """The stages of one model and recipe, each computed once.

    Args:
        case: The user's model; never changed.
        recipe: How to quantize and where to run.
        settings: Options.
        lock: The machine's timing lock.
        progress: Told about training steps.
        shared: Where runs of the same case and settings by other recipes find what was trained already.
    """

    def __init__(self, case: QATCase, recipe: Recipe, settings: RunSettings, *, lock: MachineLock,
                 progress: Callable[[str], contextlib.AbstractContextManager[Progress]] | None = None,
                 shared: dict[Any, Any] | None = None) -> None:
        self.case = case
        self.recipe = recipe
        self.settings = settings
        self._lock = lock
        self._progress = progress or _no_progress
        self._shared: dict[Any, Any] = {} if shared is None else shared
        self._stages: dict[str, tuple[Any, Exception | None]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._probes: MemoryProbes | None = None
        self._computing = False

    # -- stages ---------------------------------------------------------------------------------------------------

    def inputs(self) -> nn.Module:
        """Return a copy of the float model in eval mode that is known to run on its example inputs."""
        return self._stage("inputs", lambda: preflight.checked_model(self.case))

    def prepared(self) -> PreparedModel:
        """Return the prepared (not yet calibrated) model."""
        self.inputs()
        return self._stage("prepare", lambda: self._once("prepared", self._prepare))

    def converted(self) -> _Converted:
        """Return the fine-tuned and converted model with the post-training-quantized control."""
        if self.case.converted is None:
            self.prepared()
        else:
            self.inputs()
        return self._stage("convert", self._convert)

    def coverage(self) -> Coverage:
        """Return how much of the model runs in int8."""
        done = self.converted()
        reasons = done.prepared.float_modules if done.prepared else {}
        kernels = self.deployed().int8["contiguous"].kernels
        if kernels is not None:
            return self._stage("coverage", lambda: coverage_of_kernels(
                self.inputs(), kernels, self.case.example_inputs, reasons=reasons))
        return self._stage("coverage", lambda: measure_coverage(
            self.inputs(), done.converted.module, self.case.example_inputs, reasons=reasons))

    def parity(self) -> Parity:
        """Return how far the converted model agrees with the prepared one.

        Raises:
            NotApplicable: the case brings its own converted model and no prepared one, or one that simulates nothing.
        """
        done = self.converted()
        if done.prepared is None:
            raise NotApplicable("the case gives converted= without prepared=, so there is nothing to compare with.")
        fake = done.prepared.module
        if not any(True for _ in fake_quantizers(fake)):
            raise NotApplicable("the prepared model holds no fake-quantize modules, so it does not simulate int8.")
        shipped = self.deployed().int8["contiguous"]
        return self._stage("parity", lambda: self._parity(fake, shipped))

    def divergence(self) -> Divergence | None:
        """Return the first module whose int8 kernel leaves what the prepared model simulated, if there is one."""
        done = self.converted()
        prepared = done.prepared
        if prepared is None:
            return None
        return self._stage("divergence", lambda: first_divergence(
            prepared.module, done.converted.module, calibration_batches(self.case, limit=1)[0]))

    def deployed(self) -> DeployedPair:
        """Return the float and the int8 artifact, deployed to the recipe's runtime."""
        self.converted()
        return self._stage("deploy", self._deploy)

    def accuracy(self) -> Accuracy:
        """Return paired scores of float, control and int8."""
        self.deployed()
        return self._stage("accuracy", self._accuracy)

    def speed(self, floor: float) -> Speed:
        """Return the paired latency, measured with the machine to itself until it settles `floor`.

        An earlier measurement whose interval settles this floor, too, is used again.
        """
        pair = self.deployed()
        eager = self.inputs()
        budget_s = self.settings.max_time_s
        for name, (known, _) in self._stages.items():
            if name.startswith("speed") and known is not None and known.like_for_like.settles(floor):
                return known  # type: ignore[no-any-return]
        return self._stage(f"speed at {floor}", lambda: measure_speed(
            fp32=pair.fp32, int8=pair.int8, eager=lambda: call(eager, self.case.example_inputs),
            inputs=self.case.example_inputs, floor=floor, batches=self.settings.batches,
            settings=TimingSettings(max_time_s=budget_s, least_s=min(LEAST_TIMING_S, budget_s / 4))), timing=True)

    def memory(self) -> Memory:
        """Return the peak memory of both sides, each in a process of its own.

        Raises:
            NotApplicable: the settings do not ask for it.
        """
        if not self.settings.memory:
            raise NotApplicable("not measured: give --qat-memory=on")
        self.deployed()
        return self._stage("memory", self._memory)

    def roundtrip(self) -> tuple[int, list[Finding]]:
        """Return how many quantized tensors the int8 model has, and which of their round trips break the law."""
        module = self.converted().converted.module
        tensors = self._stage("qparams", lambda: quantized_tensors(module))
        return len(tensors), self._stage("roundtrip", lambda: check_roundtrip(tensors, seed=self.settings.seed))

    def close(self) -> None:
        """Forget every stage and delete the artifacts."""
        self._stages.clear()
        if self._probes is not None:
            self._probes.close()
            self._probes = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # -- how they are made ----------------------------------------------------------------------------------------

    def _stage(self, name: str, make: Callable[[], T], *, timing: bool = False) -> T:
        if name not in self._stages:
            self._stages[name] = self._compute(name, make, timing=timing)
        value, error = self._stages[name]
        if error is not None:
            raise StageFailed(name, error)
        return value  # type: ignore[no-any-return]

    def _compute(self, name: str, make: Callable[[], T], *, timing: bool) -> tuple[T | None, Exception | None]:
        assert not self._computing, "unreachable because stages compute what they need first; the lock is held once"
        held = self._lock.alone() if timing else self._lock.shared()
        self._computing = True
        try:
            with (held, preserved_torch_state(seed=self.settings.seed), quantized_engine(self.recipe.engine),
                  threads(self.settings.threads if timing else self.settings.work_threads),
                  contextlib.nullcontext() if timing else without_fast_path()):
                return make(), None
        except (CheckFailed, QATError) as error:
            return None, error
        except Exception as error:
            finding = explain(error, model=self.case.model, stage=name)
            if finding is None and name not in _OTHERS_CODE:
                return None, error
            failed = CheckFailed([f"{name} failed: {type(error).__name__}."],
                                 findings=[finding or unexplained(error, model=self.case.model, stage=name)])
            failed.__cause__ = error
            return None, failed
        finally:
            self._computing = False

    def _prepare(self) -> PreparedModel:
        if self.case.prepared is not None:
            preflight.check_prepared(self.case, self.recipe)
            return PreparedModel(module=as_module(copy.deepcopy(self.case.prepared)), float_modules={})
        return load_workflow(self.recipe.workflow).prepare(self.case, self.recipe)

    def _convert(self) -> _Converted:
        if self.case.converted is not None:
            module = as_module(copy.deepcopy(self.case.converted)).eval()
            given = self._prepare() if self.case.prepared is not None else None
            left_off = 0
            if given is not None:
                switch_observers(given.module.eval(), on=False)
                left_off = resume_fake_quantize(given.module)
            try_once(module, self.case, engine=self.recipe.engine)
            return _Converted(converted=ConvertedModel(module=module), prepared=given, ptq=None,
                              fine_tuning=FineTuning(kind="given"), left_off=left_off)
        probes = self._start_probes() if self.settings.memory else None  # they import torch meanwhile
        trained = self._once("trained", self._train)
        converted = self._once(f"converted, folded={self.recipe.fold_quantize}", lambda: load_workflow(
            self.recipe.workflow).convert(trained.prepared, self.recipe))
        try_once(converted.module, self.case, engine=self.recipe.engine)
        if probes is not None:
            probes.wait_until_ready()  # or they would disturb a timing, of this process or of another
        return _Converted(converted=converted, prepared=trained.prepared, ptq=trained.ptq,
                          fine_tuning=trained.fine_tuning, left_off=trained.left_off)

    def _train(self) -> _Trained:
        workflow = load_workflow(self.recipe.workflow)
        first = self.prepared()
        prepared = PreparedModel(module=copy.deepcopy(first.module), float_modules=first.float_modules)
        ptq = None
        if self.case.prepared is None:
            calibrate(prepared.module, calibration_batches(self.case, limit=evaluation.CALIBRATION_BATCHES))
            twin = PreparedModel(module=untrained_copy(prepared.module), float_modules=prepared.float_modules)
            if workflow.CONVERTS_SLOWLY:
                ptq = ConvertedModel(module=twin.module)  # as fake-quantize simulates it
            else:
                ptq = workflow.convert(twin, self.recipe)
                try_once(ptq.module, self.case, engine=self.recipe.engine)  # before any time goes into training
        with self._progress(f"{self.case.label} [{self.recipe.name}]") as progress:
            def step_done(step: int, total: int, loss: float) -> None:
                progress(step, total, loss)
                self._lock.give_way()

            done = fine_tune(prepared.module, self.case, device=self.settings.device, progress=step_done)
        return _Trained(prepared=prepared, ptq=ptq, fine_tuning=done, left_off=resume_fake_quantize(prepared.module))

    def _once(self, what: str, make: Callable[[], T]) -> T:
        """Make something once for all recipes that quantize in the same way and differ in the runtime only."""
        key = (what, self.recipe.workflow, self.recipe.engine, self.recipe.quantizer)
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # type: ignore[no-any-return]

    def _deploy(self) -> DeployedPair:
        workflow = load_workflow(self.recipe.workflow)
        settings = DeploySettings(engine=self.recipe.engine, threads=self.settings.threads,
                                  timeout_s=self.settings.stage_timeout_s)
        pair = load_runtime(self.recipe.runtime).deploy(
            workflow.float_twin(self.case).eval(), self.converted().converted.module, self.case.example_inputs,
            self._artifacts(), settings)
        shipped = pair.fp32["contiguous"]
        with shipped.session():
            preflight.hold_to_model(self.inputs(), partial(run_batch, shipped), [
                self.case.example_inputs, *calibration_batches(self.case, limit=1)])
        return pair

    def _run_shipped(self, deployed: Deployed, inputs: Any) -> Any:
        self._lock.give_way()
        return run_batch(deployed, inputs)

    def _memory(self) -> Memory:
        pair = self.deployed()
        programs = {}
        for side, form in (("fp32", pair.fp32["contiguous"]), ("int8", pair.int8["contiguous"])):
            programs[side] = self._artifacts() / f"{side}.program"
            form.save_program(self.case.example_inputs, programs[side])
        return self._start_probes().measure(programs)

    def _start_probes(self) -> MemoryProbes:
        """Start the processes that measure memory, or return those that wait."""
        self._probes = self._probes or MemoryProbes(self.recipe.runtime, threads=self.settings.threads)
        return self._probes

    def _artifacts(self) -> Path:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="pytest-qat-")
        return Path(self._folder.name)

    def _parity(self, fake: nn.Module, shipped: Deployed) -> Parity:
        plain = copy.deepcopy(fake)
        switch_fake_quantize(plain, on=False)
        with torch.no_grad():
            return compare_parity(partial(call, plain), partial(call, fake), partial(self._run_shipped, shipped),
                                  calibration_batches(self.case, limit=PARITY_BATCHES))

    def _accuracy(self) -> Accuracy:
        done = self.converted()
        slow = load_workflow(self.recipe.workflow).CONVERTS_SLOWLY
        return evaluation.measure_accuracy(
            self.case, self.deployed(), run=self._run_shipped, seed=self.settings.seed, ptq_simulated=slow,
            ptq=done.ptq.module if done.ptq else None, prepared=done.prepared.module if done.prepared else None)


@contextlib.contextmanager
def _no_progress(label: str) -> Iterator[Progress]:
    del label
    yield silent
