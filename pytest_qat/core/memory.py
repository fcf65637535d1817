"""Refuse a model whose run cannot fit into memory: the system would kill the session without a word."""

from __future__ import annotations

from pytest_qat.core.system import available_memory_bytes
from pytest_qat.errors import UnsupportedEnvironment

__all__ = ["fits_into_memory", "hold_to_memory"]

_COPIES = 4
"""A run keeps at least the float, prepared, trained and converted model, and a control, beside the user's own."""
_GIB = 2**30


def fits_into_memory(weight_bytes: int) -> bool:
    """Whether the copies of its weights that a run makes of a model fit into what memory is left, as far as known."""
    left = available_memory_bytes()
    return left is None or _COPIES * weight_bytes <= left


def hold_to_memory(label: str, weight_bytes: int, *, smaller: str = "") -> None:
    """Check that the copies of its weights that a run makes of a model fit into what memory is left.

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
            f"{label} has {weight_bytes / _GIB:.1f} GiB of weights, a run makes at least {_COPIES} copies of them, and "
            f"{left / _GIB:.1f} GiB of memory are left.",
            hint="Give a smaller configuration of the model, with the same layers and fewer or narrower of them"
                 f"{f', such as {smaller}' if smaller else ''}.")
