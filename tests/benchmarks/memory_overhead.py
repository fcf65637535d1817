"""What measuring adds to the peak memory of the pair that is measured.

Run from the repository root: `python -m tests.benchmarks.memory_overhead`. Two fresh processes load the same float and
int8 model; one calls them in a plain loop, the other under `compare_latency` for the whole default budget.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.pairs import saved_programs

CHILD = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from pytest_qat.runtimes.torch import load_traced_program as load_program
slow, fast = (load_program(Path(path)) for path in sys.argv[2:4])
if sys.argv[1] == "plain":
    end = time.monotonic() + 20
    while time.monotonic() < end:
        slow(), fast()
else:
    from pytest_qat.measure.latency import TimingSettings, compare_latency
    compare_latency(slow, fast, settings=TimingSettings(precision=1e-9))
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(int(line.split()[1]) / 1024)
"""


def peak_mb(how: str, programs: list[Path]) -> float:
    """Run a child and return its peak resident memory in MB."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, how, *map(str, programs)]
    return float(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Print both peaks and the difference in MB."""
    with tempfile.TemporaryDirectory() as folder:
        programs = saved_programs("torchvision:resnet18", "1x3x64x64", Path(folder))
        peaks = {how: peak_mb(how, programs) for how in ("plain", "measured")}
    print(f"peak {peaks['plain']:.0f} MB in a plain loop, {peaks['measured']:.0f} MB when measured: "
          f"{peaks['measured'] - peaks['plain']:+.1f} MB")


if __name__ == "__main__":
    main()
