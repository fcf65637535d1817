"""How much of a model runs in int8, by multiply-accumulates (MACs) and by weights, and which parts stay in float.

The products of one call of the float model are the whole; the kernels of the artifact tell how much of it is in int8.
A product counts as float unless an int8 kernel is known to compute it. Weights that nothing reads count on neither
side and are listed separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from pytest_qat.core.products import Product
from pytest_qat.measure.assignment import Share, assign
from pytest_qat.measure.macs import MacCount, count_macs
from pytest_qat.measure.running import kernels_that_ran, with_parents
from pytest_qat.runtimes.base import Kernel
from pytest_qat.runtimes.graph_kernels import REFERENCE_REASON
from pytest_qat.workflows.eager.int8_flow import has_int8_form

__all__ = ["Coverage", "Idle", "Leftover", "coverage_of_kernels", "measure_coverage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A part of the model that still computes in float.

    Attributes:
        module: Qualified name.
        kind: Class of the module; the name of the op if the module is unknown.
        weights: Number of its weights in float: elements of tensors with two or more dimensions that a product
            multiplies or a lookup reads.
        macs: Its multiply-accumulates in float on the example inputs.
        reason: Why it is in float.
        place: `file:line` of the product in the user's code, if the module's own code computes it; else "".
    """

    module: str
    kind: str
    weights: int
    macs: int
    reason: str
    place: str = ""

    @property
    def title(self) -> str:
        """Its name in messages."""
        if self.place:
            return f"{self.module} at {self.place}" if self.module else self.place
        return self.module or f"a {self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A module with weights that nothing reads on the example inputs.

    Attributes:
        module: Qualified name.
        weights: Number of weights that nothing reads.
        called: Whether the module itself is called.
        names: Names of these weights.
    """

    module: str
    weights: int
    called: bool
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of a model runs in int8.

    Attributes:
        weights: Number of weights that the float model multiplies or looks up.
        int8_weights: How many of these are in int8; None if the artifact does not say which kernel belongs to which
            module.
        macs: Multiply-accumulates of one call on the example inputs.
        int8_macs: How many of these have int8 operands; None if the artifact has neither names nor shapes of its
            kernels.
        int8_modules: Number of modules that compute in int8; each kernel of an unknown module counts as one.
        leftovers: The parts that stay in float, the one with the most MACs first.
        idle: Modules with weights that nothing reads, the largest first; `weights` does not include these.
        reference: Whether the model is quantized but nothing runs in int8, because no runtime has lowered it.
    """

    weights: int
    int8_weights: int | None
    macs: int
    int8_macs: int | None
    int8_modules: int
    leftovers: tuple[Leftover, ...]
    idle: tuple[Idle, ...] = ()
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
    """Measure the coverage of a converted model that runs in torch.

    Args:
        float_model: The float model, in eval mode.
        converted: The same model converted, in eval mode.
        example_inputs: Positional arguments of one call.
        reasons: Known reasons for staying in float, by the name of the module or of one of its parents.
    """
    counted = count_macs(float_model, example_inputs)
    known = {name for name, _ in float_model.named_modules()} & {product.module for product in counted.products}
    kernels = kernels_that_ran(converted, example_inputs, known=known)
    return _coverage(float_model, counted, kernels, reasons)


def coverage_of_kernels(float_model: nn.Module, kernels: Sequence[Kernel], example_inputs: tuple[Any, ...], *,
                        reasons: Mapping[str, str]) -> Coverage:
    """Measure the coverage of an artifact from the kernels that it runs.

    Args:
        float_model: The float model, in eval mode.
        kernels: The kernels of the artifact, in order.
        example_inputs: Positional arguments of one call.
        reasons: Known reasons for staying in float, by the name of the module or of one of its parents.
    """
    return _coverage(float_model, count_macs(float_model, example_inputs), kernels, reasons)


def _coverage(float_model: nn.Module, counted: MacCount, kernels: Sequence[Kernel],
              reasons: Mapping[str, str]) -> Coverage:
    modules = dict(float_model.named_modules())
    sizes = {name: tensor.numel() for name, tensor in (*float_model.named_parameters(), *float_model.named_buffers())
             if tensor.dim() > 1}
    shares = assign(counted.products, kernels)
    used = {name for product in counted.products for name in product.weights if name in sizes}
    in_float: dict[str, int] = {}  # weight name to the index of the first product that reads it in float
    for index, (product, share) in enumerate(zip(counted.products, shares, strict=True)):
        if share.int8 != 1:
            for name in product.weights:
                if name in sizes:
                    in_float.setdefault(name, index)
    unknown = any(share.int8 is None for share in shares)
    leftovers = _leftovers(modules, counted, shares, reasons, weights={
        index: sum(sizes[name] for name, first in in_float.items() if first == index)
        for index in set(in_float.values())})
    macs = sum(product.macs for product in counted.products)
    return Coverage(
        weights=sum(sizes[name] for name in used),
        int8_weights=None if any(share.int8 is None or (share.op and share.int8 != 1) for share in shares) else sum(
            sizes[name] for name in used - in_float.keys()),
        macs=macs, int8_macs=None if unknown else macs - sum(left.macs for left in leftovers),
        int8_modules=_count_int8(kernels), leftovers=leftovers, idle=_idle(float_model, counted),
        reference=not any(kernel.int8 for kernel in kernels) and any(
            kernel.reason == REFERENCE_REASON for kernel in kernels))


def _count_int8(kernels: Sequence[Kernel]) -> int:
    named = {kernel.module for kernel in kernels if kernel.int8 and kernel.module is not None}
    return len(named) + sum(kernel.int8 and kernel.module is None for kernel in kernels)


def _leftovers(modules: Mapping[str, nn.Module], counted: MacCount, shares: Sequence[Share],
               reasons: Mapping[str, str], *, weights: Mapping[int, int]) -> tuple[Leftover, ...]:
    """Return one leftover for each combination of module, reason and line of the user's code."""
    macs: Counter[tuple[str, str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str, str]] = Counter()
    parts = Fraction(0)
    for index, (product, share) in enumerate(zip(counted.products, shares, strict=True)):
        if share.int8 is None:
            continue
        before, parts = round(parts), parts + product.macs * (1 - share.int8)  # so that the parts add up
        left = round(parts) - before
        if share.op and left:
            macs["", share.op, share.reason, ""] += left
            continue
        if not (left or weights.get(index)):
            continue
        module = modules.get(product.module)
        kind = type(module).__name__
        by_itself = module is not None and not type(module).__module__.startswith("torch.")
        key = (product.module, kind, _reason(product, module, share, reasons), product.place if by_itself else "")
        macs[key] += left
        sizes[key] += weights.get(index, 0)
    found = [Leftover(module=key[0], kind=key[1], reason=key[2], place=key[3], weights=sizes[key], macs=macs[key])
             for key in macs]
    return tuple(sorted(found, key=lambda left: (-left.macs, -left.weights)))


def _idle(model: nn.Module, counted: MacCount) -> tuple[Idle, ...]:
    found: dict[str, list[tuple[str, int]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name not in counted.read:
            found.setdefault(name.rpartition(".")[0], []).append((name, parameter.numel()))
    idle = [Idle(module=module, weights=sum(size for _, size in held), called=module in counted.called,
                 names=tuple(name for name, _ in held)) for module, held in found.items()]
    return tuple(sorted(idle, key=lambda each: -each.weights))


def _reason(product: Product, module: nn.Module | None, share: Share, reasons: Mapping[str, str]) -> str:
    known = next((reasons[part] for part in with_parents(product.module) if reasons.get(part)), None)
    if known or share.reason:
        return known or share.reason
    kind = type(module).__name__
    if share.lost:
        return "no kernel of the artifact is known to compute it" if product.macs else (
            f"{kind} looks up its table in float")
    if module is not None and has_int8_form(module):
        return f"no int8 tensor reaches this {kind}"
    if type(module).__module__.startswith("torch.nn."):
        return f"{kind} has no int8 form in this workflow"
    return f"{kind} computes with its own parameters or functions, which this workflow does not quantize"
