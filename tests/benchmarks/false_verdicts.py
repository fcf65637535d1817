"""How often a verdict is wrong when the true ratio lies a hair beside the floor, by kind of noise.

Run from the repository root: `python -m tests.benchmarks.false_verdicts [runs]`. Each run is a whole `compare_latency`
on a scripted clock; measuring stops at the first look that seems sure. The nominal error rate is 5 %.
"""

from __future__ import annotations

import sys

from tests.measure.test_false_verdicts import FLOOR, HAIR, LAWS, PAIRS, outcomes, short_blocks


def main() -> None:
    """Print a line for each noise and direction."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    settings = short_blocks(margin=1, pairs=PAIRS)
    for law in LAWS:
        for name, ratio in (("just below", FLOOR * (1 - HAIR)), ("just above", FLOOR * (1 + HAIR))):
            passed, failed = outcomes(law.values[0], ratio=ratio, settings=settings, runs=runs, seed=1)
            wrong = passed if ratio < FLOOR else failed
            print(f"{law.id!s:22} {name}: {wrong} wrong of {runs:,} ({wrong / runs:.2%})", flush=True)


if __name__ == "__main__":
    main()
