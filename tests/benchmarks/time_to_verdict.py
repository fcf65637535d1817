"""How long clear cases take to decide, against the usual script on the same models.

Run from the repository root: `python -m tests.benchmarks.time_to_verdict [rounds]`. The floors lie 1.5 times under and
over the true ratio; the usual script makes 110 calls a side.
"""

from __future__ import annotations

import statistics
import sys
import time

from pytest_qat.measure.latency import TimingSettings, compare_latency
from tests.benchmarks.pairs import deployed, usual_s

MODELS = (("tests.benchmarks.pairs:convnet", None), ("fixtures.edge_model:digits", None),
          ("fixtures.vgg:digits", None), ("fixtures.mobilenet:digits", None),
          ("torchvision:squeezenet1_1", "2x3x96x96"), ("torchvision:resnet18", "1x3x64x64"),
          ("torchvision:mobilenet_v2", "1x3x224x224"))


def main() -> None:
    """Print a line a model and the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    all_seconds: list[float] = []
    all_shares: list[float] = []
    for reference, shapes in MODELS:
        with deployed(reference, shapes) as pair:
            truth = compare_latency(pair.slow, pair.fast, settings=TimingSettings(max_time_s=5)).estimate
            seconds: list[float] = []
            shares: list[float] = []
            undecided = 0
            for index in range(rounds):
                floor = truth / 1.5 if index % 2 == 0 else truth * 1.5
                started = time.perf_counter()
                usual_s(pair.slow)
                usual_s(pair.fast)
                usual = time.perf_counter() - started
                started = time.perf_counter()
                undecided += not compare_latency(pair.slow, pair.fast, floor=floor).settles(floor)
                seconds.append(time.perf_counter() - started)
                shares.append(seconds[-1] / usual)
        print(f"{pair.name:30} {truth:5.2f}x  verdict {statistics.median(seconds):6.3f} s, "
              f"{statistics.median(shares):.2f} of the usual script, {undecided} undecided", flush=True)
        all_seconds += seconds
        all_shares += shares
    print(f"median {statistics.median(all_seconds):.2f} s, {statistics.median(all_shares):.2f} of the usual script")


if __name__ == "__main__":
    main()
