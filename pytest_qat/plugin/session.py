"""One pytest session: what was asked, the runs, and the record; its hooks are short and hand over.

Every session of pytest has one of these, so what it needs is imported on first use.
"""

from __future__ import annotations

import functools
import secrets
from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.errors import CheckFailed
from pytest_qat.plugin.keys import OUTCOME, RECORD, RUN, SESSION, Measured

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from pytest_qat.plugin.registry import RunRegistry
    from pytest_qat.plugin.settings import Options
    from pytest_qat.record.keys import RunKey
    from pytest_qat.record.schema import Ranking, RunRecord
    from pytest_qat.record.store import RecordStore

__all__ = ["QATSession"]


class QATSession:
    """The plugin's state and hooks of one session.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.models: tuple[str, ...] = tuple(dict.fromkeys(config.getoption("qat_model") or ()))
        self.ops: tuple[str, ...] = tuple(dict.fromkeys(config.getoption("qat_ops") or ()))
        self._replays: tuple[str, ...] = tuple(dict.fromkeys(config.getoption("qat_replay") or ()))
        self._laws = 0
        self._replayed: Counter[str] = Counter()
        self._implementations: dict[str, tuple[Any, ...]] = {}
        self._config = config
        self._unwritten: str | None = None
        self._is_worker = hasattr(config, "workerinput")
        self._selected: dict[RunKey, set[str]] = {}
        config.stash[SESSION] = self
        asked = self.models or self.ops or self._replays
        if asked and config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = []  # no path was given: what the options name are the tests

    @functools.cached_property
    def options(self) -> Options:
        """The checked options.

        Raises:
            QATError: a value makes no sense.
        """
        from pytest_qat.plugin.settings import read_options

        return read_options(self._config)

    @functools.cached_property
    def registry(self) -> RunRegistry:
        """The runs of this process."""
        from pytest_qat.plugin.progress import progress_display
        from pytest_qat.plugin.registry import RunRegistry

        config = self._config
        workers = getattr(config, "workerinput", {}).get("workercount", 1)
        return RunRegistry(self.options, root=config.invocation_params.dir, workers=workers,
                           progress=progress_display(config))

    @functools.cached_property
    def store(self) -> RecordStore:
        """The record; only the controller keeps one under xdist."""
        from pytest_qat.record.store import RecordStore

        return RecordStore(self.models)

    # -- what items and fixtures ask ------------------------------------------------------------------------------

    def implementations(self, reference: str) -> tuple[Any, ...]:
        """Return the implementations that a reference names, loaded once.

        Raises:
            QATError: the reference or what it gives is bad.
        """
        from pytest_qat.properties.targets import load_ops

        if reference not in self._implementations:
            self._implementations[reference] = load_ops(reference, root=self._config.invocation_params.dir,
                                                        seed=self.options.seed)
        return self._implementations[reference]

    @property
    def fuzz_share_s(self) -> float | None:
        """Seconds of fuzzing for each law: an equal share, of all workers' time under xdist; None in CI mode."""
        if self.options.fuzz_s is None:
            return None
        workers: int = getattr(self._config, "workerinput", {}).get("workercount", 1)
        return self.options.fuzz_s * workers / max(1, self._laws)

    @functools.cached_property
    def fuzz_seed(self) -> int:
        """Another seed in every process, unless --qat-seed is given: then another one on each xdist worker."""
        if self._config.getoption("qat_seed") is None:
            return secrets.randbelow(2**20)
        worker = getattr(self._config, "workerinput", {}).get("workerid", "gw0")
        return self.options.seed * 2**10 + int(worker.removeprefix("gw"))

    def selected(self, key: RunKey) -> set[str]:
        """Return the checks that this session makes of a model and recipe."""
        return self._selected[key]

    def note(self, item: pytest.Item, *records: RunRecord, ranking: Ranking | None = None) -> None:
        """Keep what an item measured for its report."""
        item.stash[RECORD] = Measured(records=list(records), ranking=ranking)

    # -- hooks ----------------------------------------------------------------------------------------------------

    def pytest_report_header(self) -> str | None:
        """Name what the results depend on."""
        if not self.models and not self.ops:
            return None
        options = self.options
        if not self.models:
            mode = "" if options.fuzz_s is None else f", fuzzing for {options.fuzz_s:g} s"
            return f"qat: laws of {', '.join(self.ops)}, seed {options.seed}{mode}"
        recipes = ", ".join(options.recipes) or f"of each model, else {', '.join(options.default_recipes)}"
        return (f"qat: {len(self.models)} model{'s' if len(self.models) > 1 else ''}, recipe {recipes}, "
                f"threads {options.threads}, seed {options.seed}{', strict' if options.strict else ''}")

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, Any]:
        """Add what the command line names to what the session collects."""
        report = yield
        if not isinstance(collector, pytest.Session) or report.outcome != "passed":
            return report
        if self.models:
            from pytest_qat.plugin.models import ModelCollector

            report.result.extend(
                ModelCollector.from_parent(collector, name=reference, qat=self, reference=reference)
                for reference in self.models)
        if self.ops or self._replays:
            from pytest_qat.plugin.laws import OpsCollector, ReplayCollector

            report.result.extend(OpsCollector.from_parent(collector, name=reference, qat=self, reference=reference)
                                 for reference in self.ops)
            here = self._config.invocation_params.dir
            report.result.extend(ReplayCollector.from_parent(collector, name=path, qat=self, path=here / path)
                                 for path in self._replays)
        return report

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Send the checks of one model to one xdist worker."""
        if config.getoption("dist") != "loadgroup":
            return None
        from pytest_qat.plugin.scheduling import ModelScheduling

        return ModelScheduling(config, log)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which checks this session will make of each model, and how many laws share the time of fuzzing."""
        if self.ops:
            from pytest_qat.plugin.laws import LawItem

            self._laws = sum(isinstance(item, LawItem) for item in session.items)
        if not self.models:
            return
        from pytest_qat.plugin.models import CheckItem

        for item in session.items:
            if isinstance(item, CheckItem):
                self._selected.setdefault(item.parent.key, set()).add(item.name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Forget what an earlier attempt concluded, where a plugin runs an item again; runs stay in the registry."""
        keys: tuple[pytest.StashKey[Any], ...] = (RUN, RECORD, OUTCOME)
        for key in keys:
            if key in item.stash:
                del item.stash[key]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item,
                                  call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach what the item measured to its report; xdist carries plain dicts to the controller."""
        report = yield
        if report.when == "call" and RECORD in item.stash:
            from pytest_qat.record.environment import describe_environment

            measured = item.stash[RECORD]
            report.qat = {  # type: ignore[attr-defined]
                **measured, "environment": describe_environment(seed=self.options.seed)}
            if RUN in item.stash:
                report.sections += [("qat", f"{record['model']} by recipe {record['recipe']}")
                                    for record in measured["records"]]
        known = report.passed or (call.excinfo is not None and isinstance(call.excinfo.value, CheckFailed))
        if report.when == "call" and item.nodeid.startswith("qat-replay:") and known:
            report.qat_outcome = "fixed" if report.passed else "still failing"  # type: ignore[attr-defined]
        if OUTCOME in item.stash and report.skipped:
            report.qat_outcome = item.stash[OUTCOME]  # type: ignore[attr-defined]
            if item.nodeid.startswith("qat-model:") and item.parent is not None and isinstance(report.longrepr, tuple):
                report.longrepr = (item.parent.nodeid, None, report.longrepr[2])  # type: ignore[assignment]
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Tell an inconclusive or blocked check from an ordinary skip, and what became of a saved example."""
        word = getattr(report, "qat_outcome", None)
        if word is None:  # other plugins' reports have outcomes of their own, such as "rerun"
            return None
        letter = {"passed": ".", "failed": "F", "skipped": "s"}[report.outcome]
        return report.outcome, letter, word.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Merge what a test measured, here or on the xdist controller, and keep the file up to date."""
        if report.nodeid.startswith("qat-replay:") and hasattr(report, "qat_outcome"):
            self._replayed[report.qat_outcome] += 1
        sent = getattr(report, "qat", None)
        if sent is not None and not self._is_worker:
            self.store.environment = self.store.environment or sent["environment"]
            for record in sent["records"]:
                self.store.add(record)
            if sent["ranking"] is not None:
                self.store.add_ranking(sent["ranking"])
            self._write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep models that could not be loaded in the record."""
        if report.failed and report.nodeid.startswith("qat-model:") and not self._is_worker:
            self.store.add_error(report.nodeid.removeprefix("qat-model:"), str(report.longrepr))

    def pytest_sessionfinish(self) -> None:
        """Write the record, also when nothing could be measured or the session was interrupted."""
        if not self._is_worker:
            self._write()

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Print what became of saved examples, and one table per model and recipe."""
        if self._replayed:
            counts = " and ".join(f"{count} {word}" for word, count in sorted(self._replayed.items()))
            terminalreporter.write_line(f"saved examples: {counts}")
        if "store" not in vars(self) or not self.store.runs:
            return
        from pytest_qat.report.terminal import render

        writer = terminalreporter._tw  # noqa: SLF001 - width and color have no public name
        terminalreporter.section("quantized models")
        terminalreporter.write(render(self.store.runs, width=writer.fullwidth, color=writer.hasmarkup,
                                      rankings=self.store.rankings))
        if self._unwritten is not None:
            terminalreporter.write_line(f"the record could not be written to {self.options.json}: {self._unwritten}",
                                        red=True)
        elif self.options.json is not None:
            terminalreporter.write_line(f"record written to {self.options.json}")

    def pytest_unconfigure(self) -> None:
        """Free models and artifacts."""
        if "registry" in vars(self):
            self.registry.close()

    def _write(self) -> None:
        if self._config.getoption("qat_json") is not None and self.options.json is not None:
            from pytest_qat.report.json import write_json

            try:
                write_json(self.store.document(), self.options.json)
            except OSError as error:  # a full disk must not lose the session; the next check tries again
                self._unwritten = error.strerror or str(error)
            else:
                self._unwritten = None
