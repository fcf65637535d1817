"""Watch one eager call: which modules and functions ran, on whose outputs, and which of them int8 tensors survive.

Works on models that torch.fx and torch.export refuse, because it watches a real call: module hooks see the leaf
modules, a `TorchFunctionMode` sees everything called between them. Whether an op has an int8 kernel is not looked
up but tried, on quantized copies of the values that the call saw.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import call
from pytest_qat.core.tracebacks import calling_place
from pytest_qat.workflows.base import CONTAINERS

__all__ = ["Call", "Trace", "trace_call"]



@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a leaf module, or of a function outside of leaf modules.

    Attributes:
        kind: `module` or `function`.
        name: Qualified module name, or the function's name.
        owner: Qualified name of the module whose forward made the call.
        inputs: Numbers of the tensors that went in.
        outputs: Numbers of the tensors that came out; an in-place call gives its tensor a new number.
        takes_int8: Whether the call, repeated on quantized inputs, succeeds; None: not tried.
        place: `file:line` of a function's call; "" for a module.
    """

    kind: Literal["module", "function"]
    name: str
    owner: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    takes_int8: bool | None = None
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one forward call did, in order.

    Attributes:
        calls: The calls that produced tensors.
        inputs: Numbers of the model's floating-point input tensors.
        outputs: Numbers of the tensors that the model returned.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def consumers(self, value: int) -> list[Call]:
        """Return the calls that a value goes into."""
        return [entry for entry in self.calls if value in entry.inputs]

    def call_counts(self) -> Counter[str]:
        """Return how often each leaf module was called."""
        return Counter(entry.name for entry in self.calls if entry.kind == "module")


def trace_call(model: nn.Module, example_inputs: tuple[Any, ...], *,
               leaves: frozenset[str] = frozenset()) -> Trace:
    """Run `model` once in inference and return what it called.

    Args:
        model: In eval mode; hooks are added for the call and removed after it.
        example_inputs: Positional arguments of forward.
        leaves: Names of modules to record as one call, whatever is inside them.
    """
    recorder = _Recorder()
    inputs = recorder.numbers(example_inputs)
    with torch.no_grad(), recorder.hooks(model, leaves), recorder:
        output = call(model, example_inputs)
    return Trace(calls=tuple(recorder.calls), inputs=inputs, outputs=recorder.numbers(output))


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._number_of: dict[int, int] = {}
        self._alive: list[Tensor] = []  # ids are only unique among living tensors
        self._stack: list[str] = [""]
        self._leaf_inputs: list[tuple[int, ...]] = []
        self._probe: bool | None = None

    def numbers(self, value: Any) -> tuple[int, ...]:
        """Numbers of the floating-point tensors in a nested value; a tensor not seen before gets a new one."""
        return tuple(self._number_of.get(id(leaf), -1) if id(leaf) in self._number_of else self._new(leaf)
                     for leaf in _float_leaves(value))

    def _new(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        self._number_of[id(tensor)] = len(self._alive)
        return len(self._alive)

    def _record(self, kind: Literal["module", "function"], name: str, inputs: tuple[int, ...], output: Any,
                takes_int8: bool | None) -> None:
        outputs = tuple(self._new(leaf) for leaf in _float_leaves(output))
        if outputs:
            self.calls.append(Call(kind=kind, name=name, owner=self._stack[-1], inputs=inputs, outputs=outputs,
                                   takes_int8=takes_int8, place=calling_place() if kind == "function" else ""))

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._leaf_inputs:
            return func(*args, **kwargs)
        leaves = _float_leaves((args, kwargs))
        inputs = self.numbers((args, kwargs))
        takes_int8 = _survives_int8(func, args, kwargs) if leaves else None
        output = func(*args, **kwargs)
        self._record("function", getattr(func, "__name__", str(func)), inputs, output, takes_int8)
        return output

    @contextlib.contextmanager
    def hooks(self, model: nn.Module, leaves: frozenset[str]) -> Iterator[None]:
        """Record leaf modules as one call each, and keep the stack of the modules around them."""
        handles = []
        for name, module in model.named_modules():
            is_leaf = name in leaves or _is_leaf(module)
            enter, leave = self._leaf_hooks(name) if is_leaf else self._owner_hooks(name)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _owner_hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._leaf_inputs:
                self._stack.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if not self._leaf_inputs:
                self._stack.pop()

        return enter, leave

    def _leaf_hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            nested = bool(self._leaf_inputs)
            self._leaf_inputs.append(self.numbers((args, kwargs)))
            if not nested:
                self._probe = _survives_int8(module.forward, args, kwargs)
                del self._leaf_inputs[1:]  # a refused probe leaves through an exception, past the hooks below

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            inputs = self._leaf_inputs.pop()
            if not self._leaf_inputs:
                self._record("module", name, inputs, output, self._probe)

        return enter, leave


def _is_leaf(module: nn.Module) -> bool:
    """A module of torch's own that is not a container: quantization sees it as one thing."""
    path = type(module).__module__
    return path.startswith(("torch.nn.", "torch.ao.")) and not isinstance(module, CONTAINERS)


def _float_leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _survives_int8(func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001 - torch documents this name
        try:
            quantized_args, quantized_kwargs = pytree.tree_map_only(Tensor, _quantized_copy, (args, kwargs))
            func(*quantized_args, **quantized_kwargs)
        except Exception:  # any refusal, of whatever type, means that int8 tensors do not pass here
            return False
    return True


def _quantized_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or isinstance(tensor, nn.Parameter):
        return tensor
    data = tensor.detach().float()
    step = max(float(data.abs().max()) / 127, 1e-6) if data.numel() else 1.0
    return torch.quantize_per_tensor(data, step, 64, torch.quint8)
