"""Multiply-accumulates (MACs) of one call, by the module that makes them.

The formulas are those of `torch.utils.flop_counter`, so functional products count too. Its own mode is not used: it
asks to be left out of compilation, which alone imports torch's compiler and takes longer than a small model's checks.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pytest_qat.core.batches import call
from pytest_qat.core.torch_state import without_fast_path

__all__ = ["MacCount", "called_modules", "count_macs", "float_function_macs", "integer_multipliers"]

_PRODUCTS = ("_int_mm", "mm", "addmm", "bmm", "convolution")


@dataclass(frozen=True, slots=True, kw_only=True)
class MacCount:
    """What one call did.

    Attributes:
        by_module: MACs of each module, without those of the modules inside it; only where there are any.
        called: Names of the modules that were called, the model itself as "".
    """

    by_module: dict[str, int]
    called: frozenset[str]


def count_macs(model: nn.Module, inputs: Any) -> MacCount:
    """Call a model once and count.

    Args:
        model: In eval mode; its buffers may change if it changes them.
        inputs: Arguments of one call.
    """
    running: list[str] = [""]
    called: set[str] = set()
    mode = _Counting(running)
    with (torch.no_grad(), _without_onednn(), _attention_in_parts(), _noting_modules(model, running, called), mode):
        call(model, inputs)
    return MacCount(by_module={name: macs for name, macs in mode.macs.items() if macs}, called=frozenset(called))


def float_function_macs(converted: nn.Module, inputs: Any, *,
                        owner: Callable[[str, torch.fx.Node], str]) -> Counter[str]:
    """Call a converted model once and count what its traced graphs multiply in float outside of any module.

    Args:
        converted: In eval mode.
        inputs: Arguments of one call.
        owner: Tells, from the name of a graph module and a node in it, who the node's products are booked on.
    """
    running: list[Any] = [None]  # None: inside of a module
    mode = _Counting(running, decomposing=False)
    with contextlib.ExitStack() as stack:
        for place, part in converted.named_modules():
            if isinstance(part, torch.fx.GraphModule):
                stack.enter_context(_run_by_node(part, partial(owner, place), mode))
        with torch.no_grad(), _attention_in_parts(), mode:
            call(converted, inputs)
    mode.macs.pop(None, 0)
    return mode.macs


@contextlib.contextmanager
def _run_by_node(part: torch.fx.GraphModule, owner: Callable[[torch.fx.Node], str], mode: _Counting) -> Iterator[None]:
    """Run a traced graph node by node meanwhile, and let the mode know for whom."""
    class Booking(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            mode.running.append(None if node.op == "call_module" else owner(node))
            try:
                made = super().run_node(node)
                if "quantized.matmul" in str(node.target):  # which dequantizes, and multiplies in float
                    mode.macs[mode.running[-1]] += made.numel() * self.env[node.all_input_nodes[0]].shape[-1]
                return made
            finally:
                mode.running.pop()

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


def called_modules(model: nn.Module, inputs: Any) -> frozenset[str]:
    """Call a model once and return the names of the modules that were called, the model itself as ""."""
    called: set[str] = set()
    with torch.no_grad(), _noting_modules(model, [], called):
        call(model, inputs)
    return frozenset(called)


def integer_multipliers(model: nn.Module, inputs: Any) -> frozenset[str]:
    """Call a model once and return the names of the modules that multiply matrices of integers.

    Torch's packed int8 kernels are not seen, only those that take plain tensors, as torchao's do.
    """
    mode = _NotingIntegers([""])
    with torch.no_grad(), _noting_modules(model, mode.running, set()), mode:
        call(model, inputs)
    return frozenset(mode.found)


class _NotingIntegers(TorchDispatchMode):
    """Notes the module that is running when a product takes integers alone."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running = running
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(getattr(func, "_overloadpacket", None), "__name__", "")
        if name in _PRODUCTS and not any(part.is_floating_point() for part in args if isinstance(part, torch.Tensor)):
            self.found.add(self.running[-1])
        return func(*args, **(kwargs or {}))


class _Counting(TorchDispatchMode):
    """Books the MACs of every op on the module that is running."""

    supports_higher_order_operators = True

    def __init__(self, running: list[Any], *, decomposing: bool = True) -> None:
        super().__init__()
        self.macs: Counter[Any] = Counter()
        self.running = running
        self._decomposing = decomposing
        self._flops: dict[Any, Callable[..., int]] = FlopCounterMode(display=False).flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "_overloadpacket", None)  # control flow has none
        if self._decomposing and op is not None and op not in self._flops and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if op in self._flops:
            self.macs[self.running[-1]] += self._flops[op](*args, **kwargs, out_val=made) // 2
        return made


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Let an LSTM run as the products that it is made of: oneDNN's is one op, which no table of products knows."""
    was_on = torch._C._get_mkldnn_enabled()  # noqa: SLF001 - torch.backends.mkldnn.flags sets TF32, too, and warns
    torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was_on)  # noqa: SLF001


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Attention's fused kernels have no formula."""
    with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def _noting_modules(model: nn.Module, running: list[str], called: set[str]) -> Iterator[None]:
    def entering(name: str) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            running.append(name)
            called.add(name)
        return enter

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(entering(name)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
