"""One model through one recipe: case -> prepare -> calibrate -> fine-tune -> convert -> deploy -> measure.

`ModelRun` computes each stage once, on first need, each from its own seed, so that results do not depend on which
checks run or in what order. A stage that failed fails again, with the same error, for everything that needs it. How
the stages are made is in `stages`. A run knows nothing of verdicts and causes: whoever wants to try another recipe,
case or setting makes another run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.core import progress
from pytest_qat.core.batches import call
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine, threads, without_fast_path
from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.findings import Finding
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.coverage import Coverage, coverage_of_kernels, measure_coverage
from pytest_qat.measure.evaluation import Subjects, measure_accuracy
from pytest_qat.measure.latency import TimingSettings
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.measure.memory import Memory, MemoryProbes
from pytest_qat.measure.parity import Parity
from pytest_qat.measure.roundtrip import check_roundtrip, quantized_tensors
from pytest_qat.measure.speed import Speed, measure_speed
from pytest_qat.pipeline import stages
from pytest_qat.pipeline.plain_model import with_plain_model
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.pipeline.scoring_trial import try_scoring
from pytest_qat.pipeline.stages import Conversion, SharedStages, TrainedModel
from pytest_qat.recipe import Recipe
from pytest_qat.runtimes import Deployed, DeployedPair, DeploySettings
from pytest_qat.runtimes.base import OpTime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.workflows import PreparedModel, load_workflow
from pytest_qat.workflows.known_errors import explain, unexplained
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["ModelRun", "NotApplicable", "RunSettings", "StageFailed"]

T = TypeVar("T")
_OTHERS_CODE = ("prepare", "convert", "deploy")
"""Stages in which PyTorch's or a runtime's quantization code works on the user's model."""
LEAST_TIMING_S = 1.0
"""Timing takes at least this long, even where the verdict is certain earlier, so that the report shows good figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the command line decides for a run.

    Attributes:
        tolerances: The bounds that the int8 model must keep.
        threads: Intra-op threads while timing.
        max_time_s: Budget of the speed measurement, and of drawing samples again for a `set_metric`, in seconds.
        seed: Seed of every stage.
        device: Where fine-tuning takes place.
        strict: Whether inconclusive counts as failed.
        work_threads: Intra-op threads of every stage but timing; None: torch's own number.
        batches: Further batch sizes to compare latencies at.
        memory: Whether to measure peak memory, which takes two processes.
        stage_timeout_s: Time limit for building artifacts in other processes, in seconds.
        diagnose_s: Most seconds to spend on what helps after a check has failed; 0: none.
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
    diagnose_s: float = 0.0


class StageFailed(Exception):
    """A stage raised; `error` is what it raised, `stage` its name."""

    def __init__(self, stage: str, error: Exception) -> None:
        super().__init__(f"{stage} failed")
        self.stage = stage
        self.error = error


class NotApplicable(Exception):
    """A check has nothing to look at in this run; the message says why."""


class ModelRun:
    """The stages of one model and recipe, each computed once.

    Args:
        case: The user's model; never changed.
        recipe: How to quantize and where to run.
        settings: What the command line decides.
        lock: The machine's timing lock.
        shared: Stages in common with runs of the same case and settings by other recipes; None: nothing is shared.

    Attributes:
        seconds: What each stage took that was computed.
    """

    def __init__(self, case: QATCase, recipe: Recipe, settings: RunSettings, *, lock: MachineLock,
                 shared: SharedStages | None = None) -> None:
        self.case, self.notes_on_model = with_plain_model(case)
        self.recipe = recipe
        self.settings = settings
        self._lock = lock
        self.shared = SharedStages() if shared is None else shared
        self._stages: dict[str, tuple[Any, Exception | None]] = {}
        self.seconds: dict[str, float] = {}
        self._speeds: list[Speed] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._probes: MemoryProbes | None = None
        self._computing = False

    # -- stages ---------------------------------------------------------------------------------------------------

    def inputs(self) -> nn.Module:
        """Return a copy of the float model in eval mode that is known to run on its example inputs."""
        return self.stage("inputs", self._inputs)

    def prepared(self) -> PreparedModel:
        """Return the prepared (not yet calibrated) model."""
        self.inputs()
        return self.stage("prepare", self._prepare)

    def converted(self) -> Conversion:
        """Return the fine-tuned and converted model with the post-training-quantized control."""
        if self.case.converted is not None:
            self.inputs()
            return self.stage("convert", lambda: stages.take_converted(self.case, self.recipe))
        self.prepared()
        return self.stage("convert", self._convert)

    def deployed(self) -> DeployedPair:
        """Return the float and the int8 artifact, deployed to the recipe's runtime."""
        conversion, float_model = self.converted(), self.inputs()
        settings = DeploySettings(engine=self.recipe.engine, threads=self.settings.threads,
                                  timeout_s=self.settings.stage_timeout_s)
        return self.stage("deploy", lambda: stages.deploy(
            self.case, self.recipe, conversion, float_model=float_model, folder=self._artifacts(), settings=settings))

    def coverage(self) -> Coverage:
        """Return how much of the model runs in int8."""
        done, float_model = self.converted(), self.inputs()
        reasons = {**(done.prepared.float_modules if done.prepared else {}), **done.int8.float_modules}
        kernels = self.deployed().int8["contiguous"].kernels
        if kernels is not None:
            return self.stage("coverage", lambda: coverage_of_kernels(
                float_model, kernels, self.case.example_inputs, reasons=reasons))
        return self.stage("coverage", lambda: measure_coverage(
            float_model, done.int8.module, self.case.example_inputs, reasons=reasons))

    def parity(self) -> Parity:
        """Return how far the converted model agrees with the prepared one.

        Raises:
            NotApplicable: the case brings its own converted model and no prepared one, or one that simulates nothing.
        """
        prepared = self.converted().prepared
        if prepared is None:
            raise NotApplicable("the case gives converted= without prepared=, so there is nothing to compare with.")
        fake = prepared.module
        if not any(True for _ in fake_quantizers(fake)):
            raise NotApplicable("the prepared model has no fake-quantize modules, so it does not simulate int8.")
        shipped = partial(self._run_shipped, self.deployed().int8["contiguous"])
        return self.stage("parity", lambda: stages.measure_parity(self.case, fake, shipped))

    def accuracy(self) -> Accuracy:
        """Return paired scores of float, control and int8."""
        done, pair = self.converted(), self.deployed()
        subjects = Subjects(
            pair=pair, run=self._run_shipped, ptq=done.ptq.module if done.ptq else None,
            prepared=done.prepared.module if done.prepared else None,
            ptq_simulated=load_workflow(self.recipe.workflow).CONVERTS_SLOWLY)
        return self.stage("accuracy", lambda: measure_accuracy(
            self.case, subjects, seed=self.settings.seed, budget_s=self.settings.max_time_s))

    def speed(self, floor: float) -> Speed:
        """Return the paired latency, measured with the machine to itself until it settles `floor`.

        An earlier measurement is used again if its interval settles this floor, too.
        """
        pair, eager = self.deployed(), self.inputs()
        for known in self._speeds:
            if known.like_for_like.settles(floor):
                return known
        budget_s = self.settings.max_time_s
        found = self.stage(f"speed at {floor}", lambda: measure_speed(
            fp32=pair.fp32, int8=pair.int8, eager=lambda: call(eager, self.case.example_inputs),
            inputs=self.case.example_inputs, floor=floor, batches=self.settings.batches,
            settings=TimingSettings(max_time_s=budget_s, least_s=min(LEAST_TIMING_S, budget_s / 4))), timing=True)
        self._speeds.append(found)
        return found

    def op_times(self, layouts: Mapping[str, str]) -> tuple[tuple[OpTime, ...], tuple[OpTime, ...]]:
        """Return what each op of a float and of an int8 call takes; nothing where the runtime does not tell.

        Args:
            layouts: Memory layout of each side.
        """
        pair, inputs = self.deployed(), self.case.example_inputs

        def timed(form: Deployed) -> tuple[OpTime, ...]:
            with form.session():
                return form.op_times(form.adapt(inputs))

        return self.stage("op times", lambda: (timed(pair.fp32[layouts["fp32"]]), timed(pair.int8[layouts["int8"]])),
                          timing=True)

    def memory(self) -> Memory:
        """Return the peak memory of both sides, each in a process of its own.

        Raises:
            NotApplicable: the settings do not ask for it.
        """
        if not self.settings.memory:
            raise NotApplicable("not measured: give --qat-memory=on")
        pair = self.deployed()
        return self.stage("memory", lambda: self._memory(pair))

    def roundtrip(self) -> tuple[int, list[Finding]]:
        """Return how many quantized tensors the int8 model has, and which of their round trips break the law."""
        module = self.converted().int8.module
        tensors = self.stage("qparams", lambda: quantized_tensors(module))
        return len(tensors), self.stage("roundtrip", lambda: check_roundtrip(tensors, seed=self.settings.seed))

    def stage(self, name: str, make: Callable[[], T], *, timing: bool = False) -> T:
        """Compute something once, as a stage of this run; diagnosis adds stages of its own.

        Args:
            name: Unique among the stages of the run.
            make: Computes it; every stage that it needs must have been computed before.
            timing: Whether it needs the machine to itself.

        Returns:
            What `make` returned the first time. It is called under the machine's lock, with torch's state kept, the
            run's seed, its quantized engine and its number of threads.

        Raises:
            StageFailed: `make` raised, now or the first time.
        """
        if name not in self._stages:
            began = time.monotonic()
            self._stages[name] = self._compute(name, make, timing=timing)
            self.seconds[name] = time.monotonic() - began
        value, error = self._stages[name]
        if error is not None:
            raise StageFailed(name, error)
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Forget every stage and delete the artifacts."""
        self._stages.clear()
        self._speeds.clear()
        if self._probes is not None:
            self._probes.close()
            self._probes = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # -- how they are computed ------------------------------------------------------------------------------------

    def _compute(self, name: str, make: Callable[[], T], *, timing: bool) -> tuple[T | None, Exception | None]:
        assert not self._computing, "unreachable because stages compute what they need first; the lock is held once"
        held = self._lock.alone() if timing else self._lock.shared()
        self._computing = True
        try:
            with (progress.step(name.partition(" at ")[0], subject=f"{self.case.label} [{self.recipe.name}]"), held,
                  preserved_torch_state(seed=self.settings.seed), quantized_engine(self.recipe.engine),
                  threads(self.settings.threads if timing else self.settings.work_threads),
                  progress.step("timing", budget_s=self.settings.max_time_s, still=True) if timing
                  else without_fast_path()):
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

    def _inputs(self) -> nn.Module:
        model = checked_model(self.case)
        try_scoring(self.case, model)
        return model

    def _prepare(self) -> PreparedModel:
        made = self.shared.once("prepared", self.recipe, lambda: stages.prepare(self.case, self.recipe))
        stages.check_fit(self.case, self.recipe, made, timeout_s=self.settings.stage_timeout_s)
        return made

    def _convert(self) -> Conversion:
        probes = self._start_probes() if self.settings.memory else None  # they import torch meanwhile
        trained = self.shared.once("trained", self.recipe, self._train)
        made = stages.convert(self.case, self.recipe, trained, self.shared)
        if probes is not None:
            probes.wait_until_ready()  # or they would disturb a timing, of this process or of another
        return made

    def _train(self) -> TrainedModel:
        return stages.train(self.case, self.recipe, self.prepared(), device=self.settings.device,
                            between_steps=self._lock.give_way)

    def _run_shipped(self, deployed: Deployed, inputs: Any) -> Any:
        self._lock.give_way()
        return run_batch(deployed, inputs)

    def _memory(self, pair: DeployedPair) -> Memory:
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

