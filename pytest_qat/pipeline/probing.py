"""Try a recipe on a model without training: prepare, convert, build the artifact, call it once.

A probe answers whether a recipe takes a model, how much of it then runs in int8, how small the file gets and, if asked,
whether the artifact computes what fake-quantize simulates and how fast it is; it says nothing about accuracy. It
happens in a forked child, so that a crash or a hang costs its time limit and nothing else.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches, without_training
from pytest_qat.core import progress
from pytest_qat.core.batches import call
from pytest_qat.core.forked import ChildEnd, Children, run_forked
from pytest_qat.core.system import can_fork
from pytest_qat.core.text import percent
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine, threads, without_fast_path
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import CheckFailed, MissingPackage, QATError, UnsupportedEnvironment
from pytest_qat.finetune import calibrate, untrained_copy
from pytest_qat.measure.coverage import coverage_of_kernels, measure_coverage
from pytest_qat.measure.latency import TimingSettings
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.measure.macs import count_macs
from pytest_qat.measure.speed import measure_speed
from pytest_qat.pipeline import stages
from pytest_qat.pipeline.first_call import with_right_kernels
from pytest_qat.pipeline.plain_model import with_plain_model
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.pipeline.probe import OUT_OF_TIME, Probe, Trial
from pytest_qat.recipe import Recipe, get_recipe
from pytest_qat.runtimes import DeployedPair, DeploySettings, load_runtime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.workflows import PreparedModel, load_workflow
from pytest_qat.workflows.known_errors import explain, unexplained

__all__ = ["ProbeSettings", "not_installed", "probe_recipe", "try_all"]

_TIMING_S = 3.0
"""Enough for an interval; what is closer to the floor than that stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Limits of probing.

    Attributes:
        timeout_s: Most seconds for one recipe.
        budget_s: Most seconds for all recipes together; those not begun by then are not tried.
        seed: Seed of each probe.
        at_once: Number of recipes that are tried at the same time.
        locks: Whether each trial holds the machine's lock: alone while it times, else shared. Trials that time need
            it, and whoever asks must not hold the lock then.
        floor: The coverage that the model is held to. Where preparing shows that it is out of reach, Inductor, which
            takes most of a minute, compiles nothing.
    """

    timeout_s: float = 120.0
    budget_s: float = 600.0
    seed: int = 0
    at_once: int = 2
    locks: bool = False
    floor: float = 0.0


def try_all(case: QATCase, trials: Sequence[Trial], *, settings: ProbeSettings,
            done: Callable[[Probe], None] = lambda probe: None) -> list[Probe]:
    """Make trials on a case, some at the same time, and return what came of each, in their order.

    Args:
        case: The user's model; never changed.
        trials: The most wanted first.
        settings: Limits.
        done: Told about each answer as it comes.
    """
    children = Children()
    with (progress.step("trying recipes", subject=case.label, total=len(set(trials)), unit="recipes",
                        limit_s=settings.budget_s) as shown,
          ThreadPoolExecutor(max_workers=settings.at_once) as pool):
        try:
            found = _all_tried(case, trials, settings, pool, children=children, shown=shown, done=done)
        except BaseException:  # such as Ctrl-C, which must not wait for the children
            children.kill()
            raise
    return [found[trial] for trial in trials]


def _all_tried(case: QATCase, trials: Sequence[Trial], settings: ProbeSettings, pool: ThreadPoolExecutor, *,
               children: Children, shown: progress.Step, done: Callable[[Probe], None]) -> dict[Trial, Probe]:
    ends = time.monotonic() + settings.budget_s
    found: dict[Trial, Probe] = {}
    waiting, running = list(dict.fromkeys(trials)), dict[Future[Probe], Trial]()
    while waiting or running:
        while waiting and len(running) < settings.at_once:
            left = ends - time.monotonic()
            if left <= 0:
                found |= {trial: Probe(recipe=trial.recipe, skip=trial.skip, takes=None, code=OUT_OF_TIME, reason=(
                    "not tried: the time for probing was used up.")) for trial in waiting}
                waiting.clear()
                break
            trial = waiting.pop(0)
            running[pool.submit(probe_recipe, case, trial, children=children, settings=replace(
                settings, timeout_s=min(settings.timeout_s, left)))] = trial
        shown.advance(0, detail=", ".join(trial.recipe for trial in running.values()))
        for ended in wait(running, return_when=FIRST_COMPLETED).done:
            trial = running.pop(ended)
            found[trial] = ended.result()
            shown.advance(detail=", ".join(trial.recipe for trial in running.values()))
            done(found[trial])
    return found


def probe_recipe(case: QATCase, trial: Trial, *, settings: ProbeSettings, children: Children | None = None) -> Probe:
    """Make one trial on a case in a child process.

    Args:
        case: The user's model; never changed.
        trial: What to try.
        settings: Limits of the trial.
        children: Where to note the child while it runs; None: nowhere.
    """
    recipe = get_recipe(trial.recipe)
    impossible = _impossible(recipe)
    if impossible is not None:
        return replace(impossible, skip=trial.skip)
    wider = replace(case, skip=(*case.skip, *trial.skip))
    began = time.monotonic()
    ended = run_forked(lambda writer: _answer(wider, recipe, writer, trial=trial, settings=settings),
                       timeout_s=settings.timeout_s, children=children)
    return replace(_read(ended, recipe, timeout_s=settings.timeout_s), seconds=time.monotonic() - began,
                   skip=trial.skip)


def _read(ended: ChildEnd, recipe: Recipe, *, timeout_s: float) -> Probe:
    """Return what a child answered, or how it ended instead."""
    where = f"in {_last_stage(ended.written)}"
    if ended.hung:
        return Probe(recipe=recipe.name, takes=None, code=OUT_OF_TIME,
                     reason=f"no answer within {timeout_s:.0f} s ({where}).")
    if ended.by is not None:
        return Probe(recipe=recipe.name, takes=False, code="native-crash", reason=(
            f"it killed its process with {ended.by.name} ({where})."))
    try:
        return _from_json(ended.written.rstrip().rpartition(b"\n")[2])
    except (ValueError, TypeError):
        return Probe(recipe=recipe.name, takes=None, reason=f"its process ended without an answer ({where}).")


def _from_json(line: bytes) -> Probe:
    found = Probe(**json.loads(line))
    return found if found.speedup_ci is None else replace(found, speedup_ci=(found.speedup_ci[0], found.speedup_ci[1]))


def not_installed(recipe: Recipe) -> str:
    """Return that a recipe was not tried because a package of it is missing; empty if none is."""
    try:
        recipe.require_packages()
    except MissingPackage as missing:
        return f"not tried: {missing.message} {missing.hint}".rstrip()
    return ""


def _impossible(recipe: Recipe) -> Probe | None:
    """Return why a recipe cannot be tried on this machine, or None if it can."""
    if reason := not_installed(recipe):
        return Probe(recipe=recipe.name, takes=None, reason=reason)
    try:
        with quantized_engine(recipe.engine):
            pass
    except UnsupportedEnvironment as unsupported:
        return Probe(recipe=recipe.name, takes=False, reason=unsupported.message)
    if not can_fork():
        return Probe(recipe=recipe.name, takes=None, reason=(
            f"not tried: recipes are tried in forked processes, which {sys.platform} does not have."))
    return None


def _last_stage(written: bytes) -> str:
    stages = [line for line in written.decode(errors="replace").splitlines() if not line.startswith("{")]
    return stages[-1] if stages else "starting"


def _answer(case: QATCase, recipe: Recipe, writer: int, *, trial: Trial, settings: ProbeSettings) -> None:
    """Try the recipe in this process, the child, and write stages and the answer to the pipe, a line each."""
    stage = "starting"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        os.write(writer, f"{name}\n".encode())

    lock = MachineLock() if settings.locks else None
    try:
        with (preserved_torch_state(seed=settings.seed), quantized_engine(recipe.engine), threads(1),
              tempfile.TemporaryDirectory(prefix="pytest-qat-") as folder):
            with nullcontext() if lock is None else lock.shared(), without_fast_path():
                made, pair = _tried(case, recipe, enter, folder=Path(folder), settings=settings, trial=trial)
            if trial.floor is not None and pair is not None:
                enter("timing")
                with nullcontext() if lock is None else lock.alone():
                    made = _timed(made, case, pair, floor=trial.floor)
    except BaseException as error:  # whatever it is, it is the answer
        made = _refusal(error, case, recipe, stage)
    os.write(writer, (json.dumps(asdict(made)) + "\n").encode())


def _tried(case: QATCase, recipe: Recipe, enter: Callable[[str], None], *, folder: Path, settings: ProbeSettings,
           trial: Trial) -> tuple[Probe, DeployedPair | None]:
    """Go through the stages of a run, without training; what another process has built is loaded only to be timed."""
    timeout_s = settings.timeout_s
    enter("prepare")
    plain = replace(without_training(with_plain_model(case)[0]), prepared=None, converted=None)
    float_model = checked_model(plain)
    first = stages.prepare(plain, recipe)
    if recipe.runtime == "inductor":
        reachable = _reachable(float_model, first, plain)
        if reachable is not None and reachable < settings.floor:
            return Probe(recipe=recipe.name, takes=False, code="too-little-int8", mac_share=reachable, reason=(
                f"at most {percent(reachable, unlike=settings.floor)} of the multiply-accumulates could be in int8, "
                f"and coverage requires {percent(settings.floor)}.")), None
    stages.check_fit(plain, recipe, first, timeout_s=timeout_s)
    prepared = replace(first, module=copy.deepcopy(first.module))
    calibrate(prepared.module, calibration_batches(plain, limit=1))
    enter("convert")
    workflow = load_workflow(recipe.workflow)
    int8 = with_right_kernels(workflow.convert(prepared, recipe), plain, engine=recipe.engine)
    enter("deploy")
    with torch.no_grad():
        pair = load_runtime(recipe.runtime).deploy(
            workflow.float_twin(plain).eval(), int8.module, plain.example_inputs, folder,
            DeploySettings(engine=recipe.engine, threads=1, timeout_s=timeout_s, load=trial.floor is not None,
                           int8_only=trial.numbers and trial.floor is None))
    enter("coverage")
    fp32, shipped = pair.fp32.get("contiguous"), pair.int8["contiguous"]
    reasons = {**first.float_modules, **int8.float_modules}
    coverage = (measure_coverage(float_model, int8.module, plain.example_inputs, reasons=reasons)
                if shipped.kernels is None else
                coverage_of_kernels(float_model, shipped.kernels, plain.example_inputs, reasons=reasons))
    if coverage.int8_modules == 0:
        return Probe(recipe=recipe.name, takes=False, code="nothing-quantized", reason="nothing of it runs in int8.",
                     mac_share=0.0), None
    found = Probe(recipe=recipe.name, takes=True, mac_share=coverage.mac_share if coverage.macs else None,
                  size_reduction=None if fp32 is None else fp32.size_bytes / max(1, shipped.size_bytes))
    if not trial.numbers:
        return found, pair
    enter("parity")
    parity = stages.measure_parity(plain, untrained_copy(prepared.module), partial(run_batch, shipped))
    return replace(found, agrees=parity.holds, sqnr_db=_finite(parity.sqnr_db),
                   float_db=_finite(parity.quantization_sqnr_db)), pair


def _reachable(float_model: nn.Module, prepared: PreparedModel, case: QATCase) -> float | None:
    """Return the share of the multiply-accumulates outside of modules that preparing left in float; None: no MACs."""
    macs = count_macs(float_model, case.example_inputs).by_module
    total = sum(macs.values())
    return sum(count for name, count in macs.items() if name not in prepared.float_modules) / total if total else None


def _timed(found: Probe, case: QATCase, pair: DeployedPair, *, floor: float) -> Probe:
    """Add the speedup, measured as the speedup check does."""
    float_model = checked_model(case)
    for form in (pair.fp32["contiguous"], pair.int8["contiguous"]):
        with form.session():  # the first call in a process takes long, and would be all that there is time for
            form.run(form.adapt(case.example_inputs))
    speed = measure_speed(
        fp32=pair.fp32, int8=pair.int8, eager=lambda: call(float_model, case.example_inputs),
        inputs=case.example_inputs, floor=floor, settings=TimingSettings(max_time_s=_TIMING_S)).like_for_like
    if not math.isfinite(speed.ci[1]):
        return found  # too few pairs to say anything
    return replace(found, speedup=speed.estimate, speedup_ci=speed.ci)


def _finite(decibels: float) -> float | None:
    return decibels if math.isfinite(decibels) else None


def _refusal(error: BaseException, case: QATCase, recipe: Recipe, stage: str) -> Probe:
    """Return why a recipe does not take the model, from what was raised."""
    if isinstance(error, CheckFailed):
        worst = next((each for each in error.findings if each.severity == "error"), None)
        reason = error.reasons[0] if worst is None else worst.message
        return Probe(recipe=recipe.name, takes=False, reason=reason, module=worst.module if worst else None,
                     code=worst.code if worst else None)
    if isinstance(error, QATError):
        return Probe(recipe=recipe.name, takes=None if isinstance(error, MissingPackage) else False,
                     reason=error.message)
    if isinstance(error, Exception):
        found = explain(error, model=case.model, stage=stage) or unexplained(error, model=case.model, stage=stage)
        return Probe(recipe=recipe.name, takes=False, reason=found.message, module=found.module, code=found.code)
    return Probe(recipe=recipe.name, takes=False, reason=f"{stage} raised {type(error).__name__}: {headline(error)}")
