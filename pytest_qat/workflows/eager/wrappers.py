"""Modules that eager quantization needs around a user's model: stubs at its border, and islands of float inside."""

from __future__ import annotations

from typing import Any

import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["FloatIsland", "QuantizedBorder", "is_stub"]


class QuantizedBorder(nn.Module):
    """A model with one QuantStub per floating-point input tensor and a DeQuantStub on every output tensor.

    `torch.ao.quantization.QuantWrapper` does this for one input and one output; here inputs and outputs nest.
    """

    def __init__(self, module: nn.Module, *, inputs: tuple[Any, ...], qconfig: Any) -> None:
        super().__init__()
        floats = sum(_is_float(leaf) for leaf in pytree.tree_leaves(inputs))
        self.quants = nn.ModuleList(tq.QuantStub(qconfig) for _ in range(floats))
        self.dequant = tq.DeQuantStub()
        self.module = module
        self.qconfig: Any = qconfig
        self.dequant.qconfig = qconfig

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Quantize the float inputs in order, call the model, dequantize its outputs."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        stubs = iter(self.quants)
        leaves = [next(stubs)(leaf) if _is_float(leaf) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return pytree.tree_map_only(Tensor, self.dequant, self.module(*args, **kwargs))


class FloatIsland(nn.Module):
    """A module that stays in float between int8 neighbors: dequantize, call it, and quantize again if needed."""

    def __init__(self, module: nn.Module, *, requantize: bool, qconfig: Any) -> None:
        super().__init__()
        self.dequant = tq.DeQuantStub()
        self.dequant.qconfig = None
        self.module = module
        border: Any = tq.QuantStub(qconfig) if requantize else nn.Identity()
        border.qconfig = qconfig if requantize else None
        self.quant = border
        self.qconfig: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module on dequantized tensors."""
        args, kwargs = pytree.tree_map_only(Tensor, _dequantized, (args, kwargs))
        return pytree.tree_map_only(Tensor, self.quant, self.module(*args, **kwargs))


def is_stub(module: nn.Module) -> bool:
    """Whether a module only marks the way into or out of int8."""
    return isinstance(module, (tq.QuantStub, tq.DeQuantStub))


def _dequantized(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
