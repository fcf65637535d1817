"""`pytest --qat-model=fixtures.edge_model:digits` against a plain script that does the same job by hand.

Run from the repository root: `python -m tests.benchmarks.main_job [pairs]`. The two run alternately in fresh
processes; the ratio of their median wall times is printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

SCRIPT = (sys.executable, "-m", "tests.benchmarks.plain_script")
PLUGIN = (sys.executable, "-m", "pytest", "-q", "--qat-model=fixtures.edge_model:digits")


def wall_s(command: tuple[str, ...]) -> float:
    """Return the wall time of a command that must succeed, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure pairs and print each one and the ratio."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    wall_s(SCRIPT)  # warms the disk cache for both
    times = []
    for index in range(pairs):
        order = (SCRIPT, PLUGIN) if index % 2 == 0 else (PLUGIN, SCRIPT)
        measured = {command: wall_s(command) for command in order}
        times.append((measured[SCRIPT], measured[PLUGIN]))
        print(f"script {measured[SCRIPT]:6.2f} s   plugin {measured[PLUGIN]:6.2f} s   "
              f"ratio {measured[PLUGIN] / measured[SCRIPT]:.2f}", flush=True)
    ratio = statistics.median(plugin / script for script, plugin in times)
    print(f"median ratio plugin / script: {ratio:.2f}, plugin {statistics.median(p for _, p in times):.1f} s")


if __name__ == "__main__":
    main()
