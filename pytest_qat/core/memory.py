"""Refuse a model whose run cannot fit into memory: the system would kill the session without a word."""

from __future__ import annotations

from pytest_qat.core.system import available_memory_bytes
from pytest_qat.errors import UnsupportedEnvironment

__all__ = ["hold_to_memory"]

_COPIES = 4
"""A run keeps at least the float, prepared, trained and converted model, and a control, beside the user's own."""
_GIB = 2**30


def hold_to_memory(label: str, weight_bytes: int) -> None:
    """Check that the copies of its weights that a run makes of a model fit into what memory is left.

    Args:
        label: The model's name.
        weight_bytes: Bytes of its weights.

    Raises:
        UnsupportedEnvironment: they do not.
    """
    left = available_memory_bytes()
    if left is not None and _COPIES * weight_bytes > left:
        raise UnsupportedEnvironment(
            f"{label} has {weight_bytes / _GIB:.1f} GiB of weights, a run makes at least {_COPIES} copies of them, and "
            f"{left / _GIB:.1f} GiB of memory are left.",
            hint="Give a smaller configuration of the model, with the same layers and fewer or narrower of them.")
