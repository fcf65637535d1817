"""Functions that change an argument in place, and what reads that argument afterwards.

In the float model every reader sees the change. In the int8 model a function that has no int8 kernel works on a
dequantized copy, and whoever reads the argument later reads the int8 tensor, which nobody changed: torch.ao may even
drop the function, as its result is not used. So the readers are given what the function makes of the argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pytest_qat.core.batches import copied

__all__ = ["with_results_read"]


def with_results_read(module: GraphModule, inputs: Sequence[Any]) -> dict[str, str]:
    """Let what comes after a change in place read its result, in a graph.

    A function that returns the changed argument is read itself; one that returns nothing is wrapped, to change and
    return a copy.

    Args:
        module: A traced graph in eval mode, changed in place.
        inputs: What its placeholders take; tensors are copied.

    Returns:
        The names of the nodes that were put in, each with that of the node it replaces.
    """
    watcher = _Watcher(module)
    with torch.no_grad():
        watcher.run(*copied(tuple(inputs)))
    added: dict[str, str] = {}
    for node, (argument, returned) in watcher.changes.items():
        result = node
        if not returned:
            if node.users or node.op != "call_function" or argument not in node.args:
                continue  # it returns something else, which somebody reads
            with module.graph.inserting_before(node):
                result = module.graph.call_function(
                    _returning(node.target, node.args.index(argument)), node.args, node.kwargs)
            added[result.name] = node.name
            module.graph.erase_node(node)
        argument.replace_all_uses_with(result, delete_user_cb=_after(result).__contains__)
    if watcher.changes:
        module.recompile()
    return added


class _Watcher(Interpreter):
    """Runs a graph, and notes which argument each node changes, and whether it returns it."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.changes: dict[Node, tuple[Node, bool]] = {}

    def run_node(self, n: Node) -> Any:
        tensors = {source: self.env[source] for source in n.all_input_nodes if isinstance(self.env[source], Tensor)}
        before = {source: tensor._version for source, tensor in tensors.items()}  # noqa: SLF001 - the only record
        made = super().run_node(n)
        changed = [source for source, tensor in tensors.items() if tensor._version != before[source]]  # noqa: SLF001
        if len(changed) == 1:
            self.changes[n] = changed[0], made is tensors[changed[0]]
        return made


def _after(node: Node) -> set[Node]:
    found = set()
    node = node.next
    while node.op != "root":
        found.add(node)
        node = node.next
    return found


@functools.cache
def _returning(function: Callable[..., Any], index: int) -> Callable[..., Tensor]:
    """Return a function that changes a copy of an argument and returns it."""
    def changed(*args: Any, **kwargs: Any) -> Tensor:
        copied: Tensor = args[index].clone()
        function(*args[:index], copied, *args[index + 1:], **kwargs)
        return copied

    changed.__name__ = f"changed_by_{getattr(function, '__name__', 'function').strip('_')}"
    return changed
