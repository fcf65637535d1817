"""Let a model that only observes round as it would once converted, so that it can be judged like one from QAT.

`prepare`, `prepare_fx` and `prepare_pt2e` insert plain observers; weights in modules are observed by `convert` only.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization import FakeQuantize
from torch.nn.utils import parametrize

from pytest_qat.workflows.observers import fake_quantizers, resume_fake_quantize, switch_observers

__all__ = ["observers", "simulated"]

_REDUCED = 127
_STATIC = (torch.quint8, torch.qint8, torch.uint8, torch.int8, torch.int16, torch.int32, torch.qint32)


def observers(model: nn.Module, *, every_name: bool = False) -> dict[str, Any]:
    """Return what observes without rounding, by name: observers that are no part of a fake-quantizer.

    Args:
        model: In whatever stage.
        every_name: Whether to list a module at each place where it stands.
    """
    inside = {id(module) for _, quantizer in fake_quantizers(model) for module in quantizer.modules()}
    return {name: module for name, module in model.named_modules(remove_duplicate=not every_name)
            if callable(getattr(module, "calculate_qparams", None)) and id(module) not in inside}


def simulated(prepared: nn.Module) -> nn.Module:
    """Return a copy of a prepared model in eval mode that rounds with the ranges that it has observed.

    Args:
        prepared: Calibrated, from whichever workflow; one from QAT is copied with its fake-quantizers switched on.
    """
    model = copy.deepcopy(prepared).eval()
    made: dict[int, FakeQuantize | None] = {}  # one observer may stand at several places, as at those of a cat
    for name, observer in observers(model, every_name=True).items():
        if id(observer) not in made:
            made[id(observer)] = _quantizer(observer)
        if (quantizer := made[id(observer)]) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, quantizer)
    for module in list(model.modules()):
        layer = module[0] if isinstance(module, nn.Sequential) and isinstance(module, _FusedModule) else module
        _round_weight(layer, getattr(getattr(module, "qconfig", None), "weight", None))
    switch_observers(model, on=False)
    resume_fake_quantize(model)
    return model


class _ClippedAtEightBits(FakeQuantize):
    """Rounds to a scale for seven bits (`reduce_range`) and clips at eight, as int8 kernels do."""

    def calculate_qparams(self) -> Any:  # type: ignore[override]
        """Return the scale for seven bits."""
        observer: Any = self.activation_post_process
        observer.quant_max = _REDUCED
        try:
            return observer.calculate_qparams()
        finally:
            observer.quant_max = 255


def _quantizer(observer: Any) -> FakeQuantize | None:
    """Return a fake-quantizer with an observer's qparams; None where it has none, as for dynamic quantization."""
    if getattr(observer, "is_dynamic", False) or getattr(observer, "dtype", None) not in _STATIC:
        return None
    with contextlib.suppress(Exception):  # one that has seen nothing, or derives its qparams from others
        reduced = observer.dtype == torch.quint8 and observer.quant_max == _REDUCED
        quantizer = (_ClippedAtEightBits if reduced else FakeQuantize)(observer=lambda **_: observer)
        scale, zero_point = quantizer.calculate_qparams()
        quantizer.scale.resize_(scale.shape).copy_(scale)
        quantizer.zero_point.resize_(zero_point.shape).copy_(zero_point)
        quantizer.disable_observer()
        return quantizer
    return None


def _round_weight(layer: nn.Module, make: Any) -> None:
    """Let a layer whose weights `convert` will observe use them rounded.

    Args:
        layer: Changed in place if it has weights of two or more dimensions that nothing rounds yet.
        make: Makes the observer of the weights; None: they stay as they are.
    """
    weight = layer._parameters.get("weight")  # noqa: SLF001 - not what a fused module delegates to
    if make is None or weight is None or weight.dim() < 2 or hasattr(layer, "weight_fake_quant"):
        return
    made = make()
    observer = getattr(made, "activation_post_process", made)
    with contextlib.suppress(Exception):
        observer(weight.detach())
        if (quantizer := _quantizer(observer)) is not None:
            parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
