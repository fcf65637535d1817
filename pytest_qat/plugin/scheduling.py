"""How xdist distributes the checks of models: all of one model to one worker.

Not by `xdist_group` marks: those change node ids, which then differ from a run without xdist, and with pytest 9.2
they are ignored without a word (pytest-dev/pytest-xdist#1386).
"""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling

__all__ = ["ModelScheduling"]


class ModelScheduling(LoadGroupScheduling):  # type: ignore[misc]
    """`--dist=loadgroup`, in which every model of the command line is a group."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("qat-model:"):
            return nodeid.rpartition("[")[0]
        scope: str = super()._split_scope(nodeid)
        return scope
