"""Refuse a model whose run cannot fit into memory: the system would kill the session without a word."""

from __future__ import annotations

from pytest_qat.core.system import available_memory_bytes
from pytest_qat.errors import UnsupportedEnvironment

__all__ = ["fits_into_memory", "hold_to_memory"]

_COPIES = 15
"""At its peak, a run takes so many times the weights: 15.4 with fx-x86 and 15.7 with pt2e-executorch, its children
included, measured on linear layers of 0.5 GiB (the float, prepared, trained and converted models, a control, and float
and int8 artifacts in two layouts, beside what saving and lowering take)."""
_GIB = 2**30


def fits_into_memory(weight_bytes: int) -> bool:
    """Whether a run of a model fits into what memory is left, as far as that is known."""
    left = available_memory_bytes()
    return left is None or _COPIES * weight_bytes <= left


def hold_to_memory(label: str, weight_bytes: int, *, smaller: str = "") -> None:
    """Check that a run of a model fits into what memory is left.

    Args:
        label: The model's name.
        weight_bytes: Bytes of its weights.
        smaller: How a smaller one is named, if that can be said.

    Raises:
        UnsupportedEnvironment: they do not.
    """
    if not fits_into_memory(weight_bytes):
        left = available_memory_bytes() or 0
        raise UnsupportedEnvironment(
            f"{label} has {weight_bytes / _GIB:.1f} GiB of weights, a run takes about {_COPIES} times that, and "
            f"{left / _GIB:.1f} GiB of memory are left.",
            hint="Give a smaller configuration of the model, with the same layers and fewer or narrower of them"
                 f"{f', such as {smaller}' if smaller else ''}.")
