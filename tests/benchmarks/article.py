"""The claims of the article behind `fixtures.edge_model`, measured: 4x smaller, 2-4x faster, within 0.5 points.

Run from the repository root: `python -m tests.benchmarks.article`. Prints a markdown table for one image and for a
batch of 32, on one thread.
"""

from __future__ import annotations

import io
from dataclasses import replace

import torch
from torch import nn

from fixtures.edge_model import digits
from pytest_qat.case import QATCase
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe


def main() -> None:
    """Measure each claim and print it."""
    case = digits()
    print("| batch | over eager as written | like for like | fp32 / int8 latency |")
    print("|---|---|---|---|")
    for batch in (1, 32):
        images = (case.example_inputs[0][:batch].clone(),)
        run = make_run(replace(case, example_inputs=images))
        speed = run.speed(1.0)
        main_ratio, eager = speed.like_for_like, speed.over_eager
        print(f"| {batch} | {eager} | {main_ratio} | "
              f"{1e3 * main_ratio.baseline.p50:.2f} / {1e3 * main_ratio.candidate.p50:.2f} ms |")
    pair, accuracy = run.deployed(), run.accuracy()
    int8 = pair.int8["contiguous"].size_bytes
    print(f"size: as written {state_bytes(case.model)}, BatchNorm folded {pair.fp32['contiguous'].size_bytes}, "
          f"int8 {int8} bytes: {state_bytes(case.model) / int8:.2f}x and "
          f"{pair.fp32['contiguous'].size_bytes / int8:.2f}x smaller")
    print(f"accuracy: fp32 {accuracy.fp32:.2%}, PTQ {accuracy.ptq or 0:.2%}, int8 {accuracy.int8:.2%}")


def make_run(case: QATCase) -> ModelRun:
    """Return a run of the default recipe."""
    return ModelRun(case, get_recipe("fx-x86"), RunSettings(tolerances=case.tolerances), lock=MachineLock())


def state_bytes(model: nn.Module) -> int:
    """Return the size of the saved state dict in bytes."""
    sink = io.BytesIO()
    torch.save(model.state_dict(), sink)
    return sink.tell()


if __name__ == "__main__":
    main()
