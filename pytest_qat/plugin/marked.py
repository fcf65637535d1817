"""`@pytest.mark.qat` and what it lends to a test: the marker's arguments, the run, and the checks after the body."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.core import progress
from pytest_qat.core.parsing import parse_fraction, parse_ratio
from pytest_qat.errors import CheckFailed, InvalidOption, QATError
from pytest_qat.plugin.items import note, raise_result
from pytest_qat.plugin.messages import failure_text
from pytest_qat.recipe import get_recipe
from pytest_qat.record.keys import ModelSource, RunKey
from pytest_qat.record.schema import CHECK_OF_TOLERANCE
from pytest_qat.tolerances import Tolerances

if TYPE_CHECKING:
    from torch import nn

    from pytest_qat.case import QATCase
    from pytest_qat.checks import CheckResult, ModelChecks
    from pytest_qat.diagnosis.diagnose import Diagnosis
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.pipeline.run import ModelRun
    from pytest_qat.plugin.session import QATSession
    from pytest_qat.record.schema import Metrics

__all__ = ["RUN", "QATRun", "hold_to_marker", "latency_comparison", "started_run"]

_TOLERANCES = tuple(field.name for field in fields(Tolerances))
_KNOWN = ("model", "recipe", *_TOLERANCES)
_FIXTURES = ("qat_case", "qat_prepared", "qat_converted", "qat_run")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerArguments:
    """The arguments of a marker.

    Attributes:
        source: The model: a reference, or an object (a QATCase, a module, a function that returns one) with a name
            that is the same in every process.
        recipe: Recipe name, or None.
        tolerances: Only the tolerances that were given, parsed.
    """

    source: ModelSource
    recipe: str | None
    tolerances: dict[str, float]


def read_marker(item: pytest.Item) -> MarkerArguments | None:
    """Return the arguments of the `qat` markers around a test, the closest winning, or None without one.

    Raises:
        InvalidOption: positional or unknown arguments, no model, or a bad value.
    """
    arguments: dict[str, Any] = {}
    markers = list(item.iter_markers("qat"))
    for marker in reversed(markers):
        if marker.args:
            raise InvalidOption(f"@pytest.mark.qat of {item.name} got the positional argument {marker.args[0]!r}.",
                                hint='Name it: @pytest.mark.qat(model="package.module:function").')
        arguments.update(marker.kwargs)
    if not markers:
        return None
    unknown = [name for name in arguments if name not in _KNOWN]
    if unknown:
        near = difflib.get_close_matches(unknown[0], _KNOWN, n=1)
        raise InvalidOption(f"@pytest.mark.qat of {item.name} has no argument {unknown[0]!r}; known are "
                            f"{', '.join(_KNOWN)}.", hint=f"Did you mean {near[0]}?" if near else "Remove it.")
    if arguments.get("model") is None:
        raise InvalidOption(f"@pytest.mark.qat of {item.name} names no model.",
                            hint='Add model="package.module:function".')
    recipe = arguments.get("recipe")
    if recipe is not None:
        get_recipe(recipe)
    given = {name: arguments[name] for name in _TOLERANCES if arguments.get(name) is not None}
    parsed = Tolerances(**given)
    return MarkerArguments(source=_source(arguments["model"], item), recipe=recipe,
                           tolerances={name: getattr(parsed, name) for name in given})


def _source(model: Any, item: pytest.Item) -> ModelSource:
    return ModelSource(model) if isinstance(model, str) else ModelSource(_name(model, item), given=model)


def _name(model: Any, item: pytest.Item) -> str:
    name: str = getattr(model, "__qualname__", "<>")
    if "<" not in name:  # neither a lambda nor made inside a function
        return f"{model.__module__}:{name}"
    module = getattr(item, "module", None)
    known = next((name for name, value in vars(module).items() if value is model), None) if module else None
    return f"{module.__name__}:{known}" if module and known else f"{type(model).__name__} of {item.nodeid}"


class QATRun:
    """A marked model's run, for assertions in a test.

    A bound left out is the marker's, else the command line's, the case's, the ini file's, the default's.
    """

    def __init__(self, item: pytest.Item, session: QATSession) -> None:
        self._item = item
        self._session = session
        self._asserted: set[str] = set()
        self._inconclusive: list[CheckResult] = []

    @property
    def _arguments(self) -> MarkerArguments:
        """The marker's arguments so far: fixtures and the body may add to them."""
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
            CheckFailed: it drops by significantly more.
        """
        __tracebackhide__ = True
        self._hold("accuracy", accuracy_drop=None if drop is None else parse_fraction(drop, name="drop"))

    def assert_speedup(self, at_least: float | None = None) -> None:
        """Assert that int8 is `at_least` times as fast as float in the same runtime.

        Raises:
            CheckFailed: it is slower. An inconclusive comparison skips the test once its body has passed, or fails it
                under `--qat-strict`.
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

    def diagnose(self) -> Diagnosis:
        """Return what is wrong with the prepared and the converted model, whether or not a check has failed.

        Raises:
            CheckFailed: the model cannot be prepared or converted.
            QATError: its data or training cannot be used.
        """
        from pytest_qat.diagnosis.diagnose import diagnosed
        from pytest_qat.diagnosis.given import stages_of
        from pytest_qat.pipeline.run import StageFailed

        __tracebackhide__ = True
        run = self.checks.run
        with _as_test_failure():
            try:
                done = run.converted()
                given = stages_of(run.case, prepared=done.prepared.module if done.prepared else None,
                                  converted=done.int8.module)
                return run.stage("diagnosis", lambda: diagnosed(given))
            except StageFailed as failed:
                raise failed.error from None

    def lend(self, stage: Callable[[ModelRun], nn.Module]) -> Iterator[nn.Module]:
        """Yield a copy of a stage's module, with the recipe's engine set meanwhile."""
        from pytest_qat.core.torch_state import quantized_engine
        from pytest_qat.pipeline.run import StageFailed

        run = self.checks.run
        with _as_test_failure():
            try:
                module = copy.deepcopy(stage(run))
            except StageFailed as failed:
                raise failed.error from None
        with quantized_engine(run.recipe.engine):
            yield module

    def hold_to_marker(self, *, everything: bool) -> None:
        """Make the checks that the marker gives tolerances for and the test has not made yet.

        An inconclusive check skips the test, but only after all others, so that the skip hides no failure.

        Args:
            everything: Whether a marker without tolerances stands for accuracy, size and speed.

        Raises:
            CheckFailed: a check failed.
        """
        wanted = {CHECK_OF_TOLERANCE[name] for name in self._arguments.tolerances}
        if everything and not wanted:
            wanted = {"accuracy", "size", "speedup"}
        for check in sorted(wanted - self._asserted):
            self._hold(check)
        for result in self._inconclusive:
            raise_result(result, item=self._item, prefix=f"recipe {self.checks.run.recipe.name}: ")

    def _hold(self, check: str, **bound: float | None) -> None:
        from pytest_qat.diagnosis.causes import with_causes

        __tracebackhide__ = True
        self._asserted.add(check)
        checks = self.checks
        base: Tolerances = checks.run.settings.tolerances
        tolerances = base.override(**self._arguments.tolerances).override(**bound)
        try:
            result = with_causes(checks, checks.check(check, selected=(), tolerances=tolerances))
        finally:
            note(self._item, checks.record())
        if result.verdict.outcome.value == "failed":
            raise_result(result, item=self._item)
        self._inconclusive += [result] if result.verdict.outcome.value != "passed" else []


def _arguments_of(item: pytest.Item) -> MarkerArguments:
    arguments = read_marker(item)
    if arguments is None:
        raise InvalidOption(f"{item.name} uses a qat fixture, but no @pytest.mark.qat names its model.",
                            hint='Add @pytest.mark.qat(model="package.module:function").')
    return arguments


RUN: pytest.StashKey[QATRun] = pytest.StashKey()
"""On a marked test: its run, with what was asserted in this attempt."""


def _run_of(item: pytest.Item, session: QATSession) -> QATRun:
    """Return the run of a marked test in this attempt.

    Raises:
        InvalidOption: the test has no marker, or a bad one.
    """
    _arguments_of(item)
    return item.stash.setdefault(RUN, QATRun(item, session))


def started_run(item: pytest.Item, *, session: QATSession) -> QATRun:
    """Return the run of a test; a bad marker or case fails the test with one sentence."""
    with _as_test_failure():
        run = _run_of(item, session)
        _ = run.checks
    return run


def hold_to_marker(item: pytest.Item, *, session: QATSession) -> None:
    """Hold a marked test's model to its marker once the body has passed."""
    names = item.fixturenames if isinstance(item, pytest.Function) else ()
    with _as_test_failure():
        _run_of(item, session).hold_to_marker(everything=not any(name in names for name in _FIXTURES))


@contextlib.contextmanager
def _as_test_failure() -> Iterator[None]:
    """Show a failed check or a tool error as text instead of a traceback through this package."""
    try:
        yield
    except (CheckFailed, QATError) as error:
        pytest.fail(failure_text(error, title="@pytest.mark.qat"), pytrace=False)


def latency_comparison(session: QATSession) -> Callable[..., Speedup]:
    """Return `compare_latency` with the session's threads and time, holding the machine's timing lock."""
    def compare(baseline_fn: Callable[[], object], candidate_fn: Callable[[], object], *,
                floor: float | None = None) -> Speedup:
        from pytest_qat.core.torch_state import preserved_torch_state, threads
        from pytest_qat.measure.latency import TimingSettings, compare_latency

        budget_s = session.options.max_time_s
        settings = TimingSettings(max_time_s=budget_s)
        with (progress.step("speed", subject="qat_compare_latency"), session.registry.alone(), preserved_torch_state(),
              threads(session.options.threads), progress.step("timing", budget_s=budget_s, still=True)):
            return compare_latency(baseline_fn, candidate_fn, settings=settings, floor=floor)

    return compare
