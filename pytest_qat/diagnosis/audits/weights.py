"""Whether weights survive being rounded: channels that one common scale wipes out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.diagnosis.given import Given
from pytest_qat.diagnosis.int8_layers import PER_CHANNEL, fused_form
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.workflows.names import observed, observed_module, user_names
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["few_codes", "lost_channels"]

_LOST_DB = 12.0
"""A channel that rounding changes by a quarter of its size has hardly four bits left."""
_SHARE = 0.1
_NAMED = 5
_FEW_CODES = 8


def lost_channels(given: Given) -> Iterator[Finding]:
    """Weights with one scale for all channels, at least a tenth of which it rounds to next to nothing."""
    found: dict[str, list[float]] = {}
    for name, weight, rounded in _weights(given):
        levels = [sqnr_db(one, other) for one, other in zip(weight, rounded, strict=True) if float(one.norm()) > 0]
        if sum(level < _LOST_DB for level in levels) >= max(1.0, _SHARE * len(levels)):
            found[name] = levels
    if not found:
        return
    module = max(found, key=lambda name: sum(level < _LOST_DB for level in found[name]) / len(found[name]))
    lost = sum(level < _LOST_DB for level in found[module])
    yield Finding(
        code="one-scale-for-all-channels", severity="warning", module=module,
        evidence={"modules": list(found)[:_NAMED], "lost": lost, "channels": len(found[module]),
                  "worst_db": json_number(min(found[module]))},
        message=f"all channels of the weights of {module} share one scale, and for {lost} of {len(found[module])} its "
                f"steps are so coarse that rounding changes them by a quarter and more ({min(found[module]):.1f} dB "
                "at worst).",
        remedy=PER_CHANNEL)


def few_codes(given: Given) -> Iterator[Finding]:
    """Quantizers that leave their values less than three bits."""
    if given.rounding is None:
        return
    own = user_names(given.rounding)
    for name, quantizer in fake_quantizers(given.rounding):
        codes = int(getattr(quantizer, "quant_max", 255)) - int(getattr(quantizer, "quant_min", 0)) + 1
        if codes < _FEW_CODES:
            yield Finding(
                code="rounding-too-coarse", severity="warning", module=observed_module(own[name]),
                evidence={"codes": codes},
                message=f"what {observed(own[name])} rounds has {codes} codes, where int8 has 256.",
                remedy="give it quant_min and quant_max of eight bits.")
            return


def _weights(given: Given) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield module, float weights and rounded weights, wherever one scale holds for a whole tensor of them."""
    if given.rounding is not None:
        yield from _prepared(given.rounding)
    elif given.converted is not None:
        yield from _converted(given, given.converted)


def _prepared(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    own, layers = user_names(model), dict[str, Any](model.named_modules())
    for name, layer in layers.items():
        quantizer: Any = getattr(layer, "weight_fake_quant", None)
        weight: Any = getattr(layer, "weight", None)
        if quantizer is None and "weight" in getattr(layer, "parametrizations", ()):
            quantizer, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        scale = getattr(quantizer, "scale", None)
        if isinstance(weight, Tensor) and scale is not None and scale.numel() == 1 and _has_channels(weight):
            with torch.no_grad():
                yield own[name], _folded(layer, weight), quantizer(_folded(layer, weight))


def _has_channels(weight: Tensor) -> bool:
    return weight.dim() > 1 and weight.shape[0] > 1


def _folded(module: Any, weight: Tensor) -> Tensor:
    """Return the weights as they are rounded: those of a layer for QAT with its batch norm folded in."""
    norm = getattr(module, "bn", None)
    if norm is None:
        return weight.detach()
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded: Tensor = (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).detach()
    return folded


def _converted(given: Given, converted: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    own, layers = user_names(converted), dict[str, Any](converted.named_modules())
    floats = dict[str, Any](fused_form(given).named_modules())
    for name, module in layers.items():
        layer = floats.get(own[name])
        layer = layer[0] if isinstance(layer, nn.Sequential) and len(layer) else layer
        plain = getattr(layer, "weight", None)
        int8 = module.weight() if callable(getattr(module, "weight", None)) else None
        if isinstance(int8, Tensor) and isinstance(plain, Tensor) and int8.is_quantized and (
                int8.shape == plain.shape and _has_channels(plain) and int8.qscheme() in (
                    torch.per_tensor_affine, torch.per_tensor_symmetric)):
            yield own[name], plain.detach(), int8.dequantize()
