"""The progress of fine-tuning: a bar with the time left on a terminal, a few lines elsewhere, nothing under xdist."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_qat.finetune import Progress

__all__ = ["progress_display"]

_PLAIN_LINES = 4


def progress_display(config: pytest.Config) -> Callable[[str], AbstractContextManager[Progress]]:
    """Return a function that opens the display of one fine-tuning, given its label."""
    @contextlib.contextmanager
    def display(label: str) -> Iterator[Progress]:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if hasattr(config, "workerinput") or reporter is None or config.get_verbosity() < 0:
            yield _quiet
            return
        capture = config.pluginmanager.get_plugin("capturemanager")
        uncaptured = capture.global_and_fixture_disabled if capture is not None else contextlib.nullcontext
        make = _bar if sys.__stderr__ is not None and sys.__stderr__.isatty() else _lines
        with make(label, reporter, uncaptured) as step:
            yield step
    return display


def _quiet(step: int, total: int, loss: float) -> None:
    del step, total, loss


@contextlib.contextmanager
def _bar(label: str, reporter: Any, uncaptured: Callable[[], AbstractContextManager[None]]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("fine-tuning {task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(file=sys.__stderr__), transient=True, redirect_stdout=False,
              redirect_stderr=False)
    task = bar.add_task(label, total=None, loss=float("nan"))

    def advance(step: int, total: int, loss: float) -> None:
        if step == 1:
            with uncaptured():
                reporter.ensure_newline()
            bar.start()
        bar.update(task, completed=step, total=total, loss=loss)

    try:
        yield advance
    finally:
        bar.stop()


@contextlib.contextmanager
def _lines(label: str, reporter: Any, uncaptured: Callable[[], AbstractContextManager[None]]) -> Iterator[Progress]:
    def advance(step: int, total: int, loss: float) -> None:
        if step in {1, total} or step % max(1, total // _PLAIN_LINES) == 0:
            with uncaptured():
                reporter.ensure_newline()
                reporter.write_line(f"fine-tuning {label}: step {step}/{total}, loss {loss:.4f}")

    yield advance
