"""Where the plugin keeps its state inside pytest's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_qat.plugin.runs import QATRun
    from pytest_qat.plugin.session import QATSession

__all__ = ["OUTCOME", "RECORD", "RUN", "SESSION"]

SESSION: pytest.StashKey[QATSession] = pytest.StashKey()
"""On the configuration: the session."""
RECORD: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
"""On an item: the records of the runs that it measured, and their ranking if it made one."""
RUN: pytest.StashKey[QATRun] = pytest.StashKey()
"""On a marked test: its run, with what was asserted in this attempt."""
OUTCOME: pytest.StashKey[str] = pytest.StashKey()
"""On an item that is reported as skipped: `inconclusive` or `blocked`."""
