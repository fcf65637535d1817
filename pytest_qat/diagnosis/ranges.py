"""Observers whose range is too small to quantize: every value becomes zero, and the model with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_qat.findings import Finding
from pytest_qat.workflows.names import observed, user_names
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["collapsed_ranges"]


def collapsed_ranges(prepared: nn.Module) -> tuple[Finding, ...]:
    """Return one warning if fake-quantizers of a calibrated model round every value that they saw to zero.

    An observer never gives a scale below its `eps` (2^-23 by default, 2^-12 in XNNPACKQuantizer). Activations smaller
    than half of it all round to zero; it happens in untrained or badly initialized models whose signal dies on the way.
    """
    own = user_names(prepared)
    names = [observed(own[name]) for name, module in fake_quantizers(prepared)
             if hasattr(module, "activation_post_process") and _all_zero(module)]
    if not names:
        return ()
    return (Finding(
        code="range-collapsed", severity="warning", module=names[0],
        message=f"the range of {len(names)} observer{'s' if len(names) > 1 else ''} is below the smallest scale, "
                "so their values all become zero.",
        remedy="give the trained model and calibrate on real data; activations this small mean that the signal dies.",
        evidence={"modules": names[:20]}),)


def _all_zero(module: Any) -> bool:
    observer = module.activation_post_process
    ends = [getattr(observer, name, None) for name in ("min_val", "max_val")]
    if any(end is None or end.numel() != 1 or not torch.isfinite(end).all() for end in ends):
        return False  # an observer that never ran has no range to judge
    largest = max(abs(float(end)) for end in ends if end is not None)
    return largest < float(module.calculate_qparams()[0].max()) / 2
