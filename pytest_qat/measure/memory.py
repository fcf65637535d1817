"""Peak resident memory of each side, in a fresh process that does nothing but run it.

Run as a script, this module is such a process: `python -m pytest_qat.measure.memory RUNTIME` reads the path of a
program from its input.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_qat.core.torch_state import child_environment
from pytest_qat.errors import MeasurementError

__all__ = ["Memory", "MemoryProbes"]

SIDES = ("fp32", "int8")
_CALLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak resident set sizes.

    Attributes:
        peak_bytes: Of the whole process that runs each side.
        idle_bytes: Of a process that has imported the runtime and no model yet; the larger of the two.
    """

    peak_bytes: dict[str, int]
    idle_bytes: int


class MemoryProbes:
    """Two processes that import a runtime and then wait for a program each, so that importing can overlap other work.

    Args:
        runtime: Name of the runtime.
        threads: Intra-op threads.
    """

    def __init__(self, runtime: str, *, threads: int) -> None:
        environment = child_environment(threads=threads)
        self._processes = {side: subprocess.Popen(  # noqa: S603 - this module, run by this interpreter
            [sys.executable, "-m", __name__, runtime], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE) for side in SIDES}

    def wait_until_ready(self, *, timeout_s: float = 120.0) -> None:
        """Wait until both have imported the runtime, so that they take no time from what is measured next.

        One that takes longer than `timeout_s` is ended; `measure` then says so.
        """
        for process in self._processes.values():
            assert process.stdout is not None, "unreachable because it was opened as a pipe"
            reader = threading.Thread(target=process.stdout.readline, daemon=True)
            reader.start()
            reader.join(timeout_s)
            if reader.is_alive():
                process.kill()
                reader.join()

    def measure(self, programs: Mapping[str, Path], *, timeout_s: float = 120.0) -> Memory:
        """Run each program in its process and return the peaks; works once.

        Args:
            programs: Files that the runtime's `Deployed.save_program` wrote, by side.
            timeout_s: Most seconds for each.

        Raises:
            MeasurementError: a process died, said nothing or took too long.
        """
        try:
            figures = {side: _figures(side, self._processes[side], programs[side], timeout_s) for side in SIDES}
        finally:
            self.close()
        return Memory(peak_bytes={side: figure["peak"] for side, figure in figures.items()},
                      idle_bytes=max(figure["idle"] for figure in figures.values()))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.kill()
            with contextlib.suppress(ValueError):  # communicated with before
                process.communicate()


def _figures(side: str, child: subprocess.Popen[str], program: Path, timeout_s: float) -> dict[str, int]:
    try:
        said, complaint = child.communicate(f"{program}\n", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"the {side} model ran for more than {timeout_s:.0f} s in a process of its own, "
                               "expected a few calls.", hint="Use smaller example_inputs.") from None
    try:
        found: dict[str, int] = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        reason = (complaint.strip().splitlines() or [f"exit status {child.returncode}"])[-1].partition(". ")[0]
        raise MeasurementError(f"the {side} model cannot run in a process of its own: {reason.rstrip('.')}.",
                               hint="Look whether TorchScript can trace the model.") from None
    return found


def _peak_bytes() -> int:
    """Return this process's peak resident set size so far."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _main(runtime: str) -> None:
    """Be the process: import, wait for the program, load it, run it, tell."""
    warnings.simplefilter("ignore")
    made: Any = importlib.import_module(f"pytest_qat.runtimes.{runtime}")
    idle = _peak_bytes()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    program = sys.stdin.readline().strip()
    if not program:
        return  # not wanted after all
    run = made.load_program(Path(program))
    for _ in range(_CALLS):
        run()
    sys.stdout.write(json.dumps({"idle": idle, "peak": _peak_bytes()}) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
