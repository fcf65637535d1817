"""What an ONNX model multiplies: its products by the user's modules and with their MACs, before and after optimization.

The exporter notes for each node which module it comes from, and the shapes of all values. ONNX Runtime drops both when
it optimizes, but what it fuses keeps the name of the node that it was, with something appended.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_qat.runtimes.base import Kernel

if TYPE_CHECKING:
    import onnx

__all__ = ["drop_notes", "int8_op", "original_name", "product_nodes", "products_of"]

_INT8 = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
                   "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention"})
_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates of each."""
_FLOAT = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention",
                    "MultiHeadAttention", "Einsum", *_RECURRENT})


def int8_op(op: str) -> bool | None:
    """Return whether an op multiplies int8; None if it multiplies nothing."""
    return True if op in _INT8 else False if op in _FLOAT else None


def product_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that multiply, in order."""
    return [node for node in graph.node if int8_op(node.op_type) is not None]


def products_of(graph: onnx.GraphProto) -> tuple[Kernel, ...]:
    """Return what a model multiplies as it was exported, one kernel for each of `product_nodes`.

    Args:
        graph: The graph of a model as `torch.onnx.export` writes it. Where it lacks a shape, the MACs are None.
    """
    shapes = _shapes(graph)
    return tuple(Kernel(int8=False, op=node.op_type, module=_module(node), macs=_macs(node, shapes))
                 for node in product_nodes(graph))


def drop_notes(graph: onnx.GraphProto) -> None:
    """Drop what the exporter notes on the user's code, such as stack traces: no runtime reads it, and it is large."""
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")


def original_name(name: str) -> str:
    """Return what a node of the optimized graph was called before, from the name that its fusion gave it."""
    name = re.sub(r"(_token_\d+)+$", "", name.removeprefix("fused ").partition("/")[0])
    return name.removesuffix("_nchwc").removesuffix("_quant")


def _module(node: onnx.NodeProto) -> str | None:
    """Return the user's module that a node comes from; "" is the model itself, None: unknown."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    if "BatchNorm" in notes.get("pkg.onnxscript.rewriter.rule_name", ""):
        inside = node.input[1].rpartition(".")[0]  # such a node bears the notes of the batch norm; the weight does not
    elif "pkg.torch.onnx.name_scopes" in notes:
        names: list[str] = ast.literal_eval(notes["pkg.torch.onnx.name_scopes"])
        inside = names[-2] if len(names) > 1 else ""  # the last is the node's own
    else:
        return None
    return re.sub(r"^graph_module(\.|$)", "", re.sub(r"@\d+", "", inside))


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Return the shapes of the values whose every size is known."""
    found = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            found[value.name] = [size.dim_value for size in sizes]
    return found


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int | None:
    """Return the multiply-accumulates of a product; None where a shape is missing, or the op has no fixed number."""
    made = shapes.get(node.output[0])
    given = [shapes.get(name) for name in node.input]
    left, right = given[0], given[1] if len(given) > 1 else None
    if left is None or right is None:
        return None
    if node.op_type in _RECURRENT:
        return _recurrent(node, left, right)
    if node.op_type == "ConvTranspose":  # weights: inputs, outputs by group, kernel
        return math.prod(left) * math.prod(right[1:])
    if made is None or node.op_type not in _EACH:
        return None
    return math.prod(made) * _EACH[node.op_type](node, left, right)


_EACH: Mapping[str, Callable[[Any, Sequence[int], Sequence[int]], int]] = MappingProxyType({
    "Conv": lambda node, left, right: math.prod(right[1:]),  # weights: outputs, inputs by group, kernel
    "MatMul": lambda node, left, right: left[-1],
    "Gemm": lambda node, left, right: left[0 if _integer(node, "transA") else 1]})
"""How many multiply-accumulates make an element of the output, by op."""


def _recurrent(node: onnx.NodeProto, sequence: Sequence[int], weights: Sequence[int]) -> int:
    """Each step multiplies its input and the state before it, for each gate, in each direction."""
    steps, features = math.prod(sequence[:2]), sequence[-1]
    directions, hidden = weights[0], weights[1] // _RECURRENT[node.op_type]
    return steps * directions * _RECURRENT[node.op_type] * hidden * (features + hidden)


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
