"""Our latency of an artifact against a minimal loop written for its runtime alone, in a fresh process.

Run from the repository root: `python -W ignore -m tests.benchmarks.runtime_agreement [rounds] [REF] [SHAPE]`. The
loops know nothing of this package; each waits in a process of its own until it is asked for the median of its next
calls. Ours and theirs are taken in turn on one core, every half a second: cores differ, and their speed may change by a
half within seconds. What is printed is the median of the rounds' differences, and their quartiles.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pytest_qat.core.torch_state import threads
from pytest_qat.errors import MissingPackage
from pytest_qat.measure.latency import TimingSettings, compare_latency
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import Deployed
from tests.benchmarks.pairs import run_of

RECIPES = ("pt2e-executorch", "pt2e-litert", "pt2e-onnxruntime")
OURS_S, CALLS = 0.4, 40
TIMING = """
import statistics, sys, time
for asked in sys.stdin:
    for _ in range(10):
        call()
    times = []
    for _ in range(int(asked)):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    print("median", statistics.median(times), flush=True)
"""
LOOPS = {
    "executorch": """
import sys, torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime
_unsafe_reset_threadpool(1)
method = Runtime.get().load_program(sys.argv[1]).load_method("forward")
inputs = torch.load(sys.argv[2])
call = lambda: method.execute(inputs)
""",
    "litert": """
import sys, numpy, torch
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
entry, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
images = torch.load(sys.argv[2])[0].numpy()
scale, zero = entry["quantization"]
def call():
    given = images
    if entry["dtype"] == numpy.int8:
        given = numpy.clip(numpy.rint(images / scale) + zero, -128, 127).astype(numpy.int8)
    interpreter.set_tensor(entry["index"], given)
    interpreter.invoke()
    return interpreter.get_tensor(out)
""",
    "onnxruntime": """
import sys, onnxruntime, torch
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: torch.load(sys.argv[2])[0].numpy()}
call = lambda: session.run(None, feed)
"""}


def main() -> None:
    """Print a line a recipe and side."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    reference = sys.argv[2] if len(sys.argv) > 2 else "fixtures.mobilenet:digits"
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    for name in RECIPES:
        recipe = get_recipe(name)
        try:
            recipe.require_packages()
        except MissingPackage as missing:
            print(f"{name}: {missing.message}")
            continue
        run = run_of(reference, sys.argv[3] if len(sys.argv) > 3 else None, name)
        pair = run.deployed()
        sides = {"fp32": pair.fp32["contiguous"], "int8": pair.int8["contiguous"]}
        inputs = sides["fp32"].artifact.parent / "loop-inputs.pt"
        adapted = sides["fp32"].adapt(run.case.example_inputs)
        torch.save(adapted, inputs)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(cores)})
        loops = {side: Loop(recipe.runtime, form.artifact, inputs) for side, form in sides.items()}
        taken = [{side: (ours, loops[side].median_s()) for side, ours in ours_s(sides, adapted).items()}
                 for _ in range(rounds)]
        for side, loop in loops.items():
            loop.end()
            apart = [ours / theirs - 1 for ours, theirs in (entry[side] for entry in taken)]
            low, middle, high = statistics.quantiles(apart, n=4)
            ours, theirs = (statistics.median(entry[side][index] for entry in taken) * 1e3 for index in (0, 1))
            print(f"{name} {side}: ours {ours:.3f} ms, loop {theirs:.3f} ms, {middle:+.1%} "
                  f"({low:+.1%} to {high:+.1%}), {rounds} rounds", flush=True)
        run.close()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)


def ours_s(sides: Mapping[str, Deployed], inputs: Any) -> dict[str, float]:
    """Return the medians that this package measures, in seconds."""
    with threads(1), torch.inference_mode():
        found = compare_latency(lambda: sides["fp32"].run(inputs), lambda: sides["int8"].run(inputs),
                                settings=TimingSettings(max_time_s=OURS_S, precision=1e-6))
    return {"fp32": found.baseline.p50, "int8": found.candidate.p50}


class Loop:
    """A minimal loop in a fresh process, which runs only while it is asked."""

    def __init__(self, runtime: str, artifact: Path, inputs: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-c", LOOPS[runtime] + TIMING, str(artifact), str(inputs)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)
        self.median_s()  # imports, loads and warms up

    def median_s(self) -> float:
        """Return the median of its next calls, in seconds."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the loop was started without pipes")
        self._process.stdin.write(f"{CALLS}\n")
        self._process.stdin.flush()
        return float(next(line for line in self._process.stdout if line.startswith("median")).split()[1])

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


if __name__ == "__main__":
    main()
