"""Four models with and without two xdist workers: wall time, and how far the speedup estimates agree.

Run from the repository root: `python -m tests.benchmarks.xdist [rounds]`. The model is MobileNetV2 under four names;
trained for three minutes each; its many small operations gain little from a second thread meanwhile. The
floor is 10 % under the true ratio, so that timing goes on until the estimate is precise. Both ways run in turn, each in
a fresh process, without a record of memory. `--fixtures` takes the shipped fixtures instead: training takes few
seconds, so imports and timing, which cannot be split, weigh more, and floors are far from the ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fixtures import mobilenet
from pytest_qat.case import QATCase, Tolerances
from pytest_qat.measure.latency import TimingSettings, compare_latency
from tests.benchmarks.pairs import deployed

NETS = tuple(f"tests.benchmarks.xdist:net_{letter}" for letter in "abcd")
FIXTURES = ("fixtures.vgg:digits", "fixtures.mobilenet:digits", "fixtures.edge_model:digits",
            "tests.benchmarks.pairs:convnet")
FLOOR = "PYTEST_QAT_BENCHMARK_FLOOR"
EPOCHS = 40


def net(letter: str) -> QATCase:
    """Return the MobileNetV2 of the fixtures under a name of its own, timed on one image."""
    case = mobilenet.digits()
    return dataclasses.replace(
        case, name=f"MobileNetV2 {letter}", epochs=EPOCHS,
        example_inputs=tuple(leaf[:1] for leaf in case.example_inputs),
        tolerances=Tolerances(min_speedup=float(os.environ.get(FLOOR, "1"))))


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
    parser.add_argument("--fixtures", action="store_true")
    chosen = parser.parse_args()
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
