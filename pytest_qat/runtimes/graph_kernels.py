"""What an exported graph computes: its convolutions, linear layers and products, their MACs and the user's modules."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.products import ProductMode, in_parts
from pytest_qat.exported.program import module_of
from pytest_qat.runtimes.base import Kernel

__all__ = ["REFERENCE_REASON", "bias_place", "dequantized", "kernels_of", "op_name", "products", "quantized",
           "requantized"]

REFERENCE_REASON = "dequantize, float op, quantize: converted but not lowered to an int8 kernel"
_ALWAYS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
             "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "_int_mm", "scaled_dot_product_attention")
"""Ops that multiply and accumulate whatever they are given; of others, only their shapes tell (einsum, lstm)."""
_INT8_NAMES = ("qconv", "qlinear", "_int_mm", "quantized::", "int8")
_ON_THE_WAY = ("relu", "hardtanh", "clamp", "getitem", "view", "permute", "squeeze", "alias", "flatten", "reshape",
               "add", "mean", "pool", "cat", "slice", "mul", "sigmoid", "hardswish")
_OF_ACTIVATIONS = ("bmm", "matmul", "baddbmm", "scaled_dot_product_attention", "einsum", "tensordot")
"""Products for which XNNPACK has only float kernels, even between quantized tensors."""
_FURTHEST = 4


def products(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """Yield the nodes that multiply and accumulate and that the outputs depend on, in order."""
    needed = _needed(graph)
    for node in graph.nodes:
        if node in needed and node.op == "call_function" and (op_name(node) in _ALWAYS or _counted(node)):
            yield node


def _needed(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Return what the outputs depend on, with what writes into it in place; compilers drop the rest."""
    writers: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            for written in _with_bases(node.args[0] if node.args else None):
                writers.setdefault(written, []).append(node)
    found, waiting = set[torch.fx.Node](), [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [*node.all_input_nodes, *writers.get(node, ())]
    return found


def _with_bases(node: Any) -> Iterator[torch.fx.Node]:
    """Yield a node and, while it is a view, what it looks at."""
    while isinstance(node, torch.fx.Node):
        yield node
        schema = getattr(node.target, "_schema", None)
        view = schema is not None and any(made.alias_info is not None for made in schema.returns)
        node = node.args[0] if view and node.args else None


def bias_place(node: torch.fx.Node) -> int | None:
    """Return which argument of a node is a bias; None if none can be."""
    if node.op != "call_function" or (name := op_name(node)) not in _ALWAYS:
        return None
    return 0 if name == "addmm" else 2 if name == "linear" or "conv" in name else None


def op_name(node: torch.fx.Node) -> str:
    """Return the bare name of a node's op, such as `conv2d` for `aten.conv2d.default` and `aten.conv2d.padding`."""
    target: Any = node.target
    if "EdgeOpOverload" in str(type(target)):
        target = target._op  # noqa: SLF001 - wraps torch's
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - no public name
        return str(target._schema.name).rpartition("::")[2]  # noqa: SLF001 - torch has no public name for it
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
    """Whether all that a product multiplies comes dequantized; its bias may come as it likes."""
    factors = [argument for index, argument in enumerate(node.args) if index != bias_place(node)]
    tensors = [leaf for leaf in pytree.tree_leaves(factors) if isinstance(leaf, torch.fx.Node)
               and isinstance(_value(leaf), (Tensor, type(None)))]
    return len(tensors) > 1 and all(dequantized(leaf) for leaf in tensors)


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
    """Return the multiply-accumulates of a product as a float model's are counted; None if the graph has no shapes."""
    counted = _counted(node)
    if counted or op_name(node) != "_int_mm":
        return counted
    left, right = (_value(argument) for argument in node.all_input_nodes[:2])
    return None if left is None or right is None else math.prod(_sizes(left)) * _sizes(right)[-1]


def _counted(node: torch.fx.Node) -> int | None:
    """Run an op on tensors without values, and count what it multiplies; None if it cannot be run."""
    target: Any = node.target
    target = target._op if "EdgeOpOverload" in str(type(target)) else target  # noqa: SLF001 - wraps torch's
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":  # noqa: SLF001 - no public name
        return None
    if op_name(node) not in _ALWAYS and not target._can_decompose():  # noqa: SLF001 - what is made of other ops
        return None
    known = [_value(argument) for argument in node.all_input_nodes]
    if any(value is None for value in known) or not any(isinstance(value, Tensor) for value in known):
        return None

    def without_values(argument: torch.fx.Node) -> Any:
        return pytree.tree_map(lambda leaf: torch.empty(_sizes(leaf), dtype=leaf.dtype, device="meta") if isinstance(
            leaf, Tensor) else _number(leaf), _value(argument))

    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), without_values)
    mode = ProductMode([""])
    try:
        with torch.no_grad(), in_parts(), mode:
            made = target(*args, **{name: value for name, value in kwargs.items() if name != "device"})
    except Exception:  # whatever an op does that needs values
        return None
    return sum(product.macs for product in mode.needed_for(made)[0])


def _sizes(value: Tensor) -> tuple[int, ...]:
    return tuple(_number(size) for size in value.shape)


def _number(value: Any) -> Any:
    """Return a size as a number; that of the example where it is open."""
    return value.node.hint if isinstance(value, torch.SymInt) else value
