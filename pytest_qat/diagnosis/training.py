"""What went wrong between prepare and convert: nothing simulated, fake-quantize switched off, ranges collapsed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import observed, user_names
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["collapsed_ranges", "notes_on_preparing", "switched_off"]

_NAMED = 20


def notes_on_preparing(case: QATCase, prepared: nn.Module | None) -> tuple[Finding, ...]:
    """Return what to know about a case before it is trained.

    Args:
        case: The user's model.
        prepared: Its prepared form; None if there is none.
    """
    found = []
    if case.model.training:
        found.append(Finding(
            code="model-in-train-mode", severity="note", remedy="call .eval() before handing it over.",
            message="the model came in train mode; a copy in eval mode is the float baseline."))
    trains = case.train is not None or case.train_data is not None
    if prepared is not None and trains and not any(True for _ in fake_quantizers(prepared)):
        found.append(Finding(
            code="no-fake-quantize", severity="warning",
            message="no fake-quantize module was inserted, so training does not see int8: this is not QAT.",
            remedy="give a QAT mapping (get_default_qat_qconfig_mapping), or a quantizer with is_qat=True; the others "
                   "only observe."))
    return tuple(found)


def switched_off(count: int) -> tuple[Finding, ...]:
    """Return one warning if fake-quantize modules were off when training ended."""
    if not count:
        return ()
    return (Finding(
        code="fake-quantize-off", severity="warning", evidence={"modules": count},
        message=f"{count} fake-quantize modules were switched off when training ended, so training did not see int8. "
                "They are on again for the comparisons.",
        remedy="leave fake-quantize on until training ends; only observers may be switched off early."),)


def collapsed_ranges(prepared: nn.Module, *, untrained: bool = False) -> tuple[Finding, ...]:
    """Return one warning if fake-quantizers of a calibrated model round every value that they saw to zero.

    An observer never gives a scale below its `eps` (2^-23 by default, 2^-12 in XNNPACKQuantizer). Activations smaller
    than half of it all round to zero. It happens in untrained or badly initialized models, whose signal fades out.
    What is zero in float, too, as behind a factor that begins at zero, loses nothing.

    Args:
        prepared: The calibrated model.
        untrained: Whether it is known to have random weights, of which nothing else is expected: then it is a note.
    """
    own = user_names(prepared)
    names = [observed(own[name]) for name, module in fake_quantizers(prepared)
             if hasattr(module, "activation_post_process") and _rounds_to_zero(module)]
    if not names:
        return ()
    return (Finding(
        code="range-collapsed", severity="note" if untrained else "warning", module=names[0],
        message=f"the range of {len(names)} observer{'s' if len(names) > 1 else ''} is below the smallest scale, "
                "so all their values become zero.",
        remedy="give the trained model, and calibrate on real data: activations this small carry no signal.",
        evidence={"modules": names[:_NAMED]}),)


def _rounds_to_zero(module: Any) -> bool:
    observer = module.activation_post_process
    ends = [getattr(observer, name, None) for name in ("min_val", "max_val")]
    if any(end is None or end.numel() != 1 or not torch.isfinite(end).all() for end in ends):
        return False  # an observer that never ran has no range to judge
    largest = max(abs(float(end)) for end in ends if end is not None)
    return 0 < largest < float(module.calculate_qparams()[0].max()) / 2
