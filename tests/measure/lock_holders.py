"""Processes that hold or wait for the machine's lock, for the tests of the lock."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout
from interruptible import INTERRUPTIBLE

HOLDER = """
import sys
from pathlib import Path
from pytest_qat.measure.machine_lock import MachineLock

lock = MachineLock(Path(sys.argv[2]) if sys.argv[2:] else None)
print("asks", flush=True)
with getattr(lock, sys.argv[1])():
    print("held", flush=True)
    sys.stdin.readline()
"""
ROUNDS = """
import sys, time
from pathlib import Path
from pytest_qat.measure.machine_lock import MachineLock

lock = MachineLock(Path(sys.argv[2]))
while True:
    with lock.shared():
        print("held", flush=True)
        time.sleep(0.05)
"""
STEPS = """
import sys, time
from pathlib import Path
from pytest_qat.measure.machine_lock import MachineLock

lock = MachineLock(Path(sys.argv[2]))
with lock.shared():
    print("held", flush=True)
    for step in range(10_000):
        time.sleep(0.01)
        print(f"at {time.monotonic()}", flush=True)
        lock.give_way()
"""
ON_DEMAND = """
import sys, time
from pathlib import Path
from pytest_qat.measure.machine_lock import MachineLock

lock = MachineLock(Path(sys.argv[2]))
print("ready", flush=True)
for line in sys.stdin:
    with getattr(lock, sys.argv[1])():
        print(f"at {time.monotonic()}", flush=True)
"""
LONG_S, SHORT_S = 30.0, 0.4


class Holder:
    """A process that takes the lock, prints that it has it, and keeps it until it is told to release it.

    Args:
        how: `shared` or `alone`.
        folder: Folder of the lock; None: the default folder, below `temporary`.
        temporary: Temporary directory of the process.
        script: The script that the process runs.
    """

    def __init__(self, how: str, folder: Path | None, *, temporary: Path, script: str = HOLDER) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", INTERRUPTIBLE + script, how, *([str(folder)] if folder else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(temporary)})
        self._said = b""

    def says(self, word: str, *, within_s: float = LONG_S) -> bool:
        """Whether the process prints the word before the time is over."""
        assert self.process.stdout is not None
        ends = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while word.encode() not in self._said.split():
                if not selector.select(max(0.0, ends - time.monotonic())):
                    return False
                heard = os.read(self.process.stdout.fileno(), 1000)
                if not heard:
                    return False
                self._said += heard
        return True

    def holds(self, *, within_s: float = LONG_S) -> bool:
        """Whether the process prints that it holds the lock before the time is over."""
        return self.says("held", within_s=within_s)

    def forget(self) -> None:
        """Forget what the process has printed."""
        self._said = b""

    def ask(self) -> None:
        """Make a process that runs `ON_DEMAND` take the lock once."""
        assert self.process.stdin is not None
        self._said = b""
        self.process.stdin.write(b"now\n")
        self.process.stdin.flush()

    def got_it(self) -> float:
        """Return when the process got the lock, in seconds of the machine's monotonic clock."""
        assert self.says("at")
        return float(self._said.split()[1])

    def release(self) -> None:
        self.process.communicate(b"\n", timeout=LONG_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LONG_S)


def gate_is_free(folder: Path) -> bool:
    """Whether no process is waiting at the gate at the moment."""
    try:
        with FileLock(folder / "gate.lock", timeout=0):
            return True
    except Timeout:
        return False


def wait_for_a_queue(folder: Path, *, within_s: float = 3.0) -> None:
    """Wait until a process has been at the gate for longer than it takes to pass it, or the time is over."""
    ends, seen = time.monotonic() + within_s, 0
    while seen < 4 and time.monotonic() < ends:
        seen = 0 if gate_is_free(folder) else seen + 1
        time.sleep(0.05)
