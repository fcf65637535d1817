"""Try the int8 kernels of a converted model against float arithmetic on the same int8 numbers.

Some of torch's quantized kernels compute something else than their layer (PReLU where the slopes' zero point is far
off, transposed 3-D convolution with some engines). No list says which do on this machine: each layer's kernel is fed
what reaches it, and its result is held to the float operation on the dequantized operands. A layer whose kernel fails
is replaced by that float operation, quantized again behind it, which is what training simulated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq

from pytest_qat.core.batches import call

__all__ = ["InFloat", "replace_wrong_kernels"]

_SAME_DB = 15.0
"""A right kernel leaves 40 dB and more to its float form, for it rounds the same numbers a little otherwise."""


class InFloat(nn.Module):
    """A quantized layer that computes in float: int8 numbers come in and go out, in the layer's own qparams."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._hidden = (layer,)  # no submodule: nothing calls its kernel, and nobody should count it

    def forward(self, *args: Any) -> Tensor:
        """Dequantize, compute, quantize."""
        return float_form(self._hidden[0], *args)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._hidden[0].state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)


def replace_wrong_kernels(converted: nn.Module, inputs: Any) -> dict[str, float]:
    """Replace the layers whose kernels are wrong, in place.

    Args:
        converted: In eval mode; its first call must have been survived elsewhere.
        inputs: One batch.

    Returns:
        The agreement of each replaced layer's kernel with float arithmetic in dB, by the layer's name in `converted`.
    """
    found: dict[str, float] = {}
    with torch.no_grad(), _watching(converted, found):
        call(converted, inputs)
    for name in found:
        parent, _, leaf = name.rpartition(".")
        setattr(converted.get_submodule(parent), leaf, InFloat(converted.get_submodule(name)))
    return found


@contextlib.contextmanager
def _watching(converted: nn.Module, found: dict[str, float]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, module in converted.named_modules():
            if name and _operation(module) is not None:
                stack.callback(module.register_forward_hook(_comparing(name, found)).remove)
        yield


def _comparing(name: str, found: dict[str, float]) -> Callable[..., None]:
    def compare(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_quantized:
            return
        with contextlib.suppress(Exception):  # a layer whose float form is not known is not judged
            wanted = float_form(module, *args)
            level = _sqnr_db(wanted.dequantize(), output.dequantize(), step=float(output.q_scale()))
            if level < _SAME_DB:
                found[name] = min(level, found.get(name, level))

    return compare


def _sqnr_db(wanted: Tensor, made: Tensor, *, step: float) -> float:
    """Return the agreement in dB; differences of one step of the output are none."""
    noise = (wanted.double() - made.double()).abs()
    noise = torch.where(noise <= 1.01 * step, 0.0, noise).norm()
    level = wanted.double().norm()
    return float("inf") if noise == 0 else float(20 * torch.log10(level / noise)) if level > 0 else float("-inf")


def float_form(layer: Any, *args: Any) -> Tensor:
    """Return what a quantized layer should give: its float operation on the same numbers, quantized to its output."""
    operation = _operation(layer)
    assert operation is not None, "unreachable because only layers with a known float form come here"
    given = [arg.dequantize() if isinstance(arg, Tensor) and arg.is_quantized else arg for arg in args]
    made = operation(layer, *given)
    return torch.quantize_per_tensor(made, float(layer.scale), int(layer.zero_point), torch.quint8)


Operation = Callable[..., Tensor]


def _operation(layer: nn.Module) -> Operation | None:
    kind = next((kind for kind in type(layer).__mro__ if kind in _OPERATIONS), None)
    return None if kind is None else _OPERATIONS[kind]


def _with_relu(operation: Operation) -> Operation:
    return lambda layer, *args: F.relu(operation(layer, *args))


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight().dequantize(), layer.bias())


def _convolution(function: Callable[..., Tensor], dimensions: int) -> Operation:
    def run(layer: Any, x: Tensor) -> Tensor:
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0  # noqa: SLF001
        return function(x, layer.weight().dequantize(), layer.bias(), _last(layer.stride, dimensions), padding if (
            isinstance(padding, int)) else _last(padding, dimensions), _last(layer.dilation, dimensions), layer.groups)

    return run


def _transposed(function: Callable[..., Tensor], dimensions: int) -> Operation:
    def run(layer: Any, x: Tensor) -> Tensor:
        return function(x, layer.weight().dequantize(), layer.bias(), _last(layer.stride, dimensions), _last(
            layer.padding, dimensions), _last(layer.output_padding, dimensions), layer.groups,
            _last(layer.dilation, dimensions))

    return run


def _last(values: Any, dimensions: int) -> tuple[int, ...]:
    return tuple(values)[-dimensions:]



_OPERATIONS: dict[type, Operation] = {
    nniq.LinearReLU: _with_relu(_linear), nnq.Linear: _linear,
    nniq.ConvReLU1d: _with_relu(_convolution(F.conv1d, 1)), nnq.Conv1d: _convolution(F.conv1d, 1),
    nniq.ConvReLU2d: _with_relu(_convolution(F.conv2d, 2)), nnq.Conv2d: _convolution(F.conv2d, 2),
    nniq.ConvReLU3d: _with_relu(_convolution(F.conv3d, 3)), nnq.Conv3d: _convolution(F.conv3d, 3),
    nnq.ConvTranspose1d: _transposed(F.conv_transpose1d, 1), nnq.ConvTranspose2d: _transposed(F.conv_transpose2d, 2),
    nnq.ConvTranspose3d: _transposed(F.conv_transpose3d, 3),
    nnq.PReLU: lambda layer, x: F.prelu(x, layer.weight.dequantize()),
    nnq.LeakyReLU: lambda layer, x: F.leaky_relu(x, layer.negative_slope),
    nnq.Hardswish: lambda layer, x: F.hardswish(x),
    nnq.ELU: lambda layer, x: F.elu(x, layer.alpha),
    nnq.LayerNorm: lambda layer, x: F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps),
    nnq.GroupNorm: lambda layer, x: F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps),
    **dict.fromkeys((nnq.InstanceNorm1d, nnq.InstanceNorm2d, nnq.InstanceNorm3d), lambda layer, x: F.instance_norm(
        x, weight=layer.weight, bias=layer.bias, eps=layer.eps)),
}
