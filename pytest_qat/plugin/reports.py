"""What travels on pytest's report of a test: attached where the test ran, merged where the record is kept.

Plain values only, since pytest-xdist carries the attributes of a report from its workers to the controller.
"""

from __future__ import annotations

from typing import Protocol, TypedDict, runtime_checkable

import pytest

from pytest_qat.errors import CheckFailed
from pytest_qat.plugin.items import MEASURED, OUTCOME, CommandLineItem
from pytest_qat.plugin.laws import ReplayItem
from pytest_qat.plugin.session import QATSession
from pytest_qat.record.environment import describe_environment
from pytest_qat.record.schema import Environment, Probes, Ranking, RunRecord

__all__ = ["attach", "merge", "outcome_of"]

_FIXED, _STILL_FAILING = "fixed", "still failing"


class _Sent(TypedDict):
    """What an item measured, and where."""

    records: list[RunRecord]
    ranking: Ranking | None
    probes: Probes | None
    environment: Environment


@runtime_checkable
class _WithMeasurements(Protocol):
    qat: _Sent


@runtime_checkable
class _WithOutcome(Protocol):
    qat_outcome: str


def attach(report: pytest.TestReport, item: pytest.Item, *, error: BaseException | None, session: QATSession) -> None:
    """Put what an item measured and concluded on its report.

    Args:
        report: Of any phase of the test.
        item: The test.
        error: What the phase raised, or None.
        session: The session.
    """
    if report.when == "call" and MEASURED in item.stash:
        measured = item.stash[MEASURED]
        report.qat = _Sent(  # type: ignore[attr-defined]
            records=list(measured.records), ranking=measured.ranking, probes=measured.probes,
            environment=describe_environment(seed=session.options.seed))
        if not isinstance(item, CommandLineItem):  # the name of a marked test does not say what it measured
            report.sections += [("qat", f"{record['model']} by recipe {record['recipe']}")
                                for record in measured.records]
    if report.when == "call" and isinstance(item, ReplayItem) and (report.passed or isinstance(error, CheckFailed)):
        report.qat_outcome = _FIXED if report.passed else _STILL_FAILING  # type: ignore[attr-defined]
    if OUTCOME in item.stash and report.skipped:
        report.qat_outcome = item.stash[OUTCOME]  # type: ignore[attr-defined]
        if isinstance(item, CommandLineItem) and item.parent is not None and isinstance(report.longrepr, tuple):
            report.longrepr = (item.parent.nodeid, None, report.longrepr[2])  # type: ignore[assignment]


def outcome_of(report: pytest.TestReport) -> str | None:
    """Return the plugin's own word for an outcome, or None where pytest's says it all."""
    return report.qat_outcome if isinstance(report, _WithOutcome) else None


def merge(report: pytest.TestReport, session: QATSession) -> bool:
    """Take what a report carries into the session; return whether the record has changed."""
    outcome = outcome_of(report)
    if outcome in (_FIXED, _STILL_FAILING):
        session.replayed[outcome] += 1
    if not isinstance(report, _WithMeasurements) or session.is_worker:
        return False
    store, sent = session.store, report.qat
    store.environment = store.environment or sent["environment"]
    for record in sent["records"]:
        store.add(record)
    if sent["ranking"] is not None:
        store.add_ranking(sent["ranking"])
    if sent["probes"] is not None:
        store.add_probes(sent["probes"])
    return True
