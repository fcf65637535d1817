"""The products that a converted model computes in torch, as kernels named after the modules of the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import nn

from pytest_qat.measure.macs import products_of_converted
from pytest_qat.runtimes.base import Kernel
from pytest_qat.workflows.names import user_names

__all__ = ["kernels_that_ran", "with_parents"]


def kernels_that_ran(converted: nn.Module, example_inputs: Any, *, known: AbstractSet[str]) -> list[Kernel]:
    """Call a converted model once and return the kernels that ran.

    Args:
        converted: The converted model, in eval mode.
        example_inputs: Arguments of one call.
        known: Names of the float model's modules. If the converted model wraps the model in another module, as
            QuantWrapper does, the name of that wrapper is removed from the names of the kernels.
    """
    products = products_of_converted(converted, example_inputs, names=user_names(converted),
                                     owner=_owners_of(converted))
    stored = {user_names(converted)[name]: type(module.weight).__name__ for name, module in converted.named_modules()
              if _holds_torchao_weight(module)}
    wrapper = _wrapper_of({product.module for product in products}, known)

    def reason(int8: bool, module: str) -> str:
        if int8 or module not in stored:
            return ""
        return (f"torchao stores its weight as {stored[module]}, but multiplies in float, as weight-only quantization "
                "does")

    return [Kernel(int8=product.int8, op=product.op, module=_without(product.module, wrapper), macs=product.macs,
                   reason=product.reason or reason(product.int8, product.module)) for product in products]


def _wrapper_of(names: AbstractSet[str], known: AbstractSet[str]) -> str:
    """Return the common parent whose removal makes the most names known; "" if no removal helps."""
    parents = [frozenset(with_parents(name)) for name in names]
    common = frozenset.intersection(*parents) if parents else frozenset()
    return max(["", *sorted(common, key=len)],
               key=lambda parent: sum(_without(name, parent) in known for name in names))


def _without(name: str, wrapper: str) -> str:
    return "" if name == wrapper else name.removeprefix(f"{wrapper}.") if wrapper else name


def with_parents(name: str) -> list[str]:
    """Return the name and the names of its enclosing modules, without the model itself."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _owners_of(converted: nn.Module) -> Callable[[str, torch.fx.Node], str]:
    """Return a function from a graph module's name and a node in it to the user's module that the node comes from."""
    own = user_names(converted)
    inside = {place: _flat_names(part) for place, part in converted.named_modules()
              if isinstance(part, torch.fx.GraphModule)}
    return lambda place, node: ".".join(filter(None, (own[place], _owner(node, inside[place]))))


def _flat_names(part: torch.fx.GraphModule) -> dict[str, str]:
    """Return the names of a graph's modules, and of modules that tracing inlined, by the prefix of their attributes."""
    inlined = {str(name) for node in part.graph.nodes for name in node.meta.get("nn_module_stack") or {}}
    return {name.replace(".", "_"): user for name, user in {
        **{name: name for name in inlined}, **user_names(part)}.items()}


def _owner(node: torch.fx.Node, flat: Mapping[str, str]) -> str:
    """Return the module that made a functional int8 call; the attribute of its output's scale is named after it."""
    for argument in node.all_input_nodes:
        place, found, _ = str(argument.target).rpartition("_scale_")
        if argument.op == "get_attr" and found and place in flat:
            return flat[place]
    return next(reversed(node.meta.get("nn_module_stack") or {}), "")


def _holds_torchao_weight(module: nn.Module) -> bool:
    return type(getattr(module, "weight", None)).__module__.startswith("torchao.")
