"""The names of the checks in their order, and which stage each one answers for. No torch."""

from __future__ import annotations

__all__ = ["CHECKS", "CHECK_OF_TOLERANCE", "STAGE_OWNERS"]

CHECKS = ("prepare", "convert", "coverage", "parity", "accuracy", "size", "speedup", "roundtrip")

STAGE_OWNERS = {"inputs": "prepare", "prepare": "prepare", "fine-tune": "convert", "convert": "convert",
                "deploy": "convert", "coverage": "coverage"}
"""A stage that fails is the fault of its owner; the checks that need it are blocked."""

CHECK_OF_TOLERANCE = {"accuracy_drop": "accuracy", "min_accuracy": "accuracy", "min_speedup": "speedup",
                      "min_size_reduction": "size", "min_coverage": "coverage"}
