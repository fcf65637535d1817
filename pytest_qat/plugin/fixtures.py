"""Fixtures for a user's own tests; they share pipeline and report with the collected checks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from pytest_qat.case import QATCase
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.plugin.runs import QATRun
    from pytest_qat.plugin.session import QATSession

__all__ = ["qat_case", "qat_compare_latency", "qat_converted", "qat_prepared", "qat_run"]


def _session(request: pytest.FixtureRequest) -> QATSession:
    from pytest_qat.plugin.keys import SESSION

    return request.config.stash[SESSION]


@pytest.fixture
def qat_run(request: pytest.FixtureRequest) -> QATRun:
    """The run of the model that `@pytest.mark.qat` names: `assert_accuracy`, `assert_speedup`, and so on."""
    from pytest_qat.plugin.runs import AsTestFailure, run_of

    with AsTestFailure():
        run = run_of(request.node, _session(request))
        _ = run.assessment
    return run


@pytest.fixture
def qat_case(qat_run: QATRun) -> QATCase:
    """The `QATCase` of the model that `@pytest.mark.qat` names."""
    return qat_run.case


@pytest.fixture
def qat_prepared(qat_run: QATRun) -> Iterator[nn.Module]:
    """A copy of the QAT-prepared module, observers and fake-quantize in place, not yet trained."""
    from pytest_qat.plugin.runs import AsTestFailure

    with AsTestFailure():
        module = _stage(lambda: qat_run.assessment.run.prepared().module)
    yield from _under_engine(qat_run, module)


@pytest.fixture
def qat_converted(qat_run: QATRun) -> Iterator[nn.Module]:
    """A copy of the fine-tuned and converted int8 module; the recipe's engine is set while the test runs."""
    from pytest_qat.plugin.runs import AsTestFailure

    with AsTestFailure():
        module = _stage(lambda: qat_run.assessment.run.converted().converted.module)
    yield from _under_engine(qat_run, module)


def _stage(make: Callable[[], nn.Module]) -> nn.Module:
    from pytest_qat.pipeline import StageFailed

    try:
        return copy.deepcopy(make())
    except StageFailed as failed:
        raise failed.error from None


def _under_engine(run: QATRun, module: nn.Module) -> Iterator[nn.Module]:
    from pytest_qat.isolation import quantized_engine

    with quantized_engine(run.assessment.run.recipe.engine):
        yield module


@pytest.fixture
def qat_compare_latency(request: pytest.FixtureRequest) -> Callable[..., Speedup]:
    """`qat_compare_latency(baseline_fn, candidate_fn, floor=None)` -> `Speedup`, with the machine to itself."""
    session = _session(request)

    def compare(baseline_fn: Callable[[], object], candidate_fn: Callable[[], object], *,
                floor: float | None = None) -> Speedup:
        from pytest_qat.isolation import preserved_torch_state, threads
        from pytest_qat.measure.latency import TimingSettings, compare_latency

        settings = TimingSettings(max_time_s=session.options.max_time_s)
        with session.registry.alone(), preserved_torch_state(), threads(session.options.threads):
            return compare_latency(baseline_fn, candidate_fn, settings=settings, floor=floor)

    return compare
