"""Write the activations of a quantized ONNX model as uint8, which ONNX Runtime's integer kernels take on every machine.

PT2E quantizes activations to int8. On x86, ONNX Runtime turns pairs of QuantizeLinear and DequantizeLinear into uint8
by itself while it loads a model, but not those whose value goes to several places. A convolution between a pair that
was turned and one that was not has no integer kernel, so it runs in float: each one before a SiLU, or at a branch. With
a zero point that is larger by 128, each step stands for the same number, so the outputs stay as they are. ONNX
Runtime's guide to quantization names uint8 activations beside int8 weights as the form for x86.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["make_unsigned"]

_SHIFT = 128


def make_unsigned(model: onnx.ModelProto) -> None:
    """Turn every int8 activation that is only dequantized again into uint8, in place.

    Args:
        model: A model as `torch.onnx.export` writes it, with constant scales and zero points.
    """
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    zero_points = _int8_constants(graph)
    pairs = _pairs(graph, zero_points)
    shifted: dict[str, str] = {}  # name of a zero point to that of the larger one
    for name in dict.fromkeys(node.input[2] for nodes in pairs.values() for node in nodes):  # in order: files are alike
        shifted[name] = f"{name}_uint8"
        larger = (zero_points[name].astype(np.int16) + _SHIFT).astype(np.uint8)
        graph.initializer.append(numpy_helper.from_array(larger, shifted[name]))
    for node in (node for nodes in pairs.values() for node in nodes):
        node.input[2] = shifted[node.input[2]]
        for attribute in node.attribute:
            if attribute.name == "output_dtype" and attribute.i == TensorProto.INT8:
                attribute.i = TensorProto.UINT8
    for value in graph.value_info:
        if value.name in pairs:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    read = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name in shifted and each.name not in read]:
        graph.initializer.remove(tensor)


def _int8_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the constants of dtype int8, by name."""
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: attribute.t for node in graph.node if node.op_type == "Constant"
                for attribute in node.attribute if attribute.name == "value"}
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()
            if tensor.data_type == TensorProto.INT8}


def _pairs(graph: onnx.GraphProto, zero_points: dict[str, np.ndarray]) -> dict[str, list[onnx.NodeProto]]:
    """Return each node that quantizes to int8 with those that dequantize its output, by the name of the output."""
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    kept = {output.name for output in graph.output}

    def is_int8(node: onnx.NodeProto, op: str) -> bool:
        return node.op_type == op and len(node.input) > 2 and node.input[2] in zero_points

    found = {}
    for node in graph.node:
        after = readers[node.output[0]] if node.output else []
        if is_int8(node, "QuantizeLinear") and node.output[0] not in kept and after and all(
                is_int8(each, "DequantizeLinear") for each in after):
            found[node.output[0]] = [node, *after]
    return found
