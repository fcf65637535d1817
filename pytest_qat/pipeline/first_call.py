"""The first call of a converted model, made in a child process because an int8 kernel may crash the process."""

from __future__ import annotations

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call
from pytest_qat.core.forked import crash_of
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.findings import Finding
from pytest_qat.workflows.known_errors import explain
from pytest_qat.workflows.names import user_names

__all__ = ["try_once"]


def try_once(converted: nn.Module, case: QATCase, *, engine: str | None) -> None:
    """Call a converted model on the example inputs; if it cannot run, name the user's module.

    Raises:
        CheckFailed: it crashed the process, or raised an error that is known.
        StageError: it raised an error that is not known.
    """
    crash = crash_of(converted, [case.example_inputs, *calibration_batches(case, limit=1)])
    if crash is not None:
        raise CheckFailed(
            [f"the converted model crashed its process with {crash.signal_name} ({crash.meaning})."],
            findings=[Finding(
                code="native-crash", severity="error", module=user_names(converted)[crash.module or ""] or None,
                message=f"the {engine or 'int8'} kernel crashes on this machine.",
                remedy="choose a recipe with another engine, or name the module in skip=(...).",
                evidence={"signal": crash.signal_name, "engine": engine})])
    try:
        with torch.inference_mode():
            call(converted, case.example_inputs)
    except Exception as error:
        finding = explain(error, model=converted, stage="convert")
        if finding is None:
            raise StageError(
                f"the converted model raised {type(error).__name__} on example_inputs: {headline(error)}",
                hint="Try an fx recipe, or name the module that fails in skip=(...).") from error
        raise CheckFailed(["the converted model cannot run on example_inputs."], findings=[finding]) from error
