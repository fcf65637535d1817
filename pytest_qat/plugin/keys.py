"""Where the plugin keeps its state inside pytest's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import pytest

if TYPE_CHECKING:
    from pytest_qat.plugin.runs import QATRun
    from pytest_qat.plugin.session import QATSession
    from pytest_qat.record.schema import Ranking, RunRecord

__all__ = ["OUTCOME", "RECORD", "RUN", "SESSION", "Measured"]


class Measured(TypedDict):
    """What an item measured: the records of its runs, and their ranking if it made one."""

    records: list[RunRecord]
    ranking: Ranking | None



SESSION: pytest.StashKey[QATSession] = pytest.StashKey()
"""On the configuration: the session."""
RECORD: pytest.StashKey[Measured] = pytest.StashKey()
"""On an item: what it measured."""
RUN: pytest.StashKey[QATRun] = pytest.StashKey()
"""On a marked test: its run, with what was asserted in this attempt."""
OUTCOME: pytest.StashKey[str] = pytest.StashKey()
"""On an item that is reported as skipped: `inconclusive` or `blocked`."""
