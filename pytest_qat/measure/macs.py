"""Multiply-accumulates (MACs) of one call: each product that runs, with the module and the weights that it is made of.

What counts is defined in `pytest_qat.core.products`, by the formulas of `torch.utils.flop_counter`. Its own mode is
not used: it asks to be left out of compilation, which alone imports torch's compiler and takes longer than a small
model's checks.
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
    """What one call did.

    Attributes:
        products: What was multiplied and looked up, in order.
        called: Names of the modules that were called, the model itself as "".
        read: Names of the model's parameters and buffers that any op read.
    """

    products: tuple[Product, ...]
    called: frozenset[str]
    read: frozenset[str]

    @property
    def by_module(self) -> dict[str, int]:
        """MACs of each module, without those of the modules inside it; only where there are any."""
        counts: Counter[str] = Counter()
        for product in self.products:
            counts[product.module] += product.macs
        return {name: macs for name, macs in counts.items() if macs}


def count_macs(model: nn.Module, inputs: Any) -> MacCount:
    """Call a float model once and count.

    Args:
        model: In eval mode; its buffers may change if it changes them.
        inputs: Arguments of one call.
    """
    running, called = [""], set[str]()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])  # a shared one goes by its first name
    mode = ProductMode(running, tensors=tensors, places=True)
    with torch.no_grad(), in_parts(), noting_modules(model, running, called), mode:
        call(model, inputs)
    return MacCount(products=tuple(mode.products), called=frozenset(called), read=frozenset(mode.read))


def products_of_converted(converted: nn.Module, inputs: Any, *, names: dict[str, str],
                          owner: Callable[[str, torch.fx.Node], str]) -> list[Product]:
    """Call a converted model once and return what it multiplied.

    Args:
        converted: In eval mode.
        inputs: Arguments of one call.
        names: The user's own names of its modules, by their actual names.
        owner: Tells, from the name of a graph module and a node in it that calls no module, the user's module that the
            node's products are booked on.
    """
    running = [""]
    mode = ProductMode(running)
    with contextlib.ExitStack() as stack:
        for place, part in converted.named_modules():
            if isinstance(part, torch.fx.GraphModule):
                stack.enter_context(_run_by_node(part, partial(owner, place), running))
        with torch.no_grad(), in_parts(), noting_modules(converted, running, set(), names=names), mode:
            call(converted, inputs)
    return mode.products


@contextlib.contextmanager
def _run_by_node(part: torch.fx.GraphModule, owner: Callable[[torch.fx.Node], str], running: list[str],
                 ) -> Iterator[None]:
    """Run a traced graph node by node meanwhile, and note for whom each is run."""
    class Booking(torch.fx.Interpreter):
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
        return Booking(part, garbage_collect_values=False).run(*bound.args)

    part.forward = forward
    try:
        yield
    finally:
        del part.forward
