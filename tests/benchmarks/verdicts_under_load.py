"""Verdicts while other processes burn both cores in bursts: how many are wrong, how many inconclusive.

Run from the repository root: `python -m tests.benchmarks.verdicts_under_load [verdicts] [REF] [SHAPE]`. The true ratio
is the median of verdicts' own estimates on the quiet machine, each from as many pairs as fit into 20 s. Then come
that many verdicts at a floor 10 % under it and as many at one 10 % over it, in turn, and beside them the usual script
(10 warm-up calls, 100 timed, float first) on the same load.
"""

from __future__ import annotations

import statistics
import sys

from pytest_qat.measure.latency import TimingSettings, compare_latency
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import judge_speedup
from tests.benchmarks.pairs import bursts, deployed, usual_s, variation


def main() -> None:
    """Print one line a verdict and the summary."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    reference = sys.argv[2] if len(sys.argv) > 2 else "tests.benchmarks.pairs:convnet"
    with deployed(reference, sys.argv[3] if len(sys.argv) > 3 else None) as pair:
        long = TimingSettings(max_time_s=20, precision=1e-6)
        quiet = [compare_latency(pair.slow, pair.fast, settings=long) for _ in range(3)]
        truth = statistics.median(found.estimate for found in quiet)
        print(f"{pair.name}: on the quiet machine {', '.join(map(str, quiet))}", flush=True)
        outcomes: list[tuple[str, str]] = []
        estimates: list[float] = []
        seconds: list[float] = []
        usual: list[float] = []
        with bursts():
            for index in range(2 * count):
                expected, floor = (("passed", truth * 0.9), ("failed", truth * 1.1))[index % 2]
                found = compare_latency(pair.slow, pair.fast, floor=floor)
                verdict = judge_speedup(found, Tolerances(min_speedup=floor))
                outcomes.append((expected, verdict.outcome.value))
                estimates.append(found.estimate)
                seconds.append(found.elapsed_s)
                if index % 4 == 0:
                    usual.append(usual_s(pair.slow) / usual_s(pair.fast))
                print(f"{index + 1:4} {expected} -> {outcomes[-1][1]:12} {found}, {found.elapsed_s:.1f} s", flush=True)
    wrong = sum(got not in (expected, "inconclusive") for expected, got in outcomes)
    unclear = sum(got == "inconclusive" for _, got in outcomes)
    print(f"{len(outcomes)} verdicts: {wrong} wrong, {unclear} inconclusive, median {statistics.median(seconds):.1f} s")
    print(f"estimates {min(estimates):.2f} to {max(estimates):.2f}, coefficient of variation "
          f"{variation(estimates):.1%}")
    print(f"usual script: {len(usual)} ratios from {min(usual):.2f} to {max(usual):.2f}, coefficient of variation "
          f"{variation(usual):.1%}")


if __name__ == "__main__":
    main()
