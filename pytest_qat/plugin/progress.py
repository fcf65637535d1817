"""Where the progress of a session is shown: on the terminal as a live line, in a pipe or a file as lines, or nowhere.

A worker of pytest-xdist has no terminal and sends its progress to the controller. What is shown goes to a copy of the
terminal's file descriptor, so it enters no captured output, and pytest's own line stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_qat.core.progress import Listener, listen, listener
from pytest_qat.report.display import Display, LiveScreen, PlainScreen, Sender
from pytest_qat.report.progress import Work

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

__all__ = ["ProgressHooks", "kind_of_display", "show_progress"]

_NAME = "qat-progress"
_CHANNEL = "qat_progress"
"""On the input of a worker of pytest-xdist: the channel that its progress goes through."""


def show_progress(config: pytest.Config) -> None:
    """Show from now on, until the session ends, what is being done; pytest must have its terminal reporter by now."""
    if config.pluginmanager.has_plugin(_NAME):
        return
    worker: Mapping[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        if _CHANNEL in worker:
            config.pluginmanager.register(_Listening(Sender(worker[_CHANNEL].send)), _NAME)
        return
    reporter: TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or sys.stdout is None:
        return
    kind = kind_of_display(
        terminal=reporter.isatty() and os.name == "posix", capture=config.getoption("capture", "no"),
        live_logs=config.pluginmanager.has_plugin("logging") and (
            config.getini("log_cli") or config.getoption("log_cli_level") is not None),
        environment=os.environ, verbosity=config.get_verbosity())
    if kind != "none":
        config.pluginmanager.register(ProgressHooks(reporter, live=kind == "live"), _NAME)


def kind_of_display(*, terminal: bool, capture: str, live_logs: bool, environment: Mapping[str, str],
                    verbosity: int) -> Literal["live", "lines", "none"]:
    """Return how to show progress.

    Args:
        terminal: Whether pytest writes to a terminal.
        capture: pytest's `--capture`; what else writes to the terminal would hit a live line.
        live_logs: Whether pytest shows log records as they come.
        environment: Environment variables.
        verbosity: pytest's; a quiet session gets no lines, but a live one, which leaves nothing behind.
    """
    dumb = environment.get("TERM", "").lower() in ("", "dumb", "unknown")
    on_ci = any(environment.get(name) for name in ("CI", "BUILD_NUMBER"))
    if terminal and not dumb and not on_ci and capture == "fd" and not live_logs:
        return "live" if verbosity > -2 else "none"
    return "lines" if verbosity >= 0 else "none"


class _Listening:
    """Lets a listener hear of the steps of this process until the session ends."""

    def __init__(self, listener_: Listener) -> None:
        self._before = listener()
        self._listener = listener_
        listen(listener_)

    def pytest_unconfigure(self) -> None:
        """Put back who listened before: a session may run inside of another one."""
        listen(self._before)


class ProgressHooks(_Listening):
    """The hooks that keep progress and what pytest writes apart.

    Args:
        reporter: pytest's.
        live: Whether lines can be replaced.
    """

    def __init__(self, reporter: TerminalReporter, *, live: bool) -> None:
        self._reporter = reporter
        capture = reporter.config.pluginmanager.get_plugin("capturemanager")
        self._uncaptured: Callable[[], AbstractContextManager[None]] = (
            contextlib.nullcontext if capture is None else capture.global_and_fixture_disabled)
        self._encoding, self._descriptor = self._copy_of_terminal()
        self._display = Display(self._live_screen() if live and self._descriptor is not None else PlainScreen(
            self._write_line, threaded=self._descriptor is not None))
        super().__init__(self._display)

    # -- hooks ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logstart(self) -> Generator[None, None, None]:
        """Let pytest write; so do the hooks below."""
        with self._display.hidden():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self) -> Generator[None, None, None]:
        """See above."""
        with self._display.hidden():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True, optionalhook=True)
    def pytest_testnodeready(self) -> Generator[None, None, None]:
        """See above."""
        with self._display.hidden():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True, optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> Generator[None, None, None]:
        """See above."""
        with self._display.hidden():
            return (yield)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker of pytest-xdist a channel for its progress."""
        channel = node.gateway.newchannel()
        channel.setcallback(lambda fields: self._display.heard(node.gateway.id, fields and Work(**fields)))
        node.workerinput[_CHANNEL] = channel

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Forget what a worker did when it ended, or crashed."""
        self._display.heard(node.gateway.id, None)

    def pytest_enter_pdb(self) -> None:
        """Leave the terminal to the debugger."""
        self._display.close()
        listen(None)

    def pytest_leave_pdb(self) -> None:
        """Go on."""
        listen(self._display)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Show nothing more; workers of pytest-xdist may not have ended yet."""
        self._display.close()

    def pytest_unconfigure(self) -> None:
        """Put back what was before."""
        super().pytest_unconfigure()
        self._display.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    # -- where it is written ---------------------------------------------------------------------------------------

    def _copy_of_terminal(self) -> tuple[str, int | None]:
        """Return the encoding and a descriptor of what pytest writes to; None where that is no file, as in a test."""
        with self._uncaptured():
            encoding = getattr(sys.stdout, "encoding", None) or "ascii"
            try:
                return encoding, os.dup(sys.stdout.fileno())
            except (OSError, ValueError, AttributeError):
                return encoding, None

    def _live_screen(self) -> LiveScreen:
        writer = self._reporter._tw  # noqa: SLF001 - width and color have no public name
        return LiveScreen(self._write, color=writer.hasmarkup, encoding=self._encoding,
                          column=lambda: max(0, writer.width_of_current_line), width=self._width)

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._descriptor or 1).columns or 80
        except OSError:
            return shutil.get_terminal_size().columns

    def _write(self, text: str) -> None:
        left = text.encode(self._encoding, errors="replace")
        with contextlib.suppress(OSError):  # a terminal that is gone, a full disk
            while left and self._descriptor is not None:
                left = left[os.write(self._descriptor, left):]

    def _write_line(self, line: str) -> None:
        """Write a line of its own, and leave pytest's line as `TerminalReporter.ensure_newline` does."""
        if self._descriptor is None:
            with self._uncaptured():
                self._reporter.ensure_newline()
                self._reporter.write_line(line)
            return
        begun, self._reporter.currentfspath = self._reporter.currentfspath, None
        self._write(f"{os.linesep if begun else ''}{line}{os.linesep}")
