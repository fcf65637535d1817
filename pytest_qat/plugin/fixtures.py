"""Fixtures for a user's own tests. Every pytest session loads this module, so what they do is in `marked`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from pytest_qat.case import QATCase
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.plugin.marked import QATRun

__all__ = ["qat_case", "qat_compare_latency", "qat_converted", "qat_prepared", "qat_run"]


@pytest.fixture
def qat_run(request: pytest.FixtureRequest) -> QATRun:
    """The run of the model that `@pytest.mark.qat` names: `assert_accuracy`, `assert_speedup`, and so on."""
    from pytest_qat.plugin.hooks import session_of
    from pytest_qat.plugin.marked import started_run

    return started_run(request.node, session=session_of(request.config))


@pytest.fixture
def qat_case(qat_run: QATRun) -> QATCase:
    """The `QATCase` of the model that `@pytest.mark.qat` names."""
    return qat_run.case


@pytest.fixture
def qat_prepared(qat_run: QATRun) -> Iterator[nn.Module]:
    """A copy of the prepared module, with observers and fake-quantize in place, before fine-tuning."""
    yield from qat_run.lend(lambda run: run.prepared().module)


@pytest.fixture
def qat_converted(qat_run: QATRun) -> Iterator[nn.Module]:
    """A copy of the fine-tuned and converted int8 module; the recipe's engine is set while the test runs."""
    yield from qat_run.lend(lambda run: run.converted().int8.module)


@pytest.fixture
def qat_compare_latency(request: pytest.FixtureRequest) -> Callable[..., Speedup]:
    """`qat_compare_latency(baseline_fn, candidate_fn, floor=None)` -> `Speedup`, while no other session measures."""
    from pytest_qat.plugin.hooks import session_of
    from pytest_qat.plugin.marked import latency_comparison

    return latency_comparison(session_of(request.config))
