"""Shows what is being done: it listens to the steps, and hands lines to a screen when they are due.

While a timing lasts, which needs the machine to itself, no thread of this module runs, and a line is drawn at most
once a second, between the blocks that are timed. Clock and screen are seams.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Protocol

from pytest_qat.core.progress import Step
from pytest_qat.report.progress import Work, live_line, plain_line, work_of

__all__ = ["Display", "LiveScreen", "PlainScreen", "Screen", "Sender"]

_TICK_S = 1.0
_STILL_S = 1.0


class Screen(Protocol):
    """Where lines go.

    Attributes:
        every_s: Least seconds between two lines.
        least_s: Least seconds that something takes before it is shown.
        threaded: Whether another thread than the main one may call it.
    """

    every_s: float
    least_s: float
    threaded: bool

    def show(self, works: Mapping[str, Work]) -> None:
        """Show what is being done, by worker."""

    def clear(self) -> None:
        """Remove what was shown, where that is possible."""


class LiveScreen:
    """One line below the line that pytest is writing, which it does not touch.

    Args:
        write: Writes to the terminal, at once.
        column: Returns the column that pytest's line has reached, from 0.
        width: Returns the terminal's width.
        color: Whether to use color.
        encoding: Of the terminal.
    """

    every_s, least_s = 0.1, 0.0
    threaded = True

    def __init__(self, write: Callable[[str], None], *, column: Callable[[], int], width: Callable[[], int],
                 color: bool, encoding: str = "utf-8") -> None:
        self._write = write
        self._column = column
        self._width = width
        self._color = color
        self._encoding = encoding
        self._shown = False

    def show(self, works: Mapping[str, Work]) -> None:
        """Replace the line."""
        self._draw(live_line(works, width=self._width(), color=self._color, encoding=self._encoding))
        self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._draw("")
            self._shown = False

    def _draw(self, line: str) -> None:
        """Go down a line, write there, and come back: this holds also where the terminal scrolls."""
        self._write(f"\n\x1b[2K{line}\x1b[1A\x1b[{self._column() % max(1, self._width()) + 1}G")


class PlainScreen:
    """A line at the end of what is there, at most every ten seconds.

    Args:
        write_line: Writes a line of its own.
        threaded: Whether another thread may do so.
    """

    every_s, least_s = 10.0, 1.0

    def __init__(self, write_line: Callable[[str], None], *, threaded: bool) -> None:
        self._write_line = write_line
        self.threaded = threaded

    def show(self, works: Mapping[str, Work]) -> None:
        """Write a line."""
        self._write_line(plain_line(works))

    def clear(self) -> None:
        """Leave what was written."""


class Display:
    """A listener of this process's steps, and of what workers send, that shows them.

    Args:
        screen: Where to show them. Its first line is due `screen.every_s` from now for a plain screen, at once for a
            live one.
        clock: Monotonic seconds.
    """

    def __init__(self, screen: Screen, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._lock = threading.RLock()
        self._works: dict[str, tuple[Work, float]] = {}
        self._began: dict[Step, float] = {}
        self._last = clock() if screen.every_s > _TICK_S else float("-inf")
        self._ticker: _Ticker | None = None

    def __call__(self, steps: tuple[Step, ...]) -> None:
        """Hear of this process's steps; called in its main thread."""
        now = self._clock()
        entered = bool(steps) and steps[-1] not in self._began
        self._began = {step: self._began.get(step, now) for step in steps}
        work = work_of(steps, elapsed_s=now - self._began[steps[-1]]) if steps else None
        self.heard("", work, at_once=entered and work is not None and work.still)

    def heard(self, worker: str, work: Work | None, *, at_once: bool = False) -> None:
        """Take note of what a worker is doing.

        Args:
            worker: Its name; empty for this process.
            work: What it does; None: nothing.
            at_once: Whether to show it without regard to when the last line was shown, if lines can be replaced.
        """
        with self._lock:
            if work is None:
                self._works.pop(worker, None)
            else:
                self._works[worker] = (work, self._clock())
            still = any(each.still for each, _ in self._works.values())
            if not self._works:
                self._screen.clear()
            else:
                self._show(least_s=_STILL_S if still else 0.0, at_once=at_once and self._screen.every_s < _STILL_S)
            run = bool(self._works) and not still and self._screen.threaded
            ended, self._ticker = (self._ticker, None) if not run else (None, self._ticker or _Ticker(self._tick))
        if ended is not None:
            ended.end()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Let something else write meanwhile: the line is gone, and comes back with the next one that is due."""
        with self._lock:
            self._screen.clear()
            yield

    def close(self) -> None:
        """Remove the line, and stop."""
        with self._lock:
            self._works.clear()
            self._screen.clear()
            ended, self._ticker = self._ticker, None
        if ended is not None:
            ended.end()

    def _tick(self) -> None:
        with self._lock:
            if self._ticker is not None and self._works:
                self._show(least_s=0.0)

    def _show(self, *, least_s: float, at_once: bool = False) -> None:
        now = self._clock()
        if not at_once and now - self._last < max(least_s, self._screen.every_s):
            return
        works = {worker: replace(work, elapsed_s=work.elapsed_s + now - heard)
                 for worker, (work, heard) in self._works.items()}
        if max(work.elapsed_s for work in works.values()) >= self._screen.least_s:
            self._last = now
            self._screen.show(works)


class _Ticker:
    """A thread that calls a function once a second until it is ended."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._ended = threading.Event()
        self._tick = tick
        self._thread = threading.Thread(target=self._run, name="qat-progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_TICK_S):
            self._tick()

    def end(self) -> None:
        """Stop the thread and wait for it."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


class Sender:
    """A listener that sends what this process does to another one, at most once a second while nothing new begins.

    Args:
        send: Takes the fields of a `Work`, or None once nothing is being done.
        clock: Monotonic seconds.
    """

    def __init__(self, send: Callable[[dict[str, object] | None], object], *,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._began: dict[Step, float] = {}
        self._last: tuple[tuple[Step, ...], float] = ((), float("-inf"))

    def __call__(self, steps: tuple[Step, ...]) -> None:
        """Hear of this process's steps."""
        now = self._clock()
        self._began = {step: self._began.get(step, now) for step in steps}
        before, sent = self._last
        if steps == before and now - sent < _STILL_S:
            return
        self._last = (steps, now)
        with contextlib.suppress(OSError):  # the other process is gone
            self._send(asdict(work_of(steps, elapsed_s=now - self._began[steps[-1]])) if steps else None)
