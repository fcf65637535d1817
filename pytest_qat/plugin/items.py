"""What items have in common: what they measured, how an outcome becomes pytest's, and how a failure prints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.plugin.messages import failure_text

if TYPE_CHECKING:
    from _pytest._code.code import ExceptionInfo, TerminalRepr

    from pytest_qat.checks import CheckResult
    from pytest_qat.record.schema import Probes, Ranking, RunRecord

__all__ = ["MEASURED", "OUTCOME", "CommandLineItem", "Measured", "captured", "forget", "note", "raise_result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an item measured, as plain JSON values.

    Attributes:
        records: The records of its runs.
        ranking: The ranking of recipes, if it made one.
        probes: Which recipes take the model, if it tried that.
    """

    records: tuple[RunRecord, ...]
    ranking: Ranking | None
    probes: Probes | None


MEASURED: pytest.StashKey[Measured] = pytest.StashKey()
"""On an item: what it measured in this attempt."""
OUTCOME: pytest.StashKey[str] = pytest.StashKey()
"""On an item that is reported as skipped: `inconclusive` or `blocked`."""


def note(item: pytest.Item, *records: RunRecord, ranking: Ranking | None = None, probes: Probes | None = None) -> None:
    """Keep what an item measured for its report."""
    item.stash[MEASURED] = Measured(records=records, ranking=ranking, probes=probes)


def forget(item: pytest.Item) -> None:
    """Drop what an earlier attempt measured and concluded."""
    if MEASURED in item.stash:
        del item.stash[MEASURED]
    if OUTCOME in item.stash:
        del item.stash[OUTCOME]


def raise_result(result: CheckResult, *, item: pytest.Item, prefix: str = "") -> None:
    """Turn an outcome into what pytest understands: nothing, a failure, or a skip whose reason has the prefix."""
    __tracebackhide__ = True
    outcome = result.verdict.outcome.value
    if outcome == "passed":
        return
    if outcome == "failed":
        raise result.error or CheckFailed(result.verdict.reasons, findings=result.findings)
    reason = prefix + " ".join(result.verdict.reasons)
    item.stash[OUTCOME] = outcome
    pytest.skip(reason if reason.startswith(outcome) else f"{outcome}: {reason}")


@contextlib.contextmanager
def captured(collector: pytest.Collector) -> Iterator[list[tuple[str, str]]]:
    """Capture what is printed while one of this package's collectors loads a model, as pytest does for a file.

    Yields:
        A list that gets the report's sections on leaving.
    """
    sections: list[tuple[str, str]] = []
    capture = collector.config.pluginmanager.get_plugin("capturemanager")
    if capture is None or not collector.nodeid.startswith(("qat-model:", "qat-ops:")):
        yield sections
        return
    capture.resume_global_capture()
    try:
        yield sections
    finally:
        capture.suspend_global_capture()
        out, err = capture.read_global_capture()
        sections += [(f"Captured {name}", text) for name, text in (("stdout", out), ("stderr", err)) if text]


class CommandLineItem(pytest.Item):
    """An item that comes from an option instead of a file."""

    @property
    def title(self) -> str:
        """Name at the head of a failure."""
        return self.nodeid

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> str | TerminalRepr:
        """Print a finding or a tool error as text, anything unforeseen with its traceback."""
        if isinstance(excinfo.value, (CheckFailed, QATError)):
            return failure_text(excinfo.value, title=self.title)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return where the item comes from: the command line."""
        return self.nodeid.rpartition("::")[0], None, self.nodeid
