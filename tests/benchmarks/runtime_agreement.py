"""Our latency of an artefact against a minimal loop written for its runtime alone, in a fresh process.

Run from the repository root: `python -W ignore -m tests.benchmarks.runtime_agreement [rounds] [REF] [SHAPE]`. Both are
taken in turn, and what is compared is the median of one call; the loops know nothing of this package.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pytest_qat.errors import MissingPackage
from pytest_qat.isolation import threads
from pytest_qat.measure.latency import TimingSettings, compare_latency
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import Deployed
from tests.benchmarks.pairs import run_of

RECIPES = ("pt2e-executorch", "pt2e-litert", "pt2e-onnxruntime")
TIMING = """
import statistics, time
for _ in range(50):
    call()
times = []
for _ in range(300):
    started = time.perf_counter()
    call()
    times.append(time.perf_counter() - started)
print("median", statistics.median(times))
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
    """Print a line a round and recipe, and the medians of the differences."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    reference = sys.argv[2] if len(sys.argv) > 2 else "fixtures.mobilenet:digits"
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
        folder = sides["fp32"].artefact.parent
        inputs = folder / "loop-inputs.pt"
        torch.save(sides["fp32"].adapt(run.case.example_inputs), inputs)
        adapted = sides["fp32"].adapt(run.case.example_inputs)
        apart: dict[str, list[float]] = {"fp32": [], "int8": []}
        for _ in range(rounds):
            ours = ours_s(sides["fp32"], sides["int8"], adapted)
            for side, form in sides.items():
                loop = minimal_s(recipe.runtime, form.artefact, inputs)
                apart[side].append(ours[side] / loop - 1)
                print(f"{name} {side}: ours {ours[side] * 1e3:.3f} ms, loop {loop * 1e3:.3f} ms, "
                      f"{apart[side][-1]:+.1%}", flush=True)
        print(f"{name}: median difference fp32 {statistics.median(apart['fp32']):+.1%}, "
              f"int8 {statistics.median(apart['int8']):+.1%}", flush=True)
        run.close()


def ours_s(fp32: Deployed, int8: Deployed, inputs: Any) -> dict[str, float]:
    """Return the medians that this package measures, in seconds."""
    with threads(1), torch.inference_mode():
        found = compare_latency(lambda: fp32.run(inputs), lambda: int8.run(inputs),
                                settings=TimingSettings(max_time_s=3, precision=1e-6))
    return {"fp32": found.baseline.p50, "int8": found.candidate.p50}


def minimal_s(runtime: str, artefact: Path, inputs: Path) -> float:
    """Return the median that the minimal loop prints, in seconds."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOOPS[runtime] + TIMING, str(artefact), str(inputs)],
                          check=True, capture_output=True, text=True)
    return float(next(line for line in done.stdout.splitlines() if line.startswith("median")).split()[1])


if __name__ == "__main__":
    main()
