"""Convolutions with `padding="same"` or `"valid"`: torch's int8 kernels take numbers only, the same on both ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

__all__ = ["with_plain_padding"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def with_plain_padding(module: GraphModule) -> dict[str, str]:
    """Give convolutions numbers to pad by, in place, and pad before those that pad their ends unequally.

    Returns:
        The names of the nodes that pad, each with that of its convolution.
    """
    added: dict[str, str] = {}
    for node in list(module.graph.nodes):
        layer: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, _CONVOLUTIONS):
            continue
        if isinstance(layer.padding, str):
            _set_numbers(layer)
        ends = vars(layer).get("_unequal_ends")
        if ends is None:
            continue
        with module.graph.inserting_before(node):
            pad = module.graph.call_function(torch.nn.functional.pad, (node.args[0], list(ends)))
        node.replace_input_with(node.args[0], pad)
        added[pad.name] = node.name
    if added:
        module.recompile()
    return added


def _set_numbers(layer: Any) -> None:
    if layer.padding_mode != "zeros":
        return  # torch.ao refuses these, and the layer stays as it is
    totals = [0 if layer.padding == "valid" else dilation * (size - 1)
              for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if all(total % 2 == 0 for total in totals):
        layer.padding = tuple(total // 2 for total in totals)
        return
    layer.padding = (0,) * len(totals)
    vars(layer)["_unequal_ends"] = [end for total in reversed(totals) for end in (total // 2, total - total // 2)]
