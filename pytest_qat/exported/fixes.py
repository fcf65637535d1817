"""Rewrite the parts of an exported graph that torchao or a runtime would get wrong.

Each function changes a graph in place and keeps what it computes. The faults were found in torchao 0.18 and
executorch 1.5.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["complete_batchnorms", "quantize_transposed_by_output", "read_weights_apart", "shield", "unfoldable",
           "unshield", "with_own_biases"]

_SHIELD = "pytest_qat_shield"
_BATCH_NORM = torch.ops.aten.batch_norm.default
_WEIGHT, _BIAS, _MEAN, _GROUPS_OF_TRANSPOSED = 1, 2, 3, 6


def is_convolution(node: torch.fx.Node) -> bool:
    """Whether a node is a convolution, transposed or not."""
    return node.op == "call_function" and ".conv" in str(node.target)


def _is_transposed(node: torch.fx.Node) -> bool:
    return is_convolution(node) and "transpose" in str(node.target)


def _argument(node: torch.fx.Node, place: int) -> Any:
    return node.args[place] if len(node.args) > place else None


def read_weights_apart(graph_module: torch.fx.GraphModule) -> None:
    """Give each further call of one convolution its own nodes that read weight and bias.

    XNNPACKQuantizer counts a shared node as part of the first call, and leaves the other calls in float.
    """
    seen: set[torch.fx.Node] = set()
    for node in filter(is_convolution, list(graph_module.graph.nodes)):
        for place in (_WEIGHT, _BIAS):
            read = _argument(node, place)
            if not isinstance(read, torch.fx.Node) or read.op != "get_attr":
                continue
            if read in seen:
                node.update_arg(place, _read(graph_module, str(read.target), like=read, before=node))
            seen.add(read)
    graph_module.recompile()


def _read(graph_module: torch.fx.GraphModule, name: str, *, like: torch.fx.Node,
          before: torch.fx.Node) -> torch.fx.Node:
    with graph_module.graph.inserting_before(before):
        made = graph_module.graph.get_attr(name)
    made.meta = dict(like.meta)
    return made


def complete_batchnorms(graph_module: torch.fx.GraphModule) -> None:
    """Give a BatchNorm without weight and bias constant ones and zeros, because torchao folds both unchecked."""
    for index, node in enumerate(list(graph_module.graph.nodes)):
        if node.target is not _BATCH_NORM or not isinstance(node.args[_MEAN], torch.fx.Node):
            continue
        mean = node.args[_MEAN]
        like: Tensor = operator.attrgetter(str(mean.target))(graph_module)
        for place, made in ((_WEIGHT, torch.ones_like(like)), (_BIAS, torch.zeros_like(like))):
            if node.args[place] is None:
                name = f"pytest_qat_batchnorm_{index}_{place}"
                graph_module.register_buffer(name, made)
                node.update_arg(place, _read(graph_module, name, like=mean, before=node))
    graph_module.recompile()


def unfoldable(graph_module: torch.fx.GraphModule) -> frozenset[torch.fx.Node]:
    """Return the convolutions before a BatchNorm that torchao would fold wrongly or not at all.

    The BatchNorm would be folded twice into those that are called twice, the weights of grouped transposed ones would
    get a wrong shape, and a BatchNorm without running statistics has nothing to fold.
    """
    called: dict[str, int] = {}
    for node in filter(is_convolution, graph_module.graph.nodes):
        weight = str(getattr(node.args[_WEIGHT], "target", ""))
        called[weight] = called.get(weight, 0) + 1

    def found() -> Iterator[torch.fx.Node]:
        for node in filter(is_convolution, graph_module.graph.nodes):
            for norm in (user for user in node.users if user.target is _BATCH_NORM):
                groups = _argument(node, _GROUPS_OF_TRANSPOSED) if _is_transposed(node) else 1
                if (norm.args[_MEAN] is None or (groups or 1) != 1
                        or called[str(getattr(node.args[_WEIGHT], "target", ""))] > 1):
                    yield node

    return frozenset(found())


def shield(graph_module: torch.fx.GraphModule, chosen: Callable[[torch.fx.Node], bool]) -> None:
    """Insert a no-op after each chosen convolution until the model is prepared.

    torchao rewrites every convolution that feeds a BatchNorm for QAT, but fails on those that stay in float, or never
    folds their BatchNorm.
    """
    for node in list(graph_module.graph.nodes):
        if is_convolution(node) and chosen(node):
            with graph_module.graph.inserting_after(node):
                after = graph_module.graph.call_function(torch.ops.aten.alias.default, (node,))
            after.meta = {"val": node.meta["val"], _SHIELD: True}  # no module, or quantizers take it for its output
            node.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
    graph_module.recompile()


def unshield(graph_module: torch.fx.GraphModule) -> None:
    """Remove the ops that `shield` inserted."""
    for node in list(graph_module.graph.nodes):
        if node.meta.get(_SHIELD):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


def quantize_transposed_by_output(prepared: torch.fx.GraphModule) -> None:
    """Fake-quantize weights of transposed convolutions per output channel, which is their second dimension.

    Quantizers request it, but torchao's preparation drops the axis for the fused fake-quantize, which supports only
    the first dimension; XNNPACK has no kernel for that.
    """
    from torchao.quantization.pt2e.fake_quantize import FakeQuantize
    from torchao.quantization.pt2e.observer import MovingAveragePerChannelMinMaxObserver

    for node in filter(_is_transposed, prepared.graph.nodes):
        weight = node.args[_WEIGHT]
        if weight.op != "call_module" or (_argument(node, _GROUPS_OF_TRANSPOSED) or 1) != 1:
            continue
        fused: Any = prepared.get_submodule(str(weight.target))
        if getattr(fused, "qscheme", None) is not torch.per_channel_symmetric or fused.ch_axis != 0:
            continue
        made: nn.Module = FakeQuantize(
            observer=MovingAveragePerChannelMinMaxObserver, quant_min=fused.quant_min, quant_max=fused.quant_max,
            dtype=fused.dtype, qscheme=fused.qscheme, ch_axis=1, eps=fused.activation_post_process.eps)
        prepared.set_submodule(str(weight.target), made)


def with_own_biases(graph_module: torch.fx.GraphModule, places: Callable[[torch.fx.Node], int | None]) -> None:
    """Give each further layer that shares a bias its own copy.

    ExecuTorch quantizes a bias by the scale of the first layer that reads it, which is wrong for the others.

    Args:
        graph_module: A converted graph.
        places: Returns which argument of a node is the bias; None if it has none.
    """
    seen: set[str] = set()
    for index, node in enumerate(list(graph_module.graph.nodes)):
        place = places(node)
        bias = None if place is None else _argument(node, place)
        if place is None or not isinstance(bias, torch.fx.Node) or bias.op != "get_attr":
            continue
        if str(bias.target) in seen:
            name = f"pytest_qat_bias_{index}"
            value: Tensor = operator.attrgetter(str(bias.target))(graph_module)
            graph_module.register_buffer(name, value.detach().clone())
            node.update_arg(place, _read(graph_module, name, like=bias, before=node))
        seen.add(str(bias.target))
    graph_module.recompile()
