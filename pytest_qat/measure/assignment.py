"""Which kernel of an artifact does which product of the float model: by module, by size, and by what is left. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_qat.core.products import Product
from pytest_qat.runtimes.base import Kernel

__all__ = ["Share", "assign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What is known of one product.

    Attributes:
        int8: Share of it that int8 kernels do, in [0, 1]; None if unknown.
        reason: Why the rest is in float, as the artifact tells; "" if it does not.
        op: What the artifact calls a float kernel that does some of it, where nobody knows which product that does.
        lost: Whether no kernel is known to do it at all.
    """

    int8: Fraction | None
    reason: str = ""
    op: str = ""
    lost: bool = False


def assign(products: Sequence[Product], kernels: Sequence[Kernel]) -> list[Share]:
    """Return what is known of each product.

    A product takes the first kernel left of its module that has its MACs. What kernels of the module are left share its
    other products; a kernel with nothing left to do there helps the nearest module around it that has, as the parts
    of a recurrent layer or of attention do. Kernels of unknown modules take products of their size, in order, and the
    rest in proportion to their MACs. Nothing that no kernel is known to do counts as int8.
    """
    shares: dict[int, Share] = {}
    left = list(kernels)
    for index, product in enumerate(products):
        fits = next((kernel for kernel in left if (kernel.module, kernel.macs) == (product.module, product.macs)), None)
        if fits is not None:
            left.remove(fits)
            shares[index] = _mixed([fits])
    _share_modules(products, left, shares)
    _share_sizes(products, left, shares)
    rest = [index for index in range(len(products)) if index not in shares]
    shares.update(dict.fromkeys(rest, Share(int8=Fraction(0), lost=True)))
    multiplying = [index for index in rest if products[index].macs]
    if multiplying and (others := [kernel for kernel in left if kernel.macs != 0]):
        pooled = _pooled(sum(products[index].macs for index in multiplying), others)
        shares.update(dict.fromkeys(multiplying, pooled))
    return [shares[index] for index in range(len(products))]


def _share_modules(products: Sequence[Product], left: list[Kernel], shares: dict[int, Share]) -> None:
    """Let the kernels left of a module do its open products together, or those of the nearest module around it."""
    open_ones: dict[str, list[int]] = {}
    for index, product in enumerate(products):
        if index not in shares:
            open_ones.setdefault(product.module, []).append(index)
    groups: dict[str, list[Kernel]] = {}
    for kernel in left:
        home = _home(kernel.module, open_ones)
        if home is not None:
            groups.setdefault(home, []).append(kernel)
    for home, group in groups.items():
        shares.update(dict.fromkeys(open_ones[home], _mixed(group)))
        for kernel in group:
            left.remove(kernel)


def _home(module: str | None, homes: Collection[str]) -> str | None:
    """The nearest module around a kernel, itself included, that is among these."""
    while module is not None:
        if module in homes:
            return module
        module = module.rpartition(".")[0] if module else None
    return None


def _share_sizes(products: Sequence[Product], left: list[Kernel], shares: dict[int, Share]) -> None:
    """Let the kernels left do open products of their size; kernels of one size and two kinds share them."""
    for macs in dict.fromkeys(kernel.macs for kernel in left if kernel.macs):
        group = [kernel for kernel in left if kernel.macs == macs]
        fits = [index for index, product in enumerate(products) if product.macs == macs and index not in shares]
        if len({kernel.int8 for kernel in group}) > 1 and len(fits) < len(group):
            continue  # which of them do something else?
        together = _mixed(group, unknown=True)
        done = group[:len(fits)]
        shares.update(dict.fromkeys(fits[:len(group)], together))
        for kernel in done:
            left.remove(kernel)


def _mixed(group: Sequence[Kernel], *, unknown: bool = False) -> Share:
    """What some kernels are together: by their own MACs where all are known, else each counts the same.

    Args:
        group: The kernels.
        unknown: Whether nobody knows which of them does which product.
    """
    sizes = [kernel.macs or 0 for kernel in group] if all(kernel.macs for kernel in group) else [1] * len(group)
    done = sum(size for size, kernel in zip(sizes, group, strict=True) if kernel.int8)
    slow = next((kernel for kernel in group if not kernel.int8), None)
    return Share(int8=Fraction(done, sum(sizes)), reason=slow.reason if slow else "",
                 op=slow.op if slow and unknown and done else "")


def _pooled(macs: int, kernels: Sequence[Kernel]) -> Share:
    """What kernels of unknown modules do of so many MACs."""
    slow = next((kernel for kernel in kernels if not kernel.int8), None)
    reason, op = (slow.reason, slow.op) if slow else ("", "")
    if not any(kernel.int8 for kernel in kernels):
        return Share(int8=Fraction(0), reason=reason)
    if any(kernel.macs is None for kernel in kernels):
        return Share(int8=None, reason=reason, op=op)
    done = sum(kernel.macs or 0 for kernel in kernels if kernel.int8)
    total = sum(kernel.macs or 0 for kernel in kernels)
    return Share(int8=Fraction(done, max(macs, total)), reason=reason, op=op or "product")
