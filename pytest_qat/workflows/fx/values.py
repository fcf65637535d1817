"""What passes through a graph on example inputs, and which nodes therefore have to be left alone by quantization.

torch.ao decides by the name of an operation. What it cannot know without values: that an operand is a Python number
or an integer tensor, which have no range to observe, and that a tensor is a mask of minus infinity, whose range would
swallow that of everything it is added to.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx.utils import get_non_observable_arg_indexes_and_types
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import copied

__all__ = ["LeftAlone", "left_alone"]

_UNBOUNDED = 1e30
"""Values from here on are no activations: masks, and what stands for infinity."""
_MASKING = -1e4
"""A number from here on downwards that is added, multiplied with a mask or filled in excludes positions."""
_ENDS_MASKING = frozenset({torch.softmax, torch.sigmoid, torch.nn.functional.softmax, torch.nn.functional.sigmoid,
                           torch.nn.functional.log_softmax, torch.log_softmax, torch.exp, "softmax", "log_softmax",
                           "sigmoid", "exp"})
_MASKS = frozenset({operator.add, operator.mul, operator.sub, operator.iadd, operator.imul, torch.add, torch.mul,
                    torch.where, torch.full, torch.full_like, torch.masked_fill, "add", "mul", "add_", "mul_",
                    "masked_fill", "masked_fill_", "fill_", "new_full", "where"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """What must not be observed or quantized.

    Attributes:
        nodes: Reasons by the name of the node.
        modules: Reasons by the name of the module in the graph.
        strange: Names of the nodes that give no float32 tensor.
    """

    nodes: Mapping[str, str]
    strange: frozenset[str]
    modules: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What came out of a node: whether it holds a float32 tensor, and whether any of that is beyond all bounds."""

    floats: bool
    unbounded: bool
    kind: str


def left_alone(module: GraphModule, inputs: Sequence[Any]) -> LeftAlone:
    """Run a graph on example inputs, and return the nodes and modules that are to stay as they are.

    Args:
        module: A traced graph in eval mode.
        inputs: What its placeholders take; tensors are copied.
    """
    watcher = _Watcher(module)
    with torch.no_grad():
        watcher.run(*copied(tuple(inputs)))
    masking = _masking(module, watcher.seen)
    nodes: dict[str, str] = {}
    modules: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        reason = _reason(node, watcher.seen, masking)
        if reason and node.op == "call_module":
            modules[str(node.target)] = reason
        elif reason:
            nodes[node.name] = reason
    modules.update(_read_elsewhere(module))
    strange = frozenset(node.name for node, seen in watcher.seen.items() if not seen.floats)
    return LeftAlone(nodes=nodes, modules=modules, strange=strange)


class _Watcher(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.seen: dict[Node, _Seen] = {}

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        leaves = pytree.tree_leaves(made)
        floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dtype == torch.float32]
        unbounded = any(leaf.numel() and not bool(leaf.abs().max() < _UNBOUNDED) for leaf in floats)
        kind = str(leaves[0].dtype).removeprefix("torch.") if leaves and isinstance(leaves[0], Tensor) else (
            type(made).__name__)
        self.seen[n] = _Seen(bool(floats), unbounded, kind)
        return made


def _reason(node: Node, seen: Mapping[Node, _Seen], masking: set[Node]) -> str:
    if not seen[node].floats:
        return f"it gives {seen[node].kind}, not float32"
    if node in masking or any(source in masking for source in node.all_input_nodes):
        return "it works on a mask of minus infinity, or of a number that stands for it"
    if node.op == "call_module" or get_non_observable_arg_indexes_and_types(node):
        return ""
    others = [source for source in node.all_input_nodes if not seen[source].floats]
    return f"an operand is {seen[others[0]].kind}, not float32" if others else ""


def _masking(module: GraphModule, seen: Mapping[Node, _Seen]) -> set[Node]:
    """Return the nodes whose value excludes positions: masks, and what they are added to, up to a softmax."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "output" or not seen[node].floats:
            continue
        inherits = any(source in found for source in node.all_input_nodes) and not _ends(node, module)
        if seen[node].unbounded or inherits or (node.target in _MASKS and _excludes(node)):
            found.add(node)
    return found


def _excludes(node: Node) -> bool:
    numbers = [leaf for leaf in pytree.tree_leaves((node.args, dict(node.kwargs)))
               if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)]
    return any(number <= _MASKING or math.isinf(number) for number in numbers)


def _ends(node: Node, module: GraphModule) -> bool:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return isinstance(layer, (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)) or any(True for _ in layer.parameters())
    return node.target in _ENDS_MASKING


def _read_elsewhere(module: GraphModule) -> dict[str, str]:
    """Return the layers of which the graph reads a parameter as a tensor, too: packed for int8 it is none."""
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    return {owner: f"its {name} is also read as a tensor"
            for node in module.graph.nodes if node.op == "get_attr" and node.users
            for owner, _, name in [str(node.target).rpartition(".")] if owner in called}
