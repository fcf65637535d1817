"""How much of a model runs in int8: by weights and by multiply-accumulates (MACs), with every float leftover named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_qat.measure.macs import called_modules, count_macs, float_function_macs, integer_multipliers
from pytest_qat.runtimes.base import Kernel
from pytest_qat.runtimes.graph_kernels import REFERENCE_REASON
from pytest_qat.workflows.eager.int8_flow import has_int8_form
from pytest_qat.workflows.names import user_names

__all__ = ["Coverage", "Leftover", "coverage_of_kernels", "measure_coverage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A module that still computes in float.

    Attributes:
        module: Qualified name.
        kind: Its class.
        weights: Number of its weights (tensors of two and more dimensions).
        macs: Its multiply-accumulates on the example inputs.
        reason: Why it is in float.
    """

    module: str
    kind: str
    weights: int
    macs: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of a model that run in int8.

    Attributes:
        weights: Number of weights in the float model.
        int8_weights: Those held by int8 modules; None where an artifact does not tell whose kernels are whose, or a
            converted model's int8 modules have names that the float model has not.
        macs: Multiply-accumulates of one call on the example inputs.
        int8_macs: Those done by int8 modules; None where an artifact tells neither names nor shapes of its kernels, or
            a converted model's int8 modules have names that the float model has not.
        int8_modules: Number of modules with int8 weights that a call on the example inputs reaches.
        leftovers: What stays in float, most MACs first.
        reference: Whether nothing runs in int8 though the model is quantized: no runtime has lowered it.
    """

    weights: int
    int8_weights: int | None
    macs: int
    int8_macs: int | None
    int8_modules: int
    leftovers: tuple[Leftover, ...]
    reference: bool = False

    @property
    def mac_share(self) -> float | None:
        """Share of the multiply-accumulates in int8, in [0, 1]; None if unknown."""
        if self.int8_macs is None:
            return None
        return self.int8_macs / self.macs if self.macs else 0.0

    @property
    def weight_share(self) -> float | None:
        """Share of the weights in int8, in [0, 1]; None if unknown."""
        if self.int8_weights is None:
            return None
        return self.int8_weights / self.weights if self.weights else 0.0


def measure_coverage(float_model: nn.Module, converted: nn.Module, example_inputs: tuple[Any, ...], *,
                     reasons: Mapping[str, str]) -> Coverage:
    """Compare a converted model with the float model it comes from, module by module.

    Args:
        float_model: In eval mode.
        converted: Its converted form; module names must agree, apart from wrappers around the whole model and those
            that this package adds.
        example_inputs: Positional arguments of one call.
        reasons: Known reasons for staying in float, by module name (or a parent's).
    """
    counted = count_macs(float_model, example_inputs)
    macs, called = counted.by_module, counted.called
    modules = dict(float_model.named_modules())
    weights = _weights(modules)
    found = _int8_names(converted, example_inputs, known={name for name in modules if weights[name] or name in macs})
    strange = sorted(name for name in found.running if not any(part in modules for part in _with_parents(name)))
    renamed = f"the converted model has no module of this name, but int8 modules named {', '.join(strange)}"
    missing = dict.fromkeys(modules.keys() - found.present, renamed) if strange else {}
    reasons = {**missing, **found.reasons, **reasons}
    leftovers = [
        Leftover(module=name, kind=type(modules[name]).__name__, macs=left.macs, weights=left.weights,
                 reason="torch's quantized::matmul dequantizes, and computes in float" if name in found.products else
                 _reason(name, modules[name], reasons, called=name in called))
        for name in modules
        if (left := _Left(macs.get(name, 0), weights[name]) if name not in found.owners else
            _Left(min(found.float_macs.get(name, 0), macs.get(name, 0)), 0)) != (0, 0)
    ]
    floats = {left.module: left.macs for left in leftovers}
    int8_macs = sum(macs.get(name, 0) - floats.get(name, 0) for name in found.owners)
    unknown = bool(strange) and not int8_macs
    return Coverage(
        weights=sum(weights.values()),
        int8_weights=None if unknown else sum(weights.get(name, 0) for name in found.owners),
        macs=sum(macs.values()), int8_macs=None if unknown else int8_macs, int8_modules=len(found.running),
        leftovers=tuple(sorted(leftovers, key=lambda left: (-left.macs, -left.weights))),
    )


def coverage_of_kernels(float_model: nn.Module, kernels: Sequence[Kernel], example_inputs: tuple[Any, ...], *,
                        reasons: Mapping[str, str]) -> Coverage:
    """Compare what an artifact computes with what the float model asks for.

    Args:
        float_model: In eval mode.
        kernels: The artifact's products, in order.
        example_inputs: Positional arguments of one call.
        reasons: Known reasons for staying in float, by module name (or a parent's).
    """
    counted = count_macs(float_model, example_inputs)
    modules = dict(float_model.named_modules())
    weights = _weights(modules)
    named = bool(kernels) and all(kernel.module in modules for kernel in kernels)
    known_shares = _shares(kernels, counted.by_module, named=named)
    shares = known_shares or [0] * len(kernels)
    done = {kernel.module for kernel in kernels if kernel.int8} - {
        kernel.module for kernel in kernels if not kernel.int8}
    leftovers = [Leftover(
        module=(kernel.module or "") if named else "", macs=share,
        kind=type(modules[kernel.module or ""]).__name__ if named else kernel.op,
        weights=weights[kernel.module or ""] if named else 0,
        reason=_known_reason(kernel.module or "", reasons) or kernel.reason)
        for kernel, share in zip(kernels, shares, strict=True) if not kernel.int8]
    if named:
        known = {kernel.module for kernel in kernels}
        leftovers += [Leftover(module=name, kind=type(module).__name__, weights=weights[name],
                               macs=counted.by_module.get(name, 0), reason=_reason(
                                   name, module, reasons, called=name in counted.called, lost=True))
                      for name, module in modules.items()
                      if name not in known and (weights[name] or counted.by_module.get(name))]
    int8_macs = sum(share for kernel, share in zip(kernels, shares, strict=True) if kernel.int8)
    listed = int8_macs + sum(left.macs for left in leftovers)
    unknown = known_shares is None and any(kernel.int8 for kernel in kernels)
    return Coverage(
        weights=sum(weights.values()), int8_weights=sum(weights[name or ""] for name in done) if named else None,
        macs=listed if named else max(listed, sum(counted.by_module.values())),
        int8_macs=None if unknown else int8_macs, int8_modules=sum(kernel.int8 for kernel in kernels),
        leftovers=tuple(sorted(leftovers, key=lambda left: (-left.macs, -left.weights))),
        reference=not any(kernel.int8 for kernel in kernels) and any(
            kernel.reason == REFERENCE_REASON for kernel in kernels))


def _shares(kernels: Sequence[Kernel], by_module: Mapping[str, int], *, named: bool) -> list[int] | None:
    """MACs of each kernel; None where neither names nor counts are known."""
    if named:
        return [_macs_of(kernel, kernels, by_module) for kernel in kernels]
    if all(kernel.macs is not None for kernel in kernels):
        return [kernel.macs or 0 for kernel in kernels]
    return None


def _macs_of(kernel: Kernel, kernels: Sequence[Kernel], by_module: Mapping[str, int]) -> int:
    """A kernel's share of its module's MACs: by the kernels' own counts, else the same for each."""
    name = kernel.module or ""
    siblings = [other for other in kernels if other.module == kernel.module]
    known = [other.macs for other in siblings if other.macs]
    total = by_module.get(name, 0)
    if len(known) == len(siblings) and kernel.macs:
        return round(total * kernel.macs / sum(known)) if total else kernel.macs
    return total // len(siblings)


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    return {name: sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.dim() > 1)
            for name, module in modules.items()}


class _Left(NamedTuple):
    """What of a module stays in float."""

    macs: int
    weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Int8Names:
    """What a converted model does in int8, by the names of the float model's modules.

    Attributes:
        owners: With int8 weights, or functional calls of int8 kernels.
        running: Those of them that a call reaches.
        products: With functional calls of torch's quantized matmul.
        float_macs: What owners multiply in float beside their functional calls of int8 kernels.
        present: All modules.
        reasons: Why modules with weights of low precision are not among the owners.
    """

    owners: frozenset[str]
    running: frozenset[str]
    products: frozenset[str]
    float_macs: dict[str, int]
    present: frozenset[str]
    reasons: dict[str, str]


def _int8_names(converted: nn.Module, example_inputs: tuple[Any, ...], *, known: AbstractSet[str]) -> _Int8Names:
    own = user_names(converted)
    modules = dict(converted.named_modules())
    stored = {name: type(module.weight).__name__ for name, module in modules.items() if _holds_torchao_weight(module)}
    multiplying = integer_multipliers(converted, example_inputs) if stored else frozenset()
    holders = {own[name] for name, module in modules.items()
               if _holds_int8_weight(module) or (name in stored and name in multiplying)}
    callers = _callers_of(converted, "conv", "linear")
    owners = holders | callers
    beside = float_function_macs(converted, example_inputs, owner=_owners_of(converted)) if callers else {}
    called = {own[name] for name in called_modules(converted, example_inputs)}
    wrapper = _wrapper_of(owners | {own[name] for name in stored}, known)

    def bare(names: Iterable[str]) -> frozenset[str]:
        return frozenset(_without(name, wrapper) for name in names)

    return _Int8Names(
        owners=bare(owners), running=bare(owners - (holders - called)), present=bare(own.values()),
        products=bare(_callers_of(converted, "matmul")),
        float_macs={_without(name, wrapper): macs for name, macs in beside.items() if name in callers},
        reasons={_without(own[name], wrapper): f"torchao stores its weight as {kind}, but multiplies in float, as "
                                               "weight-only quantization does"
                 for name, kind in stored.items() if own[name] in called - owners})


def _wrapper_of(names: AbstractSet[str], known: AbstractSet[str]) -> str:
    """Return the parent of all these names without which most of them are known; "" where it makes no difference."""
    parents = [frozenset(_with_parents(name)) for name in names]
    common = frozenset.intersection(*parents) if parents else frozenset()
    return max(["", *sorted(common, key=len)],
               key=lambda parent: sum(_without(name, parent) in known for name in names))


def _without(name: str, wrapper: str) -> str:
    return "" if name == wrapper else name.removeprefix(f"{wrapper}.") if wrapper else name


def _with_parents(name: str) -> list[str]:
    """Return the name and those of the modules around it, the model itself excepted."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _callers_of(converted: nn.Module, *ops: str) -> set[str]:
    """Names, in the user's model, of the modules that call quantized ops of these kinds as functions."""
    owner = _owners_of(converted)
    return {owner(place, node)
            for place, part in converted.named_modules() if isinstance(part, torch.fx.GraphModule)
            for node in part.graph.nodes if node.op == "call_function" and "quantized" in (called := str(node.target))
            and any(op in called for op in ops)}


def _owners_of(converted: nn.Module) -> Callable[[str, torch.fx.Node], str]:
    """Return what tells, from a graph module's name and a node in it, the user's module that made the node."""
    own = user_names(converted)
    inside = {place: _flat_names(part) for place, part in converted.named_modules()
              if isinstance(part, torch.fx.GraphModule)}
    return lambda place, node: ".".join(filter(None, (own[place], _owner(node, inside[place]))))


def _flat_names(part: torch.fx.GraphModule) -> dict[str, str]:
    """Names of the modules in a graph, and of those that tracing dissolved, by how attributes of theirs begin."""
    dissolved = {str(name) for node in part.graph.nodes for name in node.meta.get("nn_module_stack") or {}}
    return {name.replace(".", "_"): user for name, user in {
        **{name: name for name in dissolved}, **user_names(part)}.items()}


def _owner(node: torch.fx.Node, flat: Mapping[str, str]) -> str:
    """The module that made a functional int8 call: its output's scale is an attribute named after it."""
    for argument in node.all_input_nodes:
        place, found, _ = str(argument.target).rpartition("_scale_")
        if argument.op == "get_attr" and found and place in flat:
            return flat[place]
    return next(reversed(node.meta.get("nn_module_stack") or {}), "")


def _holds_int8_weight(module: nn.Module) -> bool:
    path = type(module).__module__
    if not path.startswith("torch.ao.nn") or ".quantized" not in path or "reference" in path:
        return False
    if ".dynamic.modules.rnn" in path:  # packed in a form that does not show its weights
        return getattr(module, "dtype", None) == torch.qint8
    weight: Any = getattr(module, "weight", None)
    return callable(weight) and bool(weight().is_quantized)  # dynamic layers may hold float16


def _holds_torchao_weight(module: nn.Module) -> bool:
    return type(getattr(module, "weight", None)).__module__.startswith("torchao.")


def _known_reason(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((reasons[part] for part in _with_parents(name) if reasons.get(part)), None)


def _reason(name: str, module: nn.Module, reasons: Mapping[str, str], *, called: bool, lost: bool = False) -> str:
    known = _known_reason(name, reasons)
    if known:
        return known
    if not called and not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "not called on the example inputs"
    kind = type(module).__name__
    if lost:
        return "no kernel of the artifact is known to compute it"
    if has_int8_form(module):
        return f"no int8 tensor reaches this {kind}: look at the operation before it"
    if type(module).__module__.startswith("torch.nn."):
        return f"{kind} has no int8 form in this workflow"
    return f"{kind} computes with its own parameters or functions, which this workflow does not quantize"
