"""Peak resident memory of each side, measured in a fresh process that only runs that side.

This module is also the script of that process: `python -m pytest_qat.measure.memory RUNTIME` reads the path of a
program from its standard input.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.core.system import peak_memory_bytes
from pytest_qat.core.torch_state import child_environment
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import MeasurementError
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes import load_runtime, parse_runtime_name

__all__ = ["Memory", "MemoryProbes"]

SIDES = ("fp32", "int8")
_CALLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak resident set sizes.

    Attributes:
        peak_bytes: Peak of the process that runs each side, in bytes, by side.
        idle_bytes: Peak of a process that has imported the runtime but loaded no model, in bytes; the larger of the
            two sides.
    """

    peak_bytes: dict[str, int]
    idle_bytes: int


class MemoryProbes:
    """Two processes that import a runtime and then wait for a program, so that importing overlaps with other work.

    Args:
        runtime: Name of the runtime.
        threads: Number of intra-op threads.
    """

    def __init__(self, runtime: RuntimeName, *, threads: int) -> None:
        environment = child_environment(threads=threads)
        self._processes = {side: subprocess.Popen(  # noqa: S603 - this module, run by this interpreter
            [sys.executable, "-m", __name__, runtime], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE) for side in SIDES}

    def wait_until_ready(self, *, timeout_s: float = 120.0) -> None:
        """Wait until both processes have imported the runtime, so that they do not disturb a later timing.

        A process that takes longer than `timeout_s` is killed, and `measure` then raises.
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
        """Run each program in its process and return the peaks. This can be called only once.

        Args:
            programs: Files that the runtime's `Deployed.save_program` wrote, by side.
            timeout_s: Most seconds that each process may take.

        Raises:
            MeasurementError: a process crashed, raised or took too long, or the system reports no peaks.
        """
        try:
            if peak_memory_bytes() is None:
                raise MeasurementError("this system does not report a process's peak memory.",
                                       hint="Measure memory on Linux or macOS, or use --qat-memory=off.")
            figures = {side: _figures(side, self._processes[side], programs[side], timeout_s) for side in SIDES}
        finally:
            self.close()
        return Memory(peak_bytes={side: figure["peak"] for side, figure in figures.items()},
                      idle_bytes=max(figure["idle"] for figure in figures.values()))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.kill()
            with contextlib.suppress(ValueError):  # communicate() was called before
                process.communicate()


def _figures(side: str, child: subprocess.Popen[str], program: Path, timeout_s: float) -> dict[str, int]:
    try:
        output, errors = child.communicate(f"{program}\n", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{_CALLS} calls of the {side} model in a separate process took more than "
                               f"{timeout_s:g} s.", hint="Remove --qat-memory; no check needs it.") from None
    try:
        found: dict[str, int] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        reason = (errors.strip().splitlines() or [f"exit status {child.returncode}"])[-1].partition(". ")[0]
        raise MeasurementError(f"the {side} model cannot run in a separate process: {reason.rstrip('.')}.",
                               hint="Remove --qat-memory; no check needs it.") from None
    return found


def _main(runtime: str) -> None:
    """Import the runtime, wait for the path of a program, run the program and print the peaks."""
    warnings.simplefilter("ignore")
    with quiet_loggers():
        _measure(parse_runtime_name(runtime))


def _measure(name: RuntimeName) -> None:
    runtime = load_runtime(name)
    idle = peak_memory_bytes()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    program = sys.stdin.readline().strip()
    if not program:
        return  # the parent no longer needs the measurement
    try:
        run = runtime.load_program(Path(program))
        for _ in range(_CALLS):
            run()
    except Exception as error:  # the parent reports the first line of any error
        sys.exit(headline(error))
    sys.stdout.write(json.dumps({"idle": idle, "peak": peak_memory_bytes()}) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
