"""A model against itself: how often the interval of the ratio contains 1.

Run from the repository root: `python -m tests.benchmarks.noise_floor [sessions]`. Each session is the run that the
plugin makes before a speed verdict, for a float and for an int8 model in turn.
"""

from __future__ import annotations

import statistics
import sys

from pytest_qat.measure.latency import TimingSettings, compare_latency
from pytest_qat.measure.speed import SIDE_PAIRS
from tests.benchmarks.pairs import deployed


def main() -> None:
    """Print the count and the spread of the estimates."""
    sessions = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    settings = TimingSettings(max_time_s=2, max_pairs=SIDE_PAIRS)
    with deployed("fixtures.edge_model:digits") as pair:
        found = [compare_latency(call, call, settings=settings)
                 for call in (pair.slow, pair.fast) * (sessions // 2)]
    held = sum(each.ci[0] <= 1 <= each.ci[1] for each in found)
    estimates = [each.estimate for each in found]
    widths = [each.ci[1] / each.ci[0] - 1 for each in found]
    print(f"the interval contains 1 in {held} of {len(found)} sessions; median width {statistics.median(widths):.1%}; "
          f"estimates {min(estimates):.3f} to {max(estimates):.3f}, median {statistics.median(estimates):.3f}")


if __name__ == "__main__":
    main()
