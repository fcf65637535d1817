"""Trace a module into a graph that takes tensors and returns tensors, without leaving a mark on the module."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import TraceError
from torch.utils import _pytree as pytree

from pytest_qat.workflows.fx.arguments import CallForm, Nested, NotPlain, taken_apart
from pytest_qat.workflows.fx.tracer import FormTracer

__all__ = ["KeepsState", "Traced", "swap_float_functionals", "trace", "trace_call"]

_FACTORIES = ("arange", "empty", "eye", "finfo", "full", "iinfo", "linspace", "logspace", "ones", "rand", "randn",
              "tensor", "tril_indices", "triu_indices", "zeros")
"""What torch calls without asking whether an argument is a proxy."""
_ABOUT_WEIGHTS = ("device", "dtype", "shape", "ndim", "requires_grad", "is_cuda")
DEVICE = "_where_the_weights_are"


class KeepsState(Exception):
    """A module changed its own attributes while it was traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A graph and where each of its nodes comes from.

    Attributes:
        module: The graph; its layers are those of the module that was traced.
        scopes: Name and type of the module that made each node, by the node's name.
        output: How the results are nested; None where the graph returns them as the module does.
    """

    module: GraphModule
    scopes: dict[str, tuple[str, type]]
    output: Nested | None = None


def trace(model: nn.Module, inputs: Sequence[Any]) -> Traced:
    """Trace a model as it is: its arguments become the graph's, its result the graph's.

    Args:
        model: In eval mode.
        inputs: The arguments of one call.
    """
    module, tracer = _graph_of(model, inputs, model)
    return Traced(module=_tidied(module), scopes=tracer.node_name_to_scope)


def trace_call(module: nn.Module, form: CallForm, tensors: Sequence[Tensor]) -> Traced:
    """Trace a module into a graph of a call in this form; in the graph it has the name `module`.

    Args:
        module: In eval mode.
        form: Of the call.
        tensors: Those of the call.

    Raises:
        NotPlain: it returns something else than tensors and constants in containers.
        KeepsState: it changes its own attributes.
    """
    holder = _holder(module, form)
    made, tracer = _graph_of(holder, tensors, module)
    if holder.output is None:
        raise NotPlain("nothing was returned")
    return Traced(module=_tidied(made), scopes=tracer.node_name_to_scope, output=holder.output)


def _graph_of(root: nn.Module, inputs: Sequence[Any], module: nn.Module) -> tuple[GraphModule, FormTracer]:
    """Trace with buffers as they are, which a forward may decide by, else with buffers as nodes, to be sliced."""
    try:
        return _traced(root, FormTracer(inputs, proxy_buffers=False), module)
    except (TypeError, TraceError):
        with contextlib.suppress(Exception):
            return _traced(root, FormTracer(inputs, proxy_buffers=True), module)
        raise


def _traced(root: nn.Module, tracer: FormTracer, module: nn.Module) -> tuple[GraphModule, FormTracer]:
    with _factories_take_proxies(), _lengths_of_shapes(tracer), _unmarked(module), _without_stack_traces():
        return GraphModule(root, tracer.trace(root), class_name=type(module).__name__), tracer


class _Holder(nn.Module):
    """Calls a module with its tensors one by one, and notes how its results are nested."""

    def __init__(self, module: nn.Module, form: CallForm) -> None:
        super().__init__()
        self.module = module
        self.form = form
        self.output: Nested | None = None

    def passed(self, *tensors: Proxy) -> tuple[Proxy, ...]:
        """Call the module in the form that was recorded."""
        found = self.form.call(self.module, tensors)
        proxies, self.output = taken_apart(found, tensor=Proxy)
        return tuple(proxies)


def _holder(module: nn.Module, form: CallForm) -> _Holder:
    """Return a holder whose forward takes as many arguments as the form has tensors, under readable names."""
    names = _names(form)
    scope: dict[str, Any] = {}
    listed = ", ".join(names)
    exec(f"def forward(self, {listed}): return self.passed({listed})", scope)  # noqa: S102 - torch.fx reads the names
    kind = type("Part", (_Holder,), {"forward": scope["forward"], "__module__": __name__})
    made: _Holder = kind(module, form)
    return made.eval() if not module.training else made


def _names(form: CallForm) -> list[str]:
    count = form.nested.size - len(form.nested.others)
    places = form.nested.filled([_Place(index) for index in range(count)])
    names = [f"input_{index}" for index in range(count)]
    for argument, value in places.items():
        if isinstance(value, _Place):
            names[value.index] = argument
    return names


@dataclass(frozen=True, slots=True)
class _Place:
    index: int


@contextlib.contextmanager
def _factories_take_proxies() -> Iterator[None]:
    """Let `torch.arange(x.shape[1])` and its like become nodes; torch.fx knows functions that take tensors only."""
    importlib.import_module("torch._dynamo")  # imported meanwhile, as tracing does, it would keep the replacements
    kept = {name: getattr(torch, name) for name in _FACTORIES}
    for name, function in kept.items():
        setattr(torch, name, _traceable(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch, name, function)


@contextlib.contextmanager
def _lengths_of_shapes(tracer: FormTracer) -> Iterator[None]:
    """Let `len(x.shape)` and `f(*x.shape)` be followed: torch.fx refuses all lengths."""
    kept = Proxy.__len__

    def length(proxy: Proxy) -> int:
        found = tracer.length(proxy) if proxy.tracer is tracer else None
        return kept(proxy) if found is None else found

    Proxy.__len__ = length  # type: ignore[method-assign]
    try:
        yield
    finally:
        Proxy.__len__ = kept  # type: ignore[method-assign]


def _traceable(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Proxy)]
        if not found:
            return function(*args, **kwargs)
        return found[0].tracer.create_proxy("call_function", function, args, kwargs)

    return wrapped


@contextlib.contextmanager
def _unmarked(module: nn.Module) -> Iterator[None]:
    """Undo what tracing leaves in a module, such as a proxy kept as "the last mask".

    Raises:
        KeepsState: it left something.
    """
    kept = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]  # noqa: SLF001
    try:
        yield
    finally:
        changed = [part for part, attributes, buffers in kept if _restored(part, attributes, buffers)]
    if changed:
        raise KeepsState(f"{type(changed[0]).__name__} ({_place_of_forward(changed[0])}) keeps what it computes in its "
                         "own attributes")


def _place_of_forward(part: nn.Module) -> str:
    code = inspect.unwrap(type(part).forward).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def _restored(part: nn.Module, attributes: dict[str, Any], buffers: dict[str, Any]) -> bool:
    """Put a module's attributes back, and return whether that was needed."""
    now = vars(part)
    changed = now.keys() != attributes.keys() or any(now[name] is not value for name, value in attributes.items())
    for name in now.keys() - attributes.keys():
        del now[name]
    now.update(attributes)
    if any(part._buffers.get(name) is not value for name, value in buffers.items()):  # noqa: SLF001
        part._buffers.clear()  # noqa: SLF001
        part._buffers.update(buffers)  # noqa: SLF001
        changed = True
    return changed


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Trace without a stack trace a node: nobody reads them here, and symbolizing them imports torch's compiler."""
    kept = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = kept


def _tidied(module: GraphModule) -> GraphModule:
    """Ask the device of a buffer instead of a weight's, and fold what else is asked of weights.

    After conversion a layer's weight is packed, and has neither a device nor a dtype to read.
    """
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    device: Node | None = None
    for node in list(module.graph.nodes):
        asked = _asked_of_weight(node, parameters)
        if asked is None:
            continue
        source = node.all_input_nodes[0]
        weight = module.get_parameter(str(source.target))
        if asked == "device":
            if device is None:
                module.register_buffer(DEVICE, torch.empty(0), persistent=False)
                with module.graph.inserting_before(next(
                        other for other in module.graph.nodes if other.op != "placeholder")):
                    device = module.graph.get_attr(DEVICE)
            node.args = (device, "device")
        else:
            _replaced(node, getattr(weight, asked))
        if not source.users:
            module.graph.erase_node(source)
    module.recompile()
    return module


def _asked_of_weight(node: Node, parameters: set[str]) -> str | None:
    if node.op != "call_function" or node.target is not getattr or not isinstance(node.args[0], Node):
        return None
    source, asked = node.args[0], str(node.args[1])
    return asked if source.op == "get_attr" and source.target in parameters and asked in _ABOUT_WEIGHTS else None


def _replaced(node: Node, value: Any) -> None:
    """Put a constant in the place of a node."""
    for user in list(node.users):
        if user.op == "call_function" and user.target is operator.getitem and user.args[0] is node:
            _replaced(user, value[user.args[1]])
        else:
            user.args = torch.fx.node.map_arg(user.args, lambda arg: value if arg is node else arg)
            user.kwargs = torch.fx.node.map_arg(user.kwargs, lambda arg: value if arg is node else arg)
    if not node.users:
        node.graph.erase_node(node)


def swap_float_functionals(model: nn.Module) -> None:
    """Replace each FloatFunctional by the form that torch.fx can look through, in place."""
    for name, child in list(model.named_children()):
        if type(child) is FloatFunctional:
            setattr(model, name, FXFloatFunctional())
        else:
            swap_float_functionals(child)
