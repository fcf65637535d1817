"""`Finding`: one observation about a model, with the module that it concerns and one remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

__all__ = ["Finding", "FindingRecord", "Severity", "json_number"]

Severity = Literal["error", "warning", "note"]


class FindingRecord(TypedDict):
    """A finding in the form of `--qat-json`."""

    code: str
    severity: Severity
    module: str | None
    message: str
    remedy: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One observation about a quantized model.

    Attributes:
        code: Name of the kind of finding, in kebab case; it never changes.
        severity: `error` fails a check, `warning` deserves attention, and `note` is for information.
        module: Qualified module name in the user's model, or None if it concerns the whole model.
        message: What was observed, in one sentence.
        remedy: One thing to do about it, an imperative sentence; empty for a note that needs none.
        evidence: Numbers and names that support the message, as plain JSON values.
    """

    code: str
    severity: Severity
    message: str
    remedy: str = ""
    module: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> FindingRecord:
        """Return the finding as plain JSON values, in the order of the report's schema."""
        return {
            "code": self.code,
            "severity": self.severity,
            "module": self.module,
            "message": self.message,
            "remedy": self.remedy,
            "evidence": dict(self.evidence),
        }


def json_number(value: Any) -> float | None:
    """Return a finite number unchanged, and None for anything that JSON cannot represent as a number."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
