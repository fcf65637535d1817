"""Four models with and without two xdist workers: wall time, and how far the speedup estimates agree.

Run from the repository root: `python -m tests.benchmarks.xdist [rounds]`. Both ways run in turn, each in a fresh
process, as they do without a record: no memory processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = ("fixtures.vgg:digits", "fixtures.mobilenet:digits", "fixtures.edge_model:digits",
          "tests.benchmarks.pairs:convnet")


def measured(*options: str) -> tuple[float, dict[str, float]]:
    """Run the plugin and return its wall time in seconds and the speedup of each model."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "qat.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", f"--qat-json={record}",
                   "--qat-memory=off", *(f"--qat-model={model}" for model in MODELS), *options]
        started = time.perf_counter()
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        wall_s = time.perf_counter() - started
        runs = json.loads(record.read_text())["runs"]
    return wall_s, {run["model"]: run["metrics"]["speedup"]["estimate"] for run in runs}


def main() -> None:
    """Print a line a round and the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    shares, differences = [], []
    for _ in range(rounds):
        alone_s, alone = measured()
        split_s, split = measured("-n", "2")
        apart = {model: split[model] / alone[model] - 1 for model in MODELS}
        shares.append(split_s / alone_s)
        differences += [abs(value) for value in apart.values()]
        pairs = ", ".join(f"{alone[model]:.2f}/{split[model]:.2f} ({apart[model]:+.1%})" for model in MODELS)
        print(f"without {alone_s:.1f} s, -n 2 {split_s:.1f} s, ratio {shares[-1]:.2f}; speedups {pairs}", flush=True)
    print(f"median ratio {statistics.median(shares):.2f}; estimates differ by {statistics.median(differences):.1%} "
          f"(median), {max(differences):.1%} (most)")


if __name__ == "__main__":
    main()
