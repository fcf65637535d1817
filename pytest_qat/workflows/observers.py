"""Switch observers and fake-quantizers of a prepared model, whichever package they come from.

torch.ao's and torchao's classes share the buffers `observer_enabled` and `fake_quant_enabled`, not a base class;
torchao's dynamic fake-quantizers have a flag `enabled` and observe nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["fake_quantizers", "qparams_of", "switch_fake_quantize", "switch_observers"]


def fake_quantizers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the fake-quantizers of a model with their names."""
    for name, module in model.named_modules():
        if hasattr(module, "fake_quant_enabled") or _is_dynamic(module):
            yield name, module


def qparams_of(module: Any) -> tuple[list[float], list[int]]:
    """Return the scales and zero points that a fake-quantizer holds, one of each per channel."""
    return module.scale.flatten().tolist(), [int(code) for code in module.zero_point.flatten()]


def switch_observers(model: nn.Module, *, on: bool) -> None:
    """Let the observers look at what passes, or not."""
    for _, module in fake_quantizers(model):
        if hasattr(module, "observer_enabled"):
            module.observer_enabled[0] = int(on)


def switch_fake_quantize(model: nn.Module, *, on: bool) -> None:
    """Let the fake-quantizers round what passes, or not."""
    for _, module in fake_quantizers(model):
        if _is_dynamic(module):
            module.enabled = on
        else:
            module.fake_quant_enabled[0] = int(on)


def _is_dynamic(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torchao") and isinstance(getattr(module, "enabled", None), bool)
