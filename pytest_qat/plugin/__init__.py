"""The pytest plugin. Loading it loads no torch; without an option, marker or fixture of its own it does nothing.

Every pytest session reads this module, so the session's hooks (`session`) come in only when something asks for them;
what is measured and how it is judged is below, in `pytest_qat.checks`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_qat.plugin.fixtures import qat_case, qat_compare_latency, qat_converted, qat_prepared, qat_run
from pytest_qat.plugin.options import add_options, given

if TYPE_CHECKING:
    from pytest_qat.plugin.session import QATSession

__all__ = ["qat_case", "qat_compare_latency", "qat_converted", "qat_prepared", "qat_run", "start"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the `--qat-*` options and their ini keys."""
    add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Keep the checks of one model on one xdist worker, unless the user chose how to distribute."""
    if config.getoption("qat_model") and config.getoption("numprocesses", None) and (
            config.getoption("dist", None) == "no"):
        config.option.dist = "loadgroup"
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything heavy starts."""
    config.addinivalue_line(
        "markers", "qat(model, recipe, accuracy_drop, min_accuracy, min_speedup, min_size_reduction, min_coverage): "
        "quantize the model and hold it to these tolerances after the test's body; "
        "fixtures: qat_case, qat_prepared, qat_converted, qat_run.")
    if given(config) or config.getoption("tx", None):  # an xdist controller cannot see what its workers collect
        start(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """After a test's body, hold the model to its marker, which a fixture or the body may have added."""
    yield
    if item.get_closest_marker("qat") is not None:
        from pytest_qat.plugin.runs import hold_to_marker

        hold_to_marker(item)


def start(config: pytest.Config) -> QATSession:
    """Register the session's hooks and return it.

    Raises:
        pytest.UsageError: an option makes no sense.
    """
    from pytest_qat.errors import QATError
    from pytest_qat.plugin.session import QATSession

    session = QATSession(config)
    if given(config):
        try:
            _ = session.options
        except QATError as error:
            raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(session, "qat-session")
    return session
