"""What a failed check prints: verdict, numbers, cause and remedy, without a traceback through this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_qat.errors import CheckFailed, QATError

if TYPE_CHECKING:
    from pytest_qat.findings import Finding

__all__ = ["failure_text"]

_SHOWN = 12


def failure_text(error: CheckFailed | QATError, *, title: str) -> str:
    """Return the text of a failed check or a tool error, below a title."""
    if isinstance(error, CheckFailed):
        lines = [*(f"  {reason}" for reason in error.reasons), *_finding_lines(error.findings)]
    else:
        lines = [f"  {error.message}", *([f"  remedy: {error.hint}"] if error.hint else [])]
    return "\n".join([f"{title} FAILED", *lines])


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    telling = [finding for finding in findings if finding.severity != "note"]
    untried = " (not tried)" if any("remedies" in finding.evidence for finding in findings) else ""
    tried = [finding for finding in findings if {"probes", "remedies"} & set(finding.evidence)]
    lines = []
    for finding in telling[:_SHOWN]:
        where = f" in {finding.module}" if finding.module else ""
        lines.append(f"  cause{where}: {finding.message}")
        if finding.remedy and (finding is telling[0] or finding.remedy != telling[0].remedy):
            lines.append(f"  remedy{untried}: {finding.remedy}")
    if len(telling) > _SHOWN:
        lines.append(f"  ... and {len(telling) - _SHOWN} more findings")
    for finding in tried:
        lines.append(f"  tried: {finding.message}")
        if finding.remedy:
            lines.append(f"  remedy: {finding.remedy}")
    return lines
