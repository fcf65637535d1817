"""LSTM in a graph: one node for torch.fx, quantized as eager mode does it.

torch.ao's own way for FX wants the hidden state passed in and unpacked in one of two forms. Here the layer keeps its
stubs to itself: float comes in and goes out, and int8 is inside.
"""

from __future__ import annotations

from typing import Any

import torch.ao.quantization as tq
from torch import nn
from torch.fx import GraphModule, Node

from pytest_qat.workflows.eager.wrappers import QuantizedBorder
from pytest_qat.workflows.qconfigs import qconfig_for

__all__ = ["EagerLayer", "convert_layers", "prepare_layers", "wrap_layers"]

_KINDS = (nn.LSTM,)
"""Layers that eager mode has an int8 form of, and FX mode none that fits."""


class EagerLayer(QuantizedBorder):
    """A layer that eager mode quantizes; before it is prepared, it only calls the layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, inputs=(), qconfig=None)
        self.dequant = nn.Identity()  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer, between stubs once it is prepared."""
        return super().forward(*args, **kwargs) if len(self.quants) else self.module(*args, **kwargs)


def wrap_layers(model: nn.Module, mapping: tq.QConfigMapping) -> None:
    """Replace the layers that the mapping quantizes, in place."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and type(module) in _KINDS and qconfig_for(name, module, mapping) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, EagerLayer(module))


def prepare_layers(graph: GraphModule, mapping: tq.QConfigMapping) -> None:
    """Insert stubs and fake-quantize modules into the wrapped layers of a graph, in place."""
    for node in graph.graph.nodes:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, EagerLayer) and not len(layer.quants):
            _prepare(layer, node, qconfig_for(str(node.target), layer.module, mapping))


def _prepare(layer: EagerLayer, node: Node, qconfig: Any) -> None:
    layer.quants.extend(tq.QuantStub(qconfig) for _ in node.all_input_nodes)
    layer.dequant = tq.DeQuantStub()
    layer.dequant.qconfig = qconfig
    layer.qconfig = layer.module.qconfig = qconfig
    tq.prepare_qat(layer.train(), inplace=True)
    layer.eval()


def convert_layers(graph: nn.Module) -> None:
    """Convert the wrapped layers of a graph, in place."""
    for module in list(graph.modules()):
        if isinstance(module, EagerLayer) and len(module.quants):
            tq.convert(module.eval(), inplace=True)
