"""Switch observers and fake-quantizers of a prepared model, whichever package they come from.

torch.ao's and torchao's classes share the buffers `observer_enabled` and `fake_quant_enabled`, not a base class;
torchao's dynamic fake-quantizers have a flag `enabled` and observe nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fake_quantizers", "forget_ranges", "qparams_of", "range_of", "resume_fake_quantize",
           "round_as_converted", "rounds",
           "switch_fake_quantize", "switch_observers", "switch_quantizers", "take_over_ranges", "unbounded_range"]


def fake_quantizers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the fake-quantizers of a model with their names."""
    for name, module in model.named_modules():
        if hasattr(module, "fake_quant_enabled") or _is_dynamic(module):
            yield name, module


def qparams_of(module: Any) -> tuple[list[float], list[int]]:
    """Return the scales and zero points that a fake-quantizer holds, one of each per channel."""
    return module.scale.flatten().tolist(), [int(code) for code in module.zero_point.flatten()]


def range_of(quantizer: Any) -> tuple[Tensor, Tensor] | None:
    """Return the least and greatest values that a fake-quantizer's observer has seen; None if it keeps none."""
    return _ends(getattr(quantizer, "activation_post_process", quantizer))


def _ends(observer: Any) -> tuple[Tensor, Tensor] | None:
    low, high = getattr(observer, "min_val", None), getattr(observer, "max_val", None)
    return (low, high) if isinstance(low, Tensor) and isinstance(high, Tensor) else None


def unbounded_range(model: nn.Module) -> tuple[str, float, float] | None:
    """Return the name of the first observer that has seen NaN or infinity, and its minimum and maximum."""
    for name, module in model.named_modules():
        if (ends := _ends(module)) is None or not ends[0].numel():
            continue
        low, high = ends
        unseen = torch.isposinf(low) & torch.isneginf(high)
        if not bool((unseen | (torch.isfinite(low) & torch.isfinite(high))).all()):
            return name, low.min().item(), high.max().item()
    return None


def switch_observers(model: nn.Module, *, on: bool) -> None:
    """Let the observers look at what passes, or not."""
    for _, module in fake_quantizers(model):
        if hasattr(module, "observer_enabled"):
            module.observer_enabled[0] = int(on)


def switch_fake_quantize(model: nn.Module, *, on: bool) -> None:
    """Let the fake-quantizers round what passes, or not."""
    switch_quantizers((module for _, module in fake_quantizers(model)), on=on)


def switch_quantizers(quantizers: Iterable[Any], *, on: bool) -> None:
    """Let these fake-quantizers round what passes, or not."""
    for quantizer in quantizers:
        if _is_dynamic(quantizer):
            quantizer.enabled = on
        else:
            quantizer.fake_quant_enabled[0] = int(on)


def rounds(quantizer: Any) -> bool:
    """Whether a fake-quantizer is switched on."""
    return bool(quantizer.enabled if _is_dynamic(quantizer) else int(quantizer.fake_quant_enabled[0]))


def forget_ranges(model: nn.Module) -> None:
    """Let observers that only ever widen their range begin anew; moving averages follow what they see anyway."""
    observers: list[Any] = list(model.modules())
    for module in observers:
        if hasattr(module, "averaging_constant") or (ends := _ends(module)) is None:
            continue
        low, high = ends
        if low.dim():
            low.resize_(0)
            high.resize_(0)
        else:
            low.fill_(torch.inf)
            high.fill_(-torch.inf)
        if isinstance(getattr(module, "histogram", None), Tensor):
            module.histogram.zero_()


def round_as_converted(model: nn.Module) -> None:
    """Let fake-quantizers use the qparams that converting will read, which torch's fused kernel computes otherwise.

    For symmetric codes it divides the range by 127 or 128, and the observer by 127.5 (pytorch/pytorch#194816), so that
    each weight would be trained on one grid and shipped on another. The class that the fused one is derived from asks
    the observer.
    """
    for _, module in fake_quantizers(model):
        if type(module).__name__ == "FusedMovingAvgObsFakeQuantize":
            module.__class__ = type(module).__base__


def take_over_ranges(model: nn.Module) -> None:
    """Let fake-quantizers use what their observers saw: the fused kernel only does so while both are switched on."""
    for _, module in fake_quantizers(model):
        if hasattr(module, "activation_post_process") and isinstance(getattr(module, "scale", None), Tensor):
            scale, zero_point = module.calculate_qparams()
            module.scale.resize_(scale.shape).copy_(scale)
            module.zero_point.resize_(zero_point.shape).copy_(zero_point)


def resume_fake_quantize(model: nn.Module) -> int:
    """Switch fake-quantizers on that were off, with the ranges that their observers saw; return how many these are."""
    off = sum(not rounds(module) for _, module in fake_quantizers(model))
    if off:
        switch_fake_quantize(model, on=True)
        take_over_ranges(model)
    return off


def _is_dynamic(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torchao") and isinstance(getattr(module, "enabled", None), bool)
