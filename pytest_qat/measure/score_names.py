"""What the default metrics are called in verdicts, tables and the record. Pure: the verdict reads it."""

from __future__ import annotations

__all__ = ["ACCURACY_OF_POSITIONS", "NAMED_IN_REPORTS", "PIXEL_ACCURACY", "RELATIVE_ERROR", "TOP1"]

TOP1 = "top-1"
ACCURACY_OF_POSITIONS = "accuracy of positions"
PIXEL_ACCURACY = "pixel accuracy"
RELATIVE_ERROR = "relative error"
NAMED_IN_REPORTS = (ACCURACY_OF_POSITIONS, PIXEL_ACCURACY, RELATIVE_ERROR)
"""Those that are called by their name instead of "accuracy"."""
