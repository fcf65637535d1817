"""The hooks that act on a session that asked for this plugin: each one hands over to the session or to an item.

The few hooks that every pytest session pays for are in the package itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.errors import QATError
from pytest_qat.plugin.items import captured, forget
from pytest_qat.plugin.laws import LawItem, OpsCollector, ReplayCollector
from pytest_qat.plugin.marked import RUN
from pytest_qat.plugin.models import CheckItem, ModelCollector
from pytest_qat.plugin.options import given
from pytest_qat.plugin.progress import show_progress
from pytest_qat.plugin.reports import attach, merge, outcome_of
from pytest_qat.plugin.session import SESSION, QATSession
from pytest_qat.plugin.summary import header, print_summary, write_record

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

__all__ = ["SessionHooks", "session_of"]


def session_of(config: pytest.Config) -> QATSession:
    """Return the session; whoever asks first starts it and registers its hooks.

    Raises:
        pytest.UsageError: an option has a bad value.
    """
    session = config.stash.get(SESSION, None)
    if session is not None:
        return session
    session = config.stash[SESSION] = QATSession(config)
    if given(config):
        try:
            _ = session.options
        except QATError as error:
            raise pytest.UsageError(str(error)) from None
    if session.asked and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []  # no path was given: what the options name are the tests
    config.pluginmanager.register(SessionHooks(session), "qat-session")
    show_progress(config)
    return session


class SessionHooks:
    """The hooks of one session.

    Args:
        session: What they work on.
    """

    def __init__(self, session: QATSession) -> None:
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Show from now on what is being done."""
        show_progress(session.config)

    def pytest_report_header(self) -> list[str]:
        """Say what the results depend on."""
        return header(self._session)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
            self, collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Add what the command line names to what the session collects."""
        with captured(collector) as output:
            report = yield
        report.sections += output
        if isinstance(collector, pytest.Session) and report.outcome == "passed":
            report.result.extend(self._collectors(collector))
        return report

    def _collectors(self, parent: pytest.Session) -> Iterator[pytest.Collector]:
        qat = self._session
        for reference in qat.models:
            yield ModelCollector.from_parent(parent, name=reference, qat=qat, reference=reference)
        for reference in qat.ops:
            yield OpsCollector.from_parent(parent, name=reference, qat=qat, reference=reference)
        for path in qat.replays:
            yield ReplayCollector.from_parent(parent, name=path, qat=qat, path=qat.root / path)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which checks this session makes of each model, and how many laws share the time of fuzzing."""
        self._session.law_count = sum(isinstance(item, LawItem) for item in session.items)
        for item in session.items:
            if isinstance(item, CheckItem):
                self._session.select(item.key, check=item.name)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Send the checks of one model to one xdist worker."""
        if config.getoption("dist") != "loadgroup":
            return None
        from pytest_qat.plugin.scheduling import ModelScheduling

        return ModelScheduling(config, log)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Forget what an earlier attempt concluded, where a plugin runs an item again; runs stay in the registry."""
        forget(item)
        if RUN in item.stash:
            del item.stash[RUN]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item,
                                  call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach what the item measured and concluded to its report."""
        report = yield
        attach(report, item, error=call.excinfo.value if call.excinfo else None, session=self._session)
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Tell an inconclusive or blocked check from an ordinary skip, and say what became of a saved example."""
        outcome = outcome_of(report)
        if outcome is None:  # other plugins' reports have outcomes of their own, such as "rerun"
            return None
        letter = {"passed": ".", "failed": "F", "skipped": "s"}[report.outcome]
        return report.outcome, letter, outcome.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Merge what a test measured, here or on the xdist controller, and keep the record's file up to date."""
        if merge(report, self._session):
            write_record(self._session)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep models that could not be loaded in the record."""
        if report.failed and report.nodeid.startswith("qat-model:") and not self._session.is_worker:
            self._session.store.add_error(report.nodeid.removeprefix("qat-model:"), str(report.longrepr))

    def pytest_sessionfinish(self) -> None:
        """Write the record, also when nothing could be measured or the session was interrupted."""
        if not self._session.is_worker:
            write_record(self._session)

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Print what became of saved examples, and one table per model and recipe."""
        print_summary(self._session, terminalreporter)

    def pytest_unconfigure(self) -> None:
        """Free models and artifacts."""
        self._session.close()
