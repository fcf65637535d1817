"""Turn the errors that PyTorch raises around quantization into findings: module, cause, mend."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pytest_qat.core.tracebacks import headline, locate_module, place_of, raised_outside_of_torch
from pytest_qat.findings import Finding
from pytest_qat.workflows.known_errors.exporting import EXPORTING
from pytest_qat.workflows.known_errors.int8_calls import INT8_CALLS
from pytest_qat.workflows.known_errors.known import finding_of
from pytest_qat.workflows.known_errors.loading import LOADING
from pytest_qat.workflows.known_errors.observing import OBSERVING
from pytest_qat.workflows.known_errors.preparing import PREPARING
from pytest_qat.workflows.known_errors.raised import Raised

__all__ = ["explain", "unexplained"]

_KNOWN = (*LOADING, *PREPARING, *OBSERVING, *EXPORTING, *INT8_CALLS)
_DEEPEST = 8


def explain(error: BaseException, *, model: nn.Module, stage: str) -> Finding | None:
    """Return what an error means for the user's model, or None if it is not a known one.

    Args:
        error: As caught, with its traceback. If it is not known, those that it was raised from are tried.
        model: The module that was being called or transformed; names the place.
        stage: What was going on, such as `prepare` or `convert`.

    Returns:
        The first explanation that fits. An error that the user's own `raise` or `assert` made is none of PyTorch's,
        whatever its text says.
    """
    for each in _causes(error):
        if raised_outside_of_torch(each):
            continue
        raised = Raised(each, model, stage)
        for known in _KNOWN:
            finding = finding_of(known, raised)
            if finding is not None:
                return finding
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    for _ in range(_DEEPEST):
        yield error
        if error.__cause__ is None:
            return
        error = error.__cause__


def unexplained(error: BaseException, *, model: nn.Module, stage: str) -> Finding:
    """Return what can be told of an error that quantization code of others raised and no table knows."""
    return Finding(
        code="quantization-raised", severity="error", module=locate_module(error, model),
        message=f"{stage} raised {type(error).__name__}: {headline(error)} ({place_of(error)}).",
        evidence={"stage": stage, "error": type(error).__name__})
