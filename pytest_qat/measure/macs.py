"""Multiply-accumulates (MACs) of one call: every product that runs, with its module and its weights.

`pytest_qat.core.products` defines what counts, by the formulas of `torch.utils.flop_counter`. torch's own counting mode
is not used because it imports torch's compiler, which takes longer than all checks of a small model.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_qat.core.batches import call
from pytest_qat.core.products import Product, ProductMode, in_parts, noting_modules

__all__ = ["MacCount", "count_macs", "products_of_converted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MacCount:
    """What one call of a model computed.

    Attributes:
        products: The multiplications and table lookups that the outputs depend on, in order.
        called: Names of the modules that were called, the model itself as "".
        read: Names of the model's parameters and buffers that the outputs depend on.
    """

    products: tuple[Product, ...]
    called: frozenset[str]
    read: frozenset[str]

    @property
    def by_module(self) -> dict[str, int]:
        """MACs of each module that has any, without those of the modules inside it."""
        counts: Counter[str] = Counter()
        for product in self.products:
            counts[product.module] += product.macs
        return {name: macs for name, macs in counts.items() if macs}


def count_macs(model: nn.Module, inputs: Any) -> MacCount:
    """Call a float model once and count its products.

    Args:
        model: The model, in eval mode; its buffers may change if its forward changes them.
        inputs: Arguments of one call.
    """
    running, called = [""], set[str]()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])  # a shared tensor keeps its first name
    mode = ProductMode(running, tensors=tensors, inputs=inputs, places=True)
    with torch.no_grad(), in_parts(), noting_modules(model, running, called), mode:
        outputs = call(model, inputs)
    products, read = mode.needed_for(outputs)
    return MacCount(products=tuple(products), called=frozenset(called), read=read)


def products_of_converted(converted: nn.Module, inputs: Any, *, names: dict[str, str],
                          owner: Callable[[str, torch.fx.Node], str]) -> list[Product]:
    """Call a converted model once and return its products.

    Args:
        converted: The converted model, in eval mode.
        inputs: Arguments of one call.
        names: Names of its modules in the user's model, by their names in the converted model.
        owner: Returns the module of the user's model that a node's products belong to, given the name of the graph
            module and a node in it that does not call a module.
    """
    running = [""]
    tensors = dict([*converted.named_parameters(), *converted.named_buffers()])
    mode = ProductMode(running, tensors=tensors, inputs=inputs)
    with contextlib.ExitStack() as stack:
        for place, part in converted.named_modules():
            if isinstance(part, torch.fx.GraphModule):
                stack.enter_context(_run_by_node(part, partial(owner, place), running))
        with torch.no_grad(), in_parts(), noting_modules(converted, running, set(), names=names), mode:
            outputs = call(converted, inputs)
    return mode.needed_for(outputs)[0]


@contextlib.contextmanager
def _run_by_node(part: torch.fx.GraphModule, owner: Callable[[torch.fx.Node], str], running: list[str],
                 ) -> Iterator[None]:
    """Make a traced graph run node by node, and record the owner of each node while it runs."""
    class OwnerInterpreter(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            if node.op not in ("call_function", "call_method"):
                return super().run_node(node)
            running.append(owner(node))
            try:
                return super().run_node(node)
            finally:
                running.pop()

    signature = inspect.signature(part.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return OwnerInterpreter(part, garbage_collect_values=False).run(*bound.args)

    part.forward = forward
    try:
        yield
    finally:
        del part.forward
