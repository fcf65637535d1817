"""Batch norm channels whose weight (gamma) is 0, as zero-initialized residual branches and pruned channels have.

QAT trains a convolution with its batch norm folded in: torch.ao's modules and torchao's graphs scale the weight by
gamma / sqrt(variance + eps) and divide the output by it again, which is 0 / 0 here. A gamma of 1e-14 computes the same
to within rounding, 0 / gamma is 0, and its square, by which gradients are divided, is no denormal number.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_zero_gamma", "without_zero_gamma"]

_TINY = 1e-14


def has_zero_gamma(model: nn.Module) -> bool:
    """Return whether any channel of any batch norm has a weight of 0."""
    return any(_zeros(module) is not None for module in model.modules())


def without_zero_gamma(model: nn.Module) -> dict[str, int]:
    """Give such channels a tiny gamma instead, in place; return how many there were, by module."""
    found = {}
    for name, module in model.named_modules():
        if (zeros := _zeros(module)) is not None:
            found[name] = int(zeros.sum())
            with torch.no_grad():
                module.weight.masked_fill_(zeros, max(_TINY, torch.finfo(module.weight.dtype).tiny))
    return found


def _zeros(module: nn.Module) -> torch.Tensor | None:
    weight = module.weight if isinstance(module, _BatchNorm) else None
    if weight is None or weight.is_meta:
        return None
    zeros = weight.detach() == 0
    return zeros if bool(zeros.any()) else None
