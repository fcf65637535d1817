"""`Finding`: one observation about a model, with the module it concerns and one remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Severity", "json_number"]

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One observation about a quantized model.

    Attributes:
        code: Stable kebab-case name of the kind of finding.
        severity: `error` fails a check, `warning` deserves a look, `note` is for the record.
        module: Qualified module name in the user's model, or None if it concerns the whole model.
        message: What was seen, in one sentence.
        remedy: One thing to do about it, an imperative sentence; empty for a note that needs none.
        evidence: Numbers and names behind the message; plain JSON values only.
    """

    code: str
    severity: Severity
    message: str
    remedy: str = ""
    module: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain JSON values, in the order of the report's schema."""
        return {
            "code": self.code,
            "severity": self.severity,
            "module": self.module,
            "message": self.message,
            "remedy": self.remedy,
            "evidence": dict(self.evidence),
        }

    def as_line(self) -> str:
        """Return the finding as one line of text: module, message, remedy."""
        where = f"{self.module}: " if self.module else ""
        mend = f" Remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{mend}"


def json_number(value: Any) -> float | None:
    """Return a number that JSON can say, or None."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
