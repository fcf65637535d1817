"""Give the kernels and tensors of an artifact the names of the user's modules, which artifacts seldom keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_qat.runtimes.base import Kernel
from pytest_qat.runtimes.graph_kernels import REFERENCE_REASON

__all__ = ["in_order", "named_after", "without_wrapper"]


def without_wrapper(name: str) -> str:
    """Return the name of a tensor in the user's model."""
    return name.removeprefix("graph_module.")


def in_order(kernels: Sequence[Kernel], named: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Name kernels after those of the graph that they were made from, if both are equally many.

    Each kernel takes the first unused name among those that fit best, because independent branches may have changed
    places: of the same MACs where both know them, else of the same kind; quantized in the graph if the kernel is int8.

    Args:
        kernels: Kernels of an artifact, in order.
        named: Kernels of the graph, in order.
    """
    if len(kernels) != len(named):
        return tuple(kernels)
    left, found = list(named), []
    for kernel in kernels:
        other = max(left, key=lambda each: _likeness(kernel, each))  # the first of the best
        left.remove(other)
        found.append(named_after(kernel, other))
    return tuple(found)


def named_after(kernel: Kernel, other: Kernel) -> Kernel:
    """Return a kernel with the module of another, and with its MACs if it has none itself."""
    return replace(kernel, module=other.module, macs=kernel.macs or other.macs)


def _likeness(kernel: Kernel, other: Kernel) -> tuple[bool, bool]:
    quantized = other.int8 or other.reason == REFERENCE_REASON
    if kernel.macs and other.macs:
        return kernel.macs == other.macs, kernel.int8 == quantized
    return ("conv" in kernel.op.lower()) == ("conv" in other.op.lower()), kernel.int8 == quantized
