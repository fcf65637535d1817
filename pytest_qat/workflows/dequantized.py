"""Take the weights out of an int8 model again, as a float model: `dequantize_model`.

An int8 layer's weight is no tensor of its state dict: linear layers keep weight and bias in `_packed_params`, and
whoever looks for names that end in `weight` leaves them as they were initialized. Here each layer is asked itself, and
the scales of its channels lie along the axis that the layer says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from pytest_qat.errors import InvalidCase
from pytest_qat.workflows.eager.fusion import fusable_chains
from pytest_qat.workflows.eager.trace import trace_call
from pytest_qat.workflows.names import user_names

__all__ = ["dequantize_model"]


def dequantize_model(converted: nn.Module, float_model: nn.Module, *, example_inputs: tuple[Any, ...] | None = None
                     ) -> nn.Module:
    """Return a float model with the weights and biases of an int8 one.

    Its outputs differ from the int8 model's by the rounding of activations only: by as much as fake-quantize off
    differs from fake-quantize on.

    Args:
        converted: The int8 model, from eager mode or FX, static or dynamic.
        float_model: A model of the same architecture, as it was before it was fused; only its structure counts, and
            the weights of layers that stayed in float. Where batch norm was folded into a layer, the returned model
            has that layer with the folded weights, and an identity in place of the batch norm.
        example_inputs: Arguments of one call; with them, what was folded is found by tracing the float model. Without,
            each batch norm that the int8 model no longer has is taken for folded.

    Raises:
        InvalidCase: nothing in `converted` is quantized, or a layer has no counterpart of its shape in `float_model`.
    """
    model = copy.deepcopy(float_model).eval()
    layers = dict(_int8_layers(converted))
    if not layers:
        raise InvalidCase("the converted model has no quantized layers, so there is nothing to dequantize.",
                          hint="Pass what convert returned; a PT2E graph is dequantized by its own operations.")
    _drop_folded(model, layers, converted, example_inputs)
    own = dict(model.named_modules())
    missing = sorted(name for name in layers if name not in own)
    if missing:
        raise InvalidCase(f"the float model has no {', '.join(missing[:3])}, which the int8 model has.",
                          hint="Pass a float model of the same architecture.")
    for name, layer in layers.items():
        target = own[name]
        inner = target[0] if isinstance(target, _FusedModule) and isinstance(target, nn.Sequential) else target
        _take_over(name, layer, inner)
    return model


def _int8_layers(converted: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers with int8 weights, by the user's names."""
    own = user_names(converted)
    for name, module in converted.named_modules():
        path = type(module).__module__
        if not path.startswith("torch.ao.nn") or ".quantized" not in path:
            continue
        if callable(getattr(module, "weight", None)) or hasattr(module, "get_weight"):
            yield own[name], module


def _drop_folded(model: nn.Module, layers: dict[str, Any], converted: nn.Module,
                 example_inputs: tuple[Any, ...] | None) -> None:
    """Put an identity for each batch norm that was folded into the layer before it."""
    if example_inputs is not None:
        chains = fusable_chains(trace_call(model, example_inputs), model, keep=frozenset())
        folded = [name for chain in chains if chain[0] in layers for name in chain[1:] if _is_norm(model, name)]
    else:
        folded = [name for name, _ in model.named_modules() if _is_norm(model, name)]
    kept = {name for name, module in zip(user_names(converted).values(), converted.modules(), strict=False)
            if "BatchNorm" in type(module).__name__}
    for name in folded:
        if name not in kept:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, nn.Identity())


def _is_norm(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the base of all


def _take_over(name: str, layer: Any, target: Any) -> None:
    """Copy weight and bias of an int8 layer into a float one.

    Raises:
        InvalidCase: it is of another shape.
    """
    for leaf, tensor in _tensors_of(layer):
        own = getattr(target, leaf, None)
        if own is None and leaf == "bias":  # folding batch norm makes a bias
            target.bias = nn.Parameter(tensor.clone())
            continue
        if not isinstance(own, Tensor) or own.shape != tensor.shape:
            seen = f"of shape {tuple(own.shape)}" if isinstance(own, Tensor) else "missing"
            raise InvalidCase(f"{name}.{leaf} is {seen} in the float model, and of shape {tuple(tensor.shape)} in the "
                              "int8 model.", hint="Pass a float model of the same architecture.")
        with torch.no_grad():
            own.copy_(tensor)


def _tensors_of(layer: Any) -> Iterator[tuple[str, Tensor]]:
    if hasattr(layer, "get_weight"):  # dynamic LSTM and GRU
        for leaf, tensor in (*layer.get_weight().items(), *layer.get_bias().items()):
            yield leaf, (tensor.dequantize() if tensor.is_quantized else tensor).detach().float()
        return
    weight = layer.weight()
    yield "weight", (weight.dequantize() if weight.is_quantized else weight).float()
    bias = layer.bias() if callable(getattr(layer, "bias", None)) else None
    if isinstance(bias, Tensor):
        yield "bias", bias.detach().float()
