"""A tracer that knows the values of one call, and uses of them what every call in the same form shares.

That is the number of a tensor's dimensions, its dtype, and nothing that depends on sizes or on what tensors hold: so
`(*x.shape[:-1], heads, -1)` and `if x.dtype != torch.float32` are followed, and `if x.shape[0] > 1` is not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.fx import Node, Proxy
from torch.utils import _pytree as pytree

from pytest_qat.workflows.fx.recurrent import EagerLayer

__all__ = ["FormTracer"]

_OF_FORM = frozenset({"dtype", "ndim", "device", "is_cuda", "layout", "is_quantized", "type"})
_METHODS_OF_FORM = frozenset({"dim", "ndimension", "is_floating_point", "is_complex"})
_FUNCTIONS_OF_FORM: frozenset[Any] = frozenset({torch.is_floating_point, torch.is_complex})
_KEEPS_FORM = frozenset({operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.add,
                         operator.sub, operator.and_, operator.or_, operator.not_, getattr})


class FormTracer(QuantizationTracer):
    """torch.ao's tracer, with the inputs of one call at hand.

    Args:
        inputs: What the placeholders stand for, in order.
        proxy_buffers: Whether buffers become nodes; else slices of them by a proxy fail.
    """

    def __init__(self, inputs: Sequence[Any], *, proxy_buffers: bool) -> None:
        super().__init__([], [])
        self.proxy_buffer_attributes = proxy_buffers
        self._inputs = list(inputs)
        self._values: dict[Node, Any] = {}
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return isinstance(m, EagerLayer) or super().is_leaf_module(m, module_qualified_name)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Unpack what is a tuple in every call of this form, such as a shape."""
        value = self._value(obj.node)
        if isinstance(value, (tuple, list)):
            several: Any = obj
            return iter([several[index] for index in range(len(value))])
        return super().iter(obj)

    def length(self, obj: Proxy) -> int | None:
        """Return how many items a proxy has in every call of this form; None for a tensor, and for what has none."""
        value = self._value(obj.node)
        return len(value) if isinstance(value, (tuple, list)) else None

    def to_bool(self, obj: Proxy) -> bool:
        """Decide what depends on dtypes and numbers of dimensions only."""
        if self._is_of_form(obj.node):
            return bool(self._value(obj.node))
        return super().to_bool(obj)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...],
                    kwargs: dict[str, Any]) -> Any:
        """Trace through a module or make a node of it; while a node is computed, run it."""
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def _is_of_form(self, node: Node) -> bool:
        asked = node.op == "call_function" and node.target is getattr and node.args[1] in _OF_FORM
        if asked or (node.op == "call_method" and node.target in _METHODS_OF_FORM) or node.target in _FUNCTIONS_OF_FORM:
            return True
        return node.op == "call_function" and node.target in _KEEPS_FORM and bool(node.all_input_nodes) and all(
            self._is_of_form(source) for source in node.all_input_nodes)

    def _value(self, node: Node) -> Any:
        """Return what a node gives in the call that is known."""
        needed = _ancestors(node)
        was, self._evaluating = self._evaluating, True
        try:
            with torch.no_grad():
                for other in self.graph.nodes:
                    if other in needed and other not in self._values:
                        self._values[other] = self._computed(other)
        finally:
            self._evaluating = was
        return self._values[node]

    def _computed(self, node: Node) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: self._values[source])
        if node.op == "placeholder":
            place = [other for other in self.graph.nodes if other.op == "placeholder"].index(node)
            return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), self._inputs[place])
        if node.op == "get_attr":
            found: Any = self.root
            for name in str(node.target).split("."):
                found = getattr(found, name) if not isinstance(found, nn.Module) else _attribute(found, name)
            return found
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)


def _attribute(module: nn.Module, name: str) -> Any:
    """Look an attribute up without the tracer's own lookup, which would give a proxy."""
    for table in (module._parameters, module._buffers, module._modules, vars(module)):  # noqa: SLF001
        if name in table:
            return table[name]
    return object.__getattribute__(module, name)


def _ancestors(node: Node) -> set[Node]:
    found, rest = {node}, [node]
    while rest:
        for source in rest.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                rest.append(source)
    return found
