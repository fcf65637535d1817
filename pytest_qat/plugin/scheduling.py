"""How pytest-xdist distributes the checks of models: all checks of one model run on one worker.

`xdist_group` marks would do the same, but they change node ids, which then differ from those of a run without xdist,
and pytest 9.2 silently ignores them (pytest-dev/pytest-xdist#1386).
"""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling

__all__ = ["ModelScheduling"]


class ModelScheduling(LoadGroupScheduling):  # type: ignore[misc]
    """`--dist=loadgroup`, where each model of the command line is a group."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("qat-model:"):
            return nodeid.rpartition("[")[0]
        scope: str = super()._split_scope(nodeid)
        return scope
