"""What the plugin adds to `pytest --collect-only` of an empty test file.

Run from the repository root: `python -m tests.benchmarks.startup [pairs]`. Runs with the plugin and with
`-p no:qat` alternate in fresh processes; the median of the paired differences in processor time is printed, which
other work on the machine disturbs less than wall time, with bytecode cached as in any ordinary installation.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def main() -> None:
    """Measure pairs and print the median difference with an interval."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_empty.py").write_text("")
        base = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder)
        sides = {"with": base, "without": (*base, "-p", "no:qat")}
        for command in sides.values():
            cpu_ms(command)
        differences = []
        for index in range(pairs):
            order = ("with", "without") if index % 2 == 0 else ("without", "with")
            measured = {side: cpu_ms(sides[side]) for side in order}
            differences.append(measured["with"] - measured["without"])
    ordered = sorted(differences)
    reach = int(pairs / 2 - 0.98 * pairs**0.5)
    print(f"median difference {statistics.median(differences):.2f} ms "
          f"(95 % interval {ordered[reach]:.2f} to {ordered[-1 - reach]:.2f} ms, {pairs} pairs)")


def cpu_ms(command: tuple[str, ...]) -> float:
    """Return the processor time of one pytest run in milliseconds; it ends with 5, no tests collected."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    main()
