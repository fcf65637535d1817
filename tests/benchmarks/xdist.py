"""Four models with and without two xdist workers: wall time, and how far the speedup estimates agree.

Run from the repository root: `python -m tests.benchmarks.xdist [rounds]`. The model is a small convolutional network
under four names, trained for a minute on digits of 8x8 pixels in batches of eight, and timed on one image of 32x32:
fine-tuning by many small operations gains nothing from a second thread, and weights and activations that fit the caches
give the same ratio from minute to minute. The floor is 10 % under the true ratio, so that timing goes on until the
estimate is precise. Both ways run in turn, each in a fresh process, without a record of memory. `--mobilenet` trains
MobileNetV2 in batches of 64 instead, which a second thread speeds up, so that a second worker has less to gain;
`--fixtures` takes the shipped fixtures: training takes few seconds, so imports and timing, which cannot be split, weigh
more, and floors are far from the ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fixtures import digits, mobilenet
from pytest_qat.case import QATCase, Tolerances
from pytest_qat.measure.latency import TimingSettings, compare_latency
from tests.benchmarks.pairs import deployed

NETS = tuple(f"tests.benchmarks.xdist:net_{letter}" for letter in "abcd")
FIXTURES = ("fixtures.vgg:digits", "fixtures.mobilenet:digits", "fixtures.edge_model:digits",
            "tests.benchmarks.pairs:convnet")
FLOOR, MOBILENET = "PYTEST_QAT_BENCHMARK_FLOOR", "PYTEST_QAT_BENCHMARK_MOBILENET"
WIDTH, DEPTH, BATCH, EPOCHS = 32, 6, 8, 80
MOBILENET_EPOCHS = 40


def net(letter: str) -> QATCase:
    """Return the network under a name of its own, timed on one image."""
    case = _mobilenet() if os.environ.get(MOBILENET) else _convolutions()
    return dataclasses.replace(case, name=f"net {letter}", example_inputs=(digits.example_images(count=1),),
                               tolerances=Tolerances(min_speedup=float(os.environ.get(FLOOR, "1"))))


def _mobilenet() -> QATCase:
    return dataclasses.replace(mobilenet.digits(), epochs=MOBILENET_EPOCHS)


def _convolutions() -> QATCase:
    torch.manual_seed(0)
    sides = [3, *[WIDTH] * DEPTH]
    layers = [layer for given, made in itertools.pairwise(sides)
              for layer in (nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, digits.NUM_CLASSES))
    train, test = ([(functional.avg_pool2d(images, 4), targets) for images, targets in batches]
                   for batches in (digits.train_batches(batch_size=BATCH), digits.test_batches()))
    return QATCase(model=model, example_inputs=(train[0][0],), train_data=train, loss_fn=functional.cross_entropy,
                   epochs=EPOCHS, eval_data=test)


def net_a() -> QATCase:
    """Return the first net."""
    return net("a")


def net_b() -> QATCase:
    """Return the second net."""
    return net("b")


def net_c() -> QATCase:
    """Return the third net."""
    return net("c")


def net_d() -> QATCase:
    """Return the fourth net."""
    return net("d")


def measured(models: tuple[str, ...], *options: str) -> tuple[float, dict[str, float]]:
    """Run the plugin and return its wall time in seconds and the speedup of each model."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "qat.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", f"--qat-json={record}",
                   "--qat-memory=off", *(f"--qat-model={model}" for model in models), *options]
        started = time.perf_counter()
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        wall_s = time.perf_counter() - started
        runs = json.loads(record.read_text())["runs"]
    return wall_s, {run["model"]: run["metrics"]["speedup"]["estimate"] for run in runs}


def main() -> None:
    """Print a line a round and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--mobilenet", action="store_true")
    parser.add_argument("--fixtures", action="store_true")
    chosen = parser.parse_args()
    if chosen.mobilenet:
        os.environ[MOBILENET] = "1"
    models = FIXTURES if chosen.fixtures else NETS
    if not chosen.fixtures:
        with deployed(NETS[0]) as pair:
            truth = compare_latency(pair.slow, pair.fast, settings=TimingSettings(max_time_s=10, precision=1e-6))
        os.environ[FLOOR] = f"{truth.estimate * 0.9:.3f}"
        print(f"true ratio about {truth}, floor {os.environ[FLOOR]}", flush=True)
    shares, differences = [], []
    for _ in range(chosen.rounds):
        alone_s, alone = measured(models)
        split_s, split = measured(models, "-n", "2")
        apart = {model: split[model] / alone[model] - 1 for model in models}
        shares.append(split_s / alone_s)
        differences += [abs(value) for value in apart.values()]
        pairs = ", ".join(f"{alone[model]:.2f}/{split[model]:.2f} ({apart[model]:+.1%})" for model in models)
        print(f"without {alone_s:.1f} s, -n 2 {split_s:.1f} s, ratio {shares[-1]:.2f}; speedups {pairs}", flush=True)
    print(f"median ratio {statistics.median(shares):.2f}; estimates differ by {statistics.median(differences):.1%} "
          f"(median), {max(differences):.1%} (most)")


if __name__ == "__main__":
    main()
