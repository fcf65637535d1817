"""The first call of a converted model, made in a child process because an int8 kernel may crash the process."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call
from pytest_qat.core.forked import crash_of
from pytest_qat.core.tracebacks import headline, locate_module, place_of
from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.findings import Finding
from pytest_qat.workflows.base import ConvertedModel
from pytest_qat.workflows.kernels import replace_wrong_kernels
from pytest_qat.workflows.known_errors import explain
from pytest_qat.workflows.names import user_names

__all__ = ["try_once", "with_right_kernels"]


def with_right_kernels(converted: ConvertedModel, case: QATCase, *, engine: str | None) -> ConvertedModel:
    """Call a converted model once, and replace the layers whose int8 kernels are wrong on this machine.

    Raises:
        CheckFailed: it crashed the process, or raised.
    """
    try_once(converted.module, case, engine=engine)
    names = user_names(converted.module)
    wrong = {names[name]: level for name, level in replace_wrong_kernels(
        converted.module, case.example_inputs).items()}
    kernel = f"torch's int8 kernel of engine {engine}"
    return replace(
        converted,
        float_modules={**converted.float_modules, **{
            name: f"{kernel} is wrong here ({level:.1f} dB to float arithmetic on the same int8 numbers)"
            for name, level in wrong.items()}},
        findings=(*converted.findings, *(Finding(
            code="wrong-int8-kernel", severity="note", module=name, evidence={"engine": engine, "sqnr_db": level},
            message=f"{kernel} agrees to only {level:.1f} dB with float arithmetic on the same int8 numbers, where "
                    "right kernels leave 40 dB and more. The layer runs in float between int8 ones.")
            for name, level in wrong.items())))


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
                evidence={"signal": crash.signal_name, "engine": engine})])
    try:
        with torch.inference_mode():
            call(converted, case.example_inputs)
    except Exception as error:
        finding = explain(error, model=converted, stage="convert")
        if finding is None:
            place = user_names(converted).get(locate_module(error, converted) or "") or "the converted model"
            raise StageError(f"{place} raised {type(error).__name__} on example_inputs: {headline(error)} "
                             f"({place_of(error)})") from error
        raise CheckFailed(["the converted model cannot run on example_inputs."], findings=[finding]) from error
