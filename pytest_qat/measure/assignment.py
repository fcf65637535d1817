"""Match the kernels of an artifact with the products of the float model: by module, by size, then by what is left.

This module is pure: it reads no files and needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_qat.core.products import Product
from pytest_qat.runtimes.base import Kernel

__all__ = ["Share", "assign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of one product runs in int8, and why the rest does not.

    Attributes:
        int8: Share of the product that int8 kernels compute, in [0, 1]; None if unknown.
        reason: Why the rest is in float, according to the artifact; "" if the artifact does not say.
        op: The artifact's name for a float kernel that computes part of a group of products, where it is unknown
            which of them; "" otherwise.
        lost: Whether no known kernel computes the product at all.
    """

    int8: Fraction | None
    reason: str = ""
    op: str = ""
    lost: bool = False


def assign(products: Sequence[Product], kernels: Sequence[Kernel]) -> list[Share]:
    """Return the share of each product that runs in int8, in the order of the products.

    Each product is matched with the first unused kernel that has its module and its number of MACs. The remaining
    kernels of a module share the remaining products of that module. If a module has kernels left but no products, its
    kernels are matched with the nearest enclosing module that still has some; this happens with the parts of recurrent
    layers and of attention. Kernels of unknown modules are matched with products of the same size, in order, and what
    remains is shared in proportion to the MACs. A product for which no kernel is known does not count as int8.
    """
    shares: dict[int, Share] = {}
    left = list(kernels)
    for index, product in enumerate(products):
        fits = next((kernel for kernel in left if (kernel.module, kernel.macs) == (product.module, product.macs)), None)
        if fits is not None:
            left.remove(fits)
            shares[index] = _combined([fits])
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
    """Match the remaining kernels of each module with its open products, or with those of an enclosing module."""
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
        shares.update(dict.fromkeys(open_ones[home], _combined(group)))
        for kernel in group:
            left.remove(kernel)


def _home(module: str | None, homes: Collection[str]) -> str | None:
    """Return the module, or else its nearest enclosing module, that is in `homes`; None if there is none."""
    while module is not None:
        if module in homes:
            return module
        module = module.rpartition(".")[0] if module else None
    return None


def _share_sizes(products: Sequence[Product], left: list[Kernel], shares: dict[int, Share]) -> None:
    """Match the remaining kernels with open products of their size; int8 and float kernels of one size share them."""
    for macs in dict.fromkeys(kernel.macs for kernel in left if kernel.macs):
        group = [kernel for kernel in left if kernel.macs == macs]
        fits = [index for index, product in enumerate(products) if product.macs == macs and index not in shares]
        if len({kernel.int8 for kernel in group}) > 1 and len(fits) < len(group):
            continue  # it is unknown which of these kernels do something else
        together = _combined(group, unknown=True)
        done = group[:len(fits)]
        shares.update(dict.fromkeys(fits[:len(group)], together))
        for kernel in done:
            left.remove(kernel)


def _combined(group: Sequence[Kernel], *, unknown: bool = False) -> Share:
    """Return the share that a group of kernels has in int8.

    Kernels are weighted by their MACs if all of these are known; otherwise each kernel counts the same.

    Args:
        group: The kernels.
        unknown: Whether it is unknown which kernel computes which product.
    """
    sizes = [kernel.macs or 0 for kernel in group] if all(kernel.macs for kernel in group) else [1] * len(group)
    done = sum(size for size, kernel in zip(sizes, group, strict=True) if kernel.int8)
    slow = next((kernel for kernel in group if not kernel.int8), None)
    return Share(int8=Fraction(done, sum(sizes)), reason=slow.reason if slow else "",
                 op=slow.op if slow and unknown and done else "")


def _pooled(macs: int, kernels: Sequence[Kernel]) -> Share:
    """Return the share of `macs` multiply-accumulates that kernels of unknown modules compute in int8."""
    slow = next((kernel for kernel in kernels if not kernel.int8), None)
    reason, op = (slow.reason, slow.op) if slow else ("", "")
    if not any(kernel.int8 for kernel in kernels):
        return Share(int8=Fraction(0), reason=reason)
    if any(kernel.macs is None for kernel in kernels):
        return Share(int8=None, reason=reason, op=op)
    done = sum(kernel.macs or 0 for kernel in kernels if kernel.int8)
    total = sum(kernel.macs or 0 for kernel in kernels)
    return Share(int8=Fraction(done, max(macs, total)), reason=reason, op=op or "product")
