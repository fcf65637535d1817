"""What every item of the command line has in common, whatever it checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.plugin.messages import failure_text

if TYPE_CHECKING:
    from _pytest._code.code import ExceptionInfo, TerminalRepr

__all__ = ["CommandLineItem"]


class CommandLineItem(pytest.Item):
    """An item that comes from an option instead of a file."""

    @property
    def title(self) -> str:
        """Name at the head of a failure."""
        return self.nodeid

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], *args: Any, **kwargs: Any) -> str | TerminalRepr:
        """Print a finding or a tool error as text, anything unforeseen with its traceback."""
        text = failure_text(excinfo.value, title=self.title)
        return text if text is not None else super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return where the item comes from: the command line."""
        return self.nodeid.rpartition("::")[0], None, self.nodeid
