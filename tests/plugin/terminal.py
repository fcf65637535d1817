"""pytest in a terminal of its own: what is on the screen, and when."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from interruptible import INTERRUPTIBLE

__all__ = ["COLUMNS", "Screen", "Terminal"]

COLUMNS = 100
_TOKEN = re.compile(r"\x1b\[(\d*)(?:;\d+)*([A-Za-z])|\x1b\]9;[^\x1b]*\x1b\\|\x1b.|[\r\n]|[^\x1b\r\n]+", re.DOTALL)


class Screen:
    """The lines of a terminal that scrolls for ever and never wraps, for the few codes that are written here."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            self._take(token[0], token[1], token[2])

    def _take(self, token: str, number: str | None, code: str | None) -> None:
        if token == "\r":
            self._column = 0
        elif token == "\n":
            self._row += 1
            self.lines += [""] * (self._row + 1 - len(self.lines))
        elif code == "K":
            kept = {"": slice(self._column), "0": slice(self._column), "2": slice(0)}[number or ""]
            self.lines[self._row] = self.lines[self._row][kept]
        elif code == "A":
            self._row -= int(number or 1)
        elif code == "G":
            self._column = int(number or 1) - 1
        elif not token.startswith("\x1b"):
            line = self.lines[self._row].ljust(self._column)
            self._column += len(token)
            self.lines[self._row] = line[:self._column - len(token)] + token + line[self._column:]


class Terminal:
    """pytest, started in a terminal.

    Args:
        arguments: Of pytest.
        cwd: Its folder.
        environment: Variables to change; None removes one.
    """

    def __init__(self, *arguments: str, cwd: Path, environment: Mapping[str, str | None] | None = None) -> None:
        import fcntl
        import termios

        self.began = time.monotonic()
        self.screen = Screen()
        self.text = ""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        changed = {"TERM": "xterm", "CI": None, "BUILD_NUMBER": None, "COLUMNS": None, **(environment or {})}
        variables = {name: value for name, value in {**os.environ, **changed}.items() if value is not None}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{INTERRUPTIBLE}import pytest; raise SystemExit(pytest.main())",
             "-p", "no:randomly", "--qat-max-time=1", "--qat-memory=off", "--qat-diagnose=off", *arguments],
            cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def until(self, there: Callable[[Screen], bool], *, within_s: float = 120.0) -> float | None:
        """Return after how many seconds from the start the screen has something; None if it never has."""
        ends = time.monotonic() + within_s
        while not there(self.screen):
            if time.monotonic() > ends or not self._read(ends - time.monotonic()):
                return None
        return time.monotonic() - self.began

    def wait(self, *, within_s: float = 240.0) -> int:
        """Read to the end, and return the exit code."""
        ends = time.monotonic() + within_s
        while self._read(ends - time.monotonic()):
            assert time.monotonic() < ends, "\n".join(self.screen.lines)
        return self.process.wait(timeout=10)

    def close(self) -> None:
        """End the process with its whole session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, timeout_s))
        if not ready:
            return True
        try:
            heard = os.read(self._ours, 65536).decode(errors="replace")
        except OSError:  # Linux's way to say that the other side is closed
            return False
        self.text += heard
        self.screen.write(heard)
        return bool(heard)
