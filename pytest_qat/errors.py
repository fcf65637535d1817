"""Everything pytest-qat raises on purpose.

Two families, kept apart: a *tool error* (`QATError`) says that a question could not be asked — a bad case, option
or reference — and carries a hint; a *finding* (`CheckFailed`) is the answer to a question that was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_qat.findings import Finding

__all__ = [
    "CheckFailed",
    "DataError",
    "InvalidCase",
    "InvalidOption",
    "MeasurementError",
    "MissingPackage",
    "NotComparable",
    "QATError",
    "ReferenceNotFound",
    "StageError",
    "TrainingError",
    "UnknownRecipe",
    "UnsupportedEnvironment",
]


class QATError(Exception):
    """A question that could not be asked.

    Args:
        message: One sentence: what failed, the value seen, what was expected.
        hint: One remedy, an imperative sentence; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.hint}" if self.hint else self.message


class InvalidOption(QATError):
    """An option, ini value, marker argument or tolerance has a value that makes no sense."""


class ReferenceNotFound(QATError):
    """A `pkg.mod:fn` reference names something that is not there."""


class InvalidCase(QATError):
    """What the user's function returned cannot be tested as it stands."""


class DataError(QATError):
    """Training, calibration or evaluation data do not have the form that the case promises."""


class UnknownRecipe(QATError):
    """No recipe has this name."""


class UnsupportedEnvironment(QATError):
    """The machine or the installed packages lack what the recipe needs."""


class MissingPackage(UnsupportedEnvironment):
    """A package or compiler that a recipe needs is not installed; the hint is how to install it."""


class StageError(QATError):
    """The user's own code, or a PyTorch stage, failed in a way that the message explains."""


class TrainingError(StageError):
    """Fine-tuning failed, by the user's own code or by what it does to the weights; no other recipe mends that."""


class NotComparable(QATError):
    """What two models return cannot be held against each other; the hint is what would make it possible."""


class MeasurementError(QATError):
    """A quantity could not be measured on this machine, or with this input."""


class CheckFailed(AssertionError):
    """A check was made and its answer is no.

    Args:
        reasons: What was measured and what was required, one sentence each.
        findings: Causes, each with its module and remedy.
    """

    def __init__(self, reasons: Sequence[str], *, findings: Sequence[Finding] = ()) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(reasons)
        self.findings = tuple(findings)
