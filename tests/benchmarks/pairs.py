"""What the measuring benchmarks share: deployed pairs of models, a load that comes in bursts, the usual script."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.core.torch_state import threads
from pytest_qat.measure.latency import TimingSettings
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.measure.speed import LAYOUT_PAIRS, bound, faster_layout
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe
from pytest_qat.references import load_case

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A float and an int8 model, ready to be called on one thread."""

    name: str
    slow: Call
    fast: Call


def convnet() -> QATCase:
    """Return a case whose weights and activations fit the caches, so that its ratio depends little on neighbors."""
    layers = [layer for _ in range(6)
              for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
    images = torch.randn(1, 32, 28, 28)
    return QATCase(model=nn.Sequential(*layers).eval(), example_inputs=(images,), calibration_data=[images])


@contextlib.contextmanager
def deployed(reference: str, shapes: str | None = None, recipe: str = "fx-x86") -> Iterator[Pair]:
    """Calibrate (not train), convert and deploy a model, and enter what its calls need."""
    run = run_of(reference, shapes, recipe)
    case = run.case
    try:
        pair = run.deployed()
        fp32, int8 = pair.fp32["contiguous"], pair.int8["contiguous"]
        with threads(1), fp32.session(), int8.session(), torch.inference_mode():
            settings = TimingSettings(max_time_s=3, max_pairs=LAYOUT_PAIRS, margin=1)
            (_, slow), (_, fast) = (
                faster_layout(forms, bound(forms["contiguous"], case.example_inputs, "timed"), case.example_inputs,
                              settings, "timed") for forms in (pair.fp32, pair.int8))
            yield Pair(name=f"{case.label} {shapes or ''}".strip(), slow=slow, fast=fast)
    finally:
        run.close()


def saved_programs(reference: str, shapes: str | None, folder: Path) -> list[Path]:
    """Write the float and the int8 model so that another process can run them."""
    run = run_of(reference, shapes, "fx-x86")
    pair = run.deployed()
    programs = [folder / "fp32.program", folder / "int8.program"]
    for form, program in zip((pair.fp32["contiguous"], pair.int8["contiguous"]), programs, strict=True):
        form.save_program(run.case.example_inputs, program)
    run.close()
    return programs


def run_of(reference: str, shapes: str | None, recipe: str) -> ModelRun:
    """Return the run of a model that is calibrated on its example inputs and not trained."""
    warnings.simplefilter("ignore")
    case = load_case(reference, root=Path.cwd(), shapes=shapes, seed=0)
    case = dataclasses.replace(case, train=None, train_data=None, loss_fn=None, calibration_data=[case.example_inputs])
    return ModelRun(case, get_recipe(recipe), RunSettings(tolerances=Tolerances()), lock=MachineLock())


def usual_s(call: Call, warm_up: int = 10, timed: int = 100) -> float:
    """Return what the usual script says: the mean time of 100 calls after 10 warm-up calls, in seconds."""
    for _ in range(warm_up):
        call()
    started = time.perf_counter()
    for _ in range(timed):
        call()
    return (time.perf_counter() - started) / timed


@contextlib.contextmanager
def bursts(processes: int = 2) -> Iterator[None]:
    """Burn that many cores in bursts of about 0.3 s with pauses of about 0.3 s."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_burn, args=(seed,), daemon=True) for seed in range(processes)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.join()


def _burn(seed: int) -> None:
    chance, parent = random.Random(seed), os.getppid()
    while os.getppid() == parent:  # a benchmark that is killed leaves nothing burning
        end = time.perf_counter() + chance.expovariate(1 / 0.3)
        while time.perf_counter() < end:
            sum(range(2000))
        time.sleep(chance.expovariate(1 / 0.3))


def variation(values: list[float]) -> float:
    """Return the coefficient of variation."""
    return statistics.stdev(values) / statistics.mean(values)
