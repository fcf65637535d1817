"""Float ops that stand between int8 layers of a converted model, in eager mode and FX."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.ao.nn import quantized as nnq

from pytest_qat.core.batches import call
from pytest_qat.exported.model import ExportedModel
from pytest_qat.workflows.eager.int8_flow import has_int8_form
from pytest_qat.workflows.names import user_names

__all__ = ["Island", "float_islands"]

_MOVES = frozenset({"view", "reshape", "flatten", "permute", "transpose", "contiguous", "getitem", "size", "squeeze",
                    "unsqueeze", "dequantize", "to", "getattr"})


@dataclass(frozen=True, slots=True)
class Island:
    """Float ops between a dequantize and the quantize behind it.

    Attributes:
        module: The first of the user's modules among them; None where there is none.
        ops: Their names.
    """

    module: str | None
    ops: tuple[str, ...]


def float_islands(converted: nn.Module, inputs: Any) -> list[Island]:
    """Return the islands of ops that have no int8 form, in order; those left in float by choice are none.

    Args:
        converted: In eval mode.
        inputs: One batch, to run a model that is no graph.
    """
    if isinstance(converted, ExportedModel):
        return []  # there, every op stands between dequantize and quantize until it is lowered
    if isinstance(converted, torch.fx.GraphModule):
        return list(_in_graph(converted))
    return _in_calls(converted, inputs)


def _in_graph(model: torch.fx.GraphModule) -> Iterator[Island]:
    for node in model.graph.nodes:
        if node.op == "call_function" and "quantize_per_tensor" in str(node.target):
            ops, modules, chosen = _behind(node.args[0], model)
            if ops and not chosen:
                yield Island(modules[0] if modules else None, tuple(ops))


def _behind(node: Any, model: torch.fx.GraphModule) -> tuple[list[str], list[str], bool]:
    """Return the ops and modules between a node and the dequantize nodes before it; nothing if there are none."""
    ops: list[str] = []
    modules: list[str] = []
    dequantized = chosen = False
    waiting = [node]
    seen = set()
    while waiting:
        each = waiting.pop()
        if not isinstance(each, torch.fx.Node) or each in seen or each.op in ("placeholder", "get_attr"):
            continue
        seen.add(each)
        if each.op == "call_method" and each.target == "dequantize":
            dequantized = True
            continue
        if each.op == "call_module":
            module = model.get_submodule(str(each.target))
            chosen = chosen or has_int8_form(module)
            modules.append(str(each.target))
            ops.append(type(module).__name__)
        else:
            name = each.target if isinstance(each.target, str) else getattr(each.target, "__name__", str(each.target))
            if name not in _MOVES:
                ops.append(str(name))
        waiting += each.all_input_nodes
    return (ops, modules, chosen) if dequantized else ([], [], False)


def _in_calls(model: nn.Module, inputs: Any) -> list[Island]:
    """Return the islands in the order of the calls: leaf modules in float after a dequantize, before a quantize."""
    own = user_names(model)
    islands: list[Island] = []
    current: list[tuple[str, nn.Module]] | None = None

    def after(name: str, module: nn.Module) -> None:
        nonlocal current
        if isinstance(module, nnq.DeQuantize):
            current = []
        elif isinstance(module, nnq.Quantize):
            if current and not any(has_int8_form(each) for _, each in current):
                islands.append(Island(own[current[0][0]] or None, tuple(type(each).__name__ for _, each in current)))
            current = None
        elif current is not None and not any(True for _ in module.children()) and not isinstance(module, nn.Identity):
            current.append((name, module))

    handles = [module.register_forward_hook(lambda each, *_, name=name: after(name, each))
               for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return islands
