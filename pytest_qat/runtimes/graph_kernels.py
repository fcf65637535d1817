"""What an exported graph computes: its convolutions, linear layers and products, with MACs, and who asked for them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pytest_qat.exported.program import module_of
from pytest_qat.runtimes.base import Kernel

__all__ = ["REFERENCE_REASON", "bias_place", "dequantized", "kernels_of", "op_name", "products", "quantized",
           "requantized"]

REFERENCE_REASON = "dequantize, float op, quantize: converted but not lowered to an int8 kernel"
_PRODUCTS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
             "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "_int_mm", "scaled_dot_product_attention")
_INT8_NAMES = ("qconv", "qlinear", "_int_mm", "quantized::", "int8")
_ON_THE_WAY = ("relu", "hardtanh", "clamp", "getitem", "view", "permute", "squeeze", "alias", "flatten", "reshape",
               "add", "mean", "pool", "cat", "slice", "mul", "sigmoid", "hardswish")
_OF_ACTIVATIONS = ("bmm", "matmul", "baddbmm", "scaled_dot_product_attention")
"""Products that XNNPACK has float kernels for only, quantized or not."""
_FURTHEST = 4


def products(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """Yield the nodes that multiply and accumulate, in order."""
    for node in graph.nodes:
        if node.op == "call_function" and op_name(node) in _PRODUCTS:
            yield node


def bias_place(node: torch.fx.Node) -> int | None:
    """Return which argument of a node is a bias; None if none can be."""
    if node.op != "call_function" or (name := op_name(node)) not in _PRODUCTS:
        return None
    return 0 if name == "addmm" else 2 if name == "linear" or "conv" in name else None


def op_name(node: torch.fx.Node) -> str:
    """Return the bare name of a node's op, such as `conv2d` for `aten.conv2d.default` and `aten.conv2d.padding`."""
    target: Any = node.target
    if "EdgeOpOverload" in str(type(target)):
        target = target._op  # noqa: SLF001 - wraps torch's
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - no public name
        return str(target._schema.name).rpartition("::")[2]  # noqa: SLF001 - torch's way to tell an op's name
    return str(target).replace("::", ".").rpartition(".")[2]


def kernels_of(graph_module: torch.fx.GraphModule, *, lowered: bool = False) -> tuple[Kernel, ...]:
    """Return what a graph computes.

    Args:
        graph_module: An exported or edge graph.
        lowered: Whether a product between dequantize and quantize runs on an int8 kernel where XNNPACK has one, as in
            its delegates.
    """
    found = []
    for node in products(graph_module.graph):
        between = quantized(node)
        has_kernel = lowered and op_name(node) not in _OF_ACTIVATIONS
        int8 = any(word in str(node.target) for word in _INT8_NAMES) or (between and has_kernel)
        why = "its inputs are not quantized" if not between else (
            "XNNPACK multiplies two activations in float" if lowered else REFERENCE_REASON)
        found.append(Kernel(int8=int8, op=op_name(node), module=module_of(node), macs=_macs(node),
                            reason="" if int8 else why))
    return tuple(found)


def quantized(node: torch.fx.Node) -> bool:
    """Whether input and weight come dequantized and the result is quantized again, or input and weight do."""
    tensors = [argument for argument in node.args[:3] if isinstance(argument, torch.fx.Node)]
    return sum(dequantized(argument) for argument in tensors) >= 2


def dequantized(node: torch.fx.Node) -> bool:
    """Whether a value comes out of a dequantize op, maybe through a change of shape."""
    for _ in range(_FURTHEST):
        if "dequantize" in str(node.target):
            return True
        if op_name(node) not in ("permute", "t", "transpose", "view", "reshape", "alias", "clone", "expand", "to"):
            return False
        sources = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
        if not sources:
            return False
        node = sources[0]
    return False


def requantized(node: torch.fx.Node, *, steps: int = _FURTHEST) -> bool:
    """Whether a value reaches a quantize op through nothing but activations and changes of shape."""
    for user in node.users:
        text = str(user.target)
        if "quantize" in text and "dequantize" not in text:
            return True
        if steps and any(word in text for word in _ON_THE_WAY) and requantized(user, steps=steps - 1):
            return True
    return False


def _value(node: torch.fx.Node) -> Any:
    """Return a value like the node's: what the export noted, or the tensor that it reads."""
    owner = node.graph.owning_module
    if "val" not in node.meta and node.op == "get_attr" and owner is not None:
        return operator.attrgetter(str(node.target))(owner)
    return node.meta.get("val")


def _macs(node: torch.fx.Node) -> int | None:
    """Return the multiply-accumulates of a product from the shapes that the graph carries."""
    out = node.meta.get("val")
    operands = [_value(argument) for argument in node.args if isinstance(argument, torch.fx.Node)]
    if isinstance(out, (tuple, list)):
        out = out[0]
    shapes = [tuple(value.shape) for value in operands if isinstance(value, Tensor)]
    if not isinstance(out, Tensor) or len(shapes) < 2:
        return None
    name = op_name(node)
    left, right = (shapes[1], shapes[2]) if name in ("addmm", "baddbmm") and len(shapes) > 2 else shapes[:2]
    transposed = "transpose" in name or (name == "convolution" and len(node.args) > 6 and node.args[6] is True)
    try:
        if transposed:
            return int(math.prod(left) * math.prod(right[1:]))
        if "conv" in name:
            return int(math.prod(out.shape) * math.prod(right[1:]))
        if name == "scaled_dot_product_attention":  # queries by keys, then those products by values
            return int(math.prod(left[:-1]) * right[-2] * (left[-1] + out.shape[-1]))
        return int(math.prod(out.shape) * left[-1])
    except (TypeError, ValueError):  # a side that is not known
        return None
