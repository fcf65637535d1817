"""A marked test's run: assertions in the test, and what the marker asks for after its body."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_qat.core.parsing import parse_fraction, parse_ratio
from pytest_qat.errors import CheckFailed, InvalidOption, QATError
from pytest_qat.plugin import start
from pytest_qat.plugin.keys import RUN, SESSION
from pytest_qat.plugin.marker import MarkerArguments, read_marker
from pytest_qat.plugin.messages import failure_text
from pytest_qat.plugin.models import raise_result
from pytest_qat.record.keys import RunKey
from pytest_qat.record.schema import CHECK_OF_TOLERANCE
from pytest_qat.tolerances import Tolerances

if TYPE_CHECKING:
    from torch import nn

    from pytest_qat.case import QATCase
    from pytest_qat.checks import CheckResult, ModelChecks
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.pipeline.run import ModelRun
    from pytest_qat.plugin.session import QATSession
    from pytest_qat.record.schema import Metrics

__all__ = ["AsTestFailure", "QATRun", "hold_to_marker", "latency_comparison", "started_run"]


class QATRun:
    """A marked model's run, for assertions in a test.

    A bound left out is the marker's, else the command line's, the case's, the ini file's, the default's.
    """

    def __init__(self, item: pytest.Item, session: QATSession) -> None:
        self._item = item
        self._session = session
        self._asserted: set[str] = set()
        self._unclear: list[CheckResult] = []

    @property
    def _arguments(self) -> MarkerArguments:
        """What the marker says by now: fixtures and the body may add to it."""
        return _arguments_of(self._item)

    @property
    def case(self) -> QATCase:
        """The case under test."""
        return self._session.registry.case(self._arguments.source)

    @property
    def checks(self) -> ModelChecks:
        """The checks of the case by the marker's recipe, shared with other tests."""
        arguments, registry = self._arguments, self._session.registry
        return registry.checks(RunKey(arguments.source, arguments.recipe or registry.recipe_of_test(self.case)))

    @property
    def metrics(self) -> Metrics:
        """The metrics measured so far, in the form of `--qat-json`."""
        return self.checks.record()["metrics"]

    def assert_accuracy(self, drop: float | str | None = None) -> None:
        """Assert that accuracy drops by at most `drop`, a fraction or text such as `1%`.

        Raises:
            CheckFailed: it drops more, and significantly so.
        """
        __tracebackhide__ = True
        self._hold("accuracy", accuracy_drop=None if drop is None else parse_fraction(drop, name="drop"))

    def assert_speedup(self, at_least: float | None = None) -> None:
        """Assert that int8 is `at_least` times as fast as float in the same runtime.

        Raises:
            CheckFailed: it is slower. An unclear case skips the test once its body is done, or fails it under
                `--qat-strict`.
        """
        __tracebackhide__ = True
        self._hold("speedup", min_speedup=None if at_least is None else parse_ratio(at_least, name="at_least"))

    def assert_size_reduction(self, at_least: float | None = None) -> None:
        """Assert that the artifact shrinks by a factor of `at_least`.

        Raises:
            CheckFailed: it shrinks less.
        """
        __tracebackhide__ = True
        self._hold("size", min_size_reduction=None if at_least is None else parse_ratio(at_least, name="at_least"))

    def assert_coverage(self, at_least: float | str | None = None) -> None:
        """Assert that `at_least` this fraction of the multiply-accumulates runs in int8.

        Raises:
            CheckFailed: less does.
        """
        __tracebackhide__ = True
        self._hold("coverage", min_coverage=None if at_least is None else parse_fraction(at_least, name="at_least"))

    def lend(self, stage: Callable[[ModelRun], nn.Module]) -> Iterator[nn.Module]:
        """Yield a copy of a stage's module, with the recipe's engine set meanwhile."""
        from pytest_qat.core.torch_state import quantized_engine
        from pytest_qat.pipeline.run import StageFailed

        run = self.checks.run
        with AsTestFailure():
            try:
                module = copy.deepcopy(stage(run))
            except StageFailed as failed:
                raise failed.error from None
        with quantized_engine(run.recipe.engine):
            yield module

    def hold_to_marker(self, *, everything: bool) -> None:
        """Make the checks that the marker gives tolerances for and the test did not make; or all that judge.

        What is unclear skips the test, but only after everything else has been judged: a skip hides no failure.

        Raises:
            CheckFailed: a check failed.
        """
        wanted = {CHECK_OF_TOLERANCE[name] for name in self._arguments.tolerances}
        if everything and not wanted:
            wanted = {"accuracy", "size", "speedup"}
        for check in sorted(wanted - self._asserted):
            self._hold(check)
        for result in self._unclear:
            raise_result(result, item=self._item, prefix=f"recipe {self.checks.run.recipe.name}: ")

    def _hold(self, check: str, **bound: float | None) -> None:
        __tracebackhide__ = True
        self._asserted.add(check)
        from pytest_qat.diagnosis.causes import with_causes

        checks = self.checks
        base: Tolerances = checks.run.settings.tolerances
        tolerances = base.override(**self._arguments.tolerances).override(**bound)
        try:
            result = with_causes(checks, checks.check(check, selected=(), tolerances=tolerances))
        finally:
            self._session.note(self._item, checks.record())
        if result.verdict.outcome.value == "failed":
            raise_result(result, item=self._item)
        self._unclear += [result] if result.verdict.outcome.value != "passed" else []


def _arguments_of(item: pytest.Item) -> MarkerArguments:
    arguments = read_marker(item)
    if arguments is None:
        raise InvalidOption(f"{item.name} uses a qat fixture, but no @pytest.mark.qat names its model.",
                            hint='Add @pytest.mark.qat(model="package.module:function").')
    return arguments


def _run_of(item: pytest.Item) -> QATRun:
    """Return the run of a marked test in this attempt.

    Raises:
        InvalidOption: the test has no marker, or a bad one.
    """
    _arguments_of(item)
    return item.stash.setdefault(RUN, QATRun(item, _session(item.config)))


def hold_to_marker(item: pytest.Item) -> None:
    """Hold a marked test's model to its marker once the body has passed."""
    names = getattr(item, "fixturenames", ())
    uses_fixture = any(name in names for name in ("qat_case", "qat_prepared", "qat_converted", "qat_run"))
    with AsTestFailure():
        _run_of(item).hold_to_marker(everything=not uses_fixture)


class AsTestFailure:
    """Show a finding or tool error as text instead of a traceback through this package."""

    def __enter__(self) -> None:
        """Enter."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        text = failure_text(error, title="qat") if isinstance(error, (CheckFailed, QATError)) else None
        if text is not None:
            pytest.fail(text, pytrace=False)


def _session(config: pytest.Config) -> QATSession:
    """Return the session; the first test with a marker or fixture starts it."""
    return config.stash.get(SESSION, None) or start(config)


def started_run(request: pytest.FixtureRequest) -> QATRun:
    """Return the run of the test that asks for it; a bad marker or case fails the test with one sentence."""
    with AsTestFailure():
        run = _run_of(request.node)
        _ = run.checks
    return run


def latency_comparison(request: pytest.FixtureRequest) -> Callable[..., Speedup]:
    """Return `compare_latency` under the session's threads and budget, holding the machine's timing lock."""
    session = _session(request.config)

    def compare(baseline_fn: Callable[[], object], candidate_fn: Callable[[], object], *,
                floor: float | None = None) -> Speedup:
        from pytest_qat.core.torch_state import preserved_torch_state, threads
        from pytest_qat.measure.latency import TimingSettings, compare_latency

        settings = TimingSettings(max_time_s=session.options.max_time_s)
        with session.registry.alone(), preserved_torch_state(), threads(session.options.threads):
            return compare_latency(baseline_fn, candidate_fn, settings=settings, floor=floor)

    return compare
