"""The one definition of what multiplies and accumulates, for models that run and for graphs.

Counted, after every op is taken apart into what it is made of, are exactly those for which
`torch.utils.flop_counter` has a formula (mm, addmm, bmm, baddbmm, _scaled_mm, convolution of any kind, and the fused
attentions; half of its flops are MACs), and what stands for them in int8: torch's packed `quantized::` layers and
`_int_mm`. linear, matmul, einsum, tensordot, recurrent layers and attention come apart into those. Products of vectors
(dot, mv), elementwise products and poolings are not counted. A table that is looked up (embedding) has 0 MACs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pytest_qat.core.dataflow import Dataflow, tensors_in
from pytest_qat.core.torch_state import without_fast_path

__all__ = ["FLOAT16_REASON", "INT8_MATMUL_REASON", "Product", "ProductMode", "in_parts", "noting_modules",
           "unpacked"]

FLOAT16_REASON = "its weights are float16"
INT8_MATMUL_REASON = "torch's quantized::matmul dequantizes, and computes in float"
_LOOKUPS = frozenset({"embedding", "_embedding_bag", "_embedding_bag_forward_only", "embedding_byte", "embedding_4bit",
                      "embedding_bag_byte", "embedding_bag_4bit", "embedding_bag_byte_rowwise_offsets",
                      "embedding_bag_4bit_rowwise_offsets"})
_FLOPS: Mapping[Any, Callable[..., int]] = FlopCounterMode(display=False).flop_registry
_PACKAGES = Path(torch.__file__).parents[1]
_INSIDE = tuple(f"{folder}{sep}" for folder in (_PACKAGES / "torch", _PACKAGES / "torchao", Path(__file__).parents[1])
                for sep in ("/", "\\"))
"""Where code lies that no user has written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An op that multiplies and accumulates, or looks a table up, as it ran.

    Attributes:
        module: Name of the module that was running, the innermost.
        op: Bare name of the op.
        macs: Its multiply-accumulates; 0 for a lookup.
        int8: Whether it took int8 operands.
        weights: Names of the model's own tensors that an operand is made of, where it is made of nothing else.
        place: `file:line` in the user's code that asked for it; "" where only torch's code did.
        reason: Why it is in float though it is no plain float op; "" otherwise.
    """

    module: str
    op: str
    macs: int
    int8: bool = False
    weights: tuple[str, ...] = ()
    place: str = ""
    reason: str = ""


class ProductMode(TorchDispatchMode):
    """Notes every product that runs.

    Args:
        running: Names of the modules that are running, the innermost last; kept by others, never empty.
        tensors: The model's own tensors by name, whose way into products is followed.
        inputs: Arguments of the call.
        places: Whether to look for the user's line.

    Attributes:
        running: As given.
    """

    supports_higher_order_operators = True

    def __init__(self, running: list[str], *, tensors: Mapping[str, Tensor] | None = None, inputs: Any = (),
                 places: bool = False) -> None:
        super().__init__()
        self.running = running
        self._places = places
        self._products: list[tuple[int, Product]] = []
        self._reads: list[tuple[int, frozenset[str]]] = []
        self._flow = Dataflow([*(tensors or {}).values(), *(
            leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))])
        self._origins: dict[int, tuple[Tensor, frozenset[str]]] = {}  # holds the tensors, so that ids stay theirs
        for name, tensor in (tensors or {}).items():
            self._origins.setdefault(id(tensor), (tensor, frozenset({name})))

    def needed_for(self, outputs: Any) -> tuple[list[Product], frozenset[str]]:
        """Return the products, in order, and the model's own tensors, by name, that outputs of the call depend on."""
        matter = self._flow.matter(outputs)
        return ([product for index, product in self._products if index in matter],
                frozenset().union(*(names for index, names in self._reads if index in matter)))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "_overloadpacket", None)  # control flow has none
        name = getattr(op, "__name__", str(func))
        known = op is None or op in _FLOPS or name in _LOOKUPS or func.namespace == "quantized"
        given = tensors_in((args, kwargs))
        known |= any(tensor.is_quantized for tensor in given)  # the compiler's decompositions do not take such tensors
        if not known and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        found, index = _measure(func, name, args, kwargs, made), self._flow.note(func, args, kwargs, made)
        self._follow(index, given, made)
        if found is not None:
            macs, int8, reason = found
            self._products.append((index, Product(
                module=self.running[-1], op=name, macs=macs, int8=int8, reason=reason,
                weights=self._weights_of(given), place=_users_line() if self._places else "")))
        return made

    def _weights_of(self, given: Sequence[Tensor]) -> tuple[str, ...]:
        return tuple(sorted({name for tensor in given if id(tensor) in self._origins
                             for name in self._origins[id(tensor)][1]}))

    def _follow(self, index: int, given: Sequence[Tensor], made: Any) -> None:
        """Note what a result is made of, if of the model's own tensors alone."""
        if not self._origins:
            return
        known = [self._origins[id(tensor)][1] for tensor in given if id(tensor) in self._origins]
        self._reads += [(index, names) for names in known]
        pure = bool(known) and len(known) == len(given)
        for result in tensors_in(made):
            if pure:
                self._origins[id(result)] = (result, frozenset().union(*known))
            else:
                self._origins.pop(id(result), None)  # written over, as in copy_


def _measure(func: Any, name: str, args: Any, kwargs: Any, made: Any) -> tuple[int, bool, str] | None:
    """Return an op's MACs, whether it computes in int8, and why not where it might seem to; None for any other op."""
    if name in _LOOKUPS:
        return 0, name not in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"), ""
    op = getattr(func, "_overloadpacket", None)
    if op in _FLOPS:
        whole = not any(tensor.is_floating_point() for tensor in tensors_in((args, kwargs)))  # torchao's fallback
        return int(_FLOPS[op](*args, **kwargs, out_val=made)) // 2, whole, ""
    if name == "_int_mm":
        return args[0].numel() * args[1].shape[-1], True, ""
    return _packed_macs(name, args, made)


def _packed_macs(name: str, args: Any, made: Any) -> tuple[int, bool, str] | None:
    """Return what `_measure` does for ops that take packed weights, and for torch's product of quantized tensors."""
    data = next(iter(tensors_in(args)), None)
    if data is None:
        return None
    if name == "matmul" and data.is_quantized:
        return made.numel() * data.shape[-1], False, INT8_MATMUL_REASON
    weights = [found for leaf in _leaves(args) if isinstance(leaf, torch.ScriptObject)
               for found in unpacked(leaf)]
    if not weights:
        return None
    size = sum(weight.numel() for weight in weights)
    half = "" if all(weight.is_quantized for weight in weights) and "fp16" not in name else FLOAT16_REASON
    if "conv" in name:
        transposed = "transpose" in name
        positions = data.numel() // data.shape[1] if transposed else made.numel() // made.shape[1]
        return positions * size, not half, half
    return data.numel() // data.shape[-1] * size, not half, half


def unpacked(packed: Any) -> list[Tensor]:
    """Return the weights in packed parameters: of one layer, or of the two products of a recurrent cell."""
    if hasattr(packed, "unpack"):
        return [packed.unpack()[0]]
    if not hasattr(packed, "__getstate__"):
        return []
    state = packed.__getstate__()
    cells = state[0][-1] if state and isinstance(state[0], tuple) else []
    return [cell.unpack()[0] for cell in cells if hasattr(cell, "unpack")] if isinstance(cells, list) else []


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _users_line() -> str:
    """Return the user's line that asked for the op: the innermost frame neither torch's nor this package's."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - a whole traceback for every op would take long
    while frame is not None and frame.f_code.co_name != "count_macs":
        path = frame.f_code.co_filename
        if not path.startswith((*_INSIDE, "<")) and Path(path).exists():  # "<": made by torch.fx
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@contextlib.contextmanager
def in_parts() -> Iterator[None]:
    """Let recurrent layers and attention run as the products that they are made of: fused ops have no formula."""
    was_on = torch._C._get_mkldnn_enabled()  # noqa: SLF001 - torch.backends.mkldnn.flags sets TF32, too, and warns
    torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
    try:
        with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(was_on)  # noqa: SLF001


@contextlib.contextmanager
def noting_modules(model: nn.Module, running: list[str], called: set[str], *,
                   names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Keep the name of the module that is running on top of a list meanwhile, and note all that are called.

    Args:
        model: Whose modules.
        running: The list.
        called: Where to note.
        names: Other names for them.
    """
    def entering(name: str) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            running.append(name)
            called.add(name)
        return enter

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            own = name if names is None else names.get(name, name)
            stack.callback(module.register_forward_pre_hook(entering(own)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
