"""The pytest plugin's entry point: the hooks and fixtures that every pytest session loads, and nothing heavy.

What acts on a session is in `hooks`, which is registered only when an option, a marker or a fixture asks for it. What
is measured and how it is judged is below, in `pytest_qat.checks`.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_qat.plugin.fixtures import qat_case, qat_compare_latency, qat_converted, qat_prepared, qat_run
from pytest_qat.plugin.options import add_options, given

__all__ = ["qat_case", "qat_compare_latency", "qat_converted", "qat_prepared", "qat_run"]


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
    """Declare the marker, and check the options before anything heavy starts."""
    config.addinivalue_line(
        "markers", "qat(model, recipe, accuracy_drop, min_accuracy, min_speedup, min_size_reduction, min_coverage): "
        "quantize the model and hold it to these tolerances after the test's body; "
        "fixtures: qat_case, qat_prepared, qat_converted, qat_run.")
    if given(config) or config.getoption("tx", None):  # an xdist controller cannot see what its workers collect
        from pytest_qat.plugin.hooks import session_of

        session_of(config)


@pytest.hookimpl(wrapper=True, trylast=True)  # innermost, where output is captured
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """After a test's body, hold the model to its marker, which a fixture or the body may have added."""
    yield
    if item.get_closest_marker("qat") is not None:
        from pytest_qat.plugin.hooks import session_of
        from pytest_qat.plugin.marked import hold_to_marker

        hold_to_marker(item, session=session_of(item.config))
