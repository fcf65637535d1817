"""What a failed check prints: verdict, numbers, cause and remedy; no traceback of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_qat.errors import CheckFailed, QATError

if TYPE_CHECKING:
    from pytest_qat.findings import Finding

__all__ = ["failure_text"]

_SHOWN = 12


def failure_text(error: BaseException, *, title: str) -> str | None:
    """Return the text of a finding or a tool error, or None for anything else, which keeps its traceback."""
    if isinstance(error, CheckFailed):
        return "\n".join([f"{title} FAILED", *(f"  {reason}" for reason in error.reasons),
                          *_finding_lines(error.findings)])
    if isinstance(error, QATError):
        lines = [f"{title} FAILED", f"  {error.message}"]
        return "\n".join([*lines, f"  remedy: {error.hint}"] if error.hint else lines)
    return None


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    telling = [finding for finding in findings if finding.severity != "note"]
    lines = []
    for finding in telling[:_SHOWN]:
        where = f" in {finding.module}" if finding.module else ""
        lines.append(f"  cause{where}: {finding.message}")
        if finding.remedy and (finding is telling[0] or finding.remedy != telling[0].remedy):
            lines.append(f"  remedy: {finding.remedy}")
    if len(telling) > _SHOWN:
        lines.append(f"  ... and {len(telling) - _SHOWN} more of the kind")
    return lines
