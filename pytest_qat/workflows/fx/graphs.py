"""Quantize one traced graph: fuse, insert fake-quantize, and later lower to torch's int8 kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.custom_config import FuseCustomConfig, PrepareCustomConfig
from torch.ao.quantization.fx.prepare import prepare as insert_observers
from torch.fx import GraphModule

from pytest_qat.workflows.fx.in_place import with_results_read
from pytest_qat.workflows.fx.joined import share_ranges
from pytest_qat.workflows.fx.padding import with_plain_padding
from pytest_qat.workflows.fx.recurrent import EagerLayer, convert_layers, prepare_layers
from pytest_qat.workflows.fx.tracing import Traced
from pytest_qat.workflows.fx.values import LeftAlone, left_alone

__all__ = ["convert_graph", "prepare_graph"]

_ALONE = "_left_alone"
"""A name that no module has: nodes that are said to be its get no qconfig."""


def prepare_graph(traced: Traced, inputs: Sequence[Any], mapping: tq.QConfigMapping) -> tuple[GraphModule, LeftAlone]:
    """Return the graph with fake-quantize modules in eval mode, and what was left alone.

    Args:
        traced: A graph in eval mode; its layers become those of the result.
        inputs: What the graph takes.
        mapping: Qconfigs by the names in the graph.
    """
    results = with_results_read(traced.module, inputs)
    pads = with_plain_padding(traced.module)
    alone = left_alone(traced.module, inputs)
    wrapped = [name for name, module in traced.module.named_modules() if isinstance(module, EagerLayer)]
    own = mapping
    mapping = copy.deepcopy(mapping).set_module_name(_ALONE, None)
    for name in (*alone.modules, *wrapped):
        mapping.set_module_name(name, None)
    scopes = {**traced.scopes, **dict.fromkeys(alone.nodes, (_ALONE, nn.Module))}
    for added, like in {**results, **pads}.items():
        scopes[added] = scopes[like]
    fused = quantize_fx._fuse_fx(traced.module, True, FuseCustomConfig())  # noqa: SLF001 - as prepare_qat_fx does
    prepared: GraphModule = insert_observers(
        fused, mapping, True, scopes, example_inputs=tuple(inputs), prepare_custom_config=PrepareCustomConfig())
    _without_observers_of(prepared, alone.strange)
    share_ranges(prepared, inputs)
    prepare_layers(prepared, own)
    return prepared, alone


def _without_observers_of(prepared: GraphModule, strange: frozenset[str]) -> None:
    """Take away the observers that torch.ao put on sizes and numbers that a quantized operation takes."""
    for node in list(prepared.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("activation_post_process") and (
                node.args[0].name in strange):
            node.replace_all_uses_with(node.args[0])
            prepared.graph.erase_node(node)
            prepared.delete_submodule(str(node.target))
    prepared.recompile()


def convert_graph(prepared: GraphModule) -> nn.Module:
    """Return the int8 form of a prepared graph in eval mode, which it changes."""
    convert_layers(prepared)
    return quantize_fx.convert_fx(prepared).eval()
