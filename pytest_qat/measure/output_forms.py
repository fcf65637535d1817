"""Whether an output is scores of classes, to be compared by the class with the largest one, or values.

Taken from what is known: a target of training, the name of the output, or scores that are probabilities. Rows
`(N, classes)` of which nothing is known are scores, as they nearly always are. Maps of which nothing is known may be
either where one channel stands out at most positions, as with classes or with optical flow, and are values where the
channels go together, as in images.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import NAMES_OF_CLASSES

__all__ = ["Form", "form_of"]

_ROWS, _MAP_DIMENSIONS = 2, 4
_MOST_CLASSES = 256
"""No map has more classes; feature maps have more channels."""
_STANDS_OUT = 0.5
"""Median lead of the largest channel over the next, as a share of the standard deviation of all values."""
_SUM_TOLERANCE = 1e-3


class Form(enum.Enum):
    """What the numbers of an output are."""

    CLASSES = "classes"
    VALUES = "values"
    UNKNOWN = "unknown"


def form_of(batches: Sequence[Tensor], *, place: str, target: Any = None) -> Form:
    """Return the form of an output.

    Args:
        batches: The output in each batch, shape `(N, channels, ...)`.
        place: Its place in what the model returns, such as `['logits']`.
        target: A target that the model was trained on; None where there is none.
    """
    first = batches[0]
    if any(tensor.dim() < _ROWS or tensor.shape[1] < _ROWS for tensor in batches):
        return Form.VALUES
    told = _told_by(target, first)
    if told is not None:
        return told
    if first.dim() == _ROWS:
        return Form.CLASSES
    if any(word in place.lower() for word in NAMES_OF_CLASSES) or all(map(_are_probabilities, batches)):
        return Form.CLASSES
    if first.dim() < _MAP_DIMENSIONS or first.shape[1] > _MOST_CLASSES:
        return Form.VALUES
    top = first.topk(2, dim=1).values
    lead, spread = (top[:, 0] - top[:, 1]).median(), first.std(correction=0)
    return Form.UNKNOWN if bool(lead >= _STANDS_OUT * spread) else Form.VALUES


def _told_by(target: Any, made: Tensor) -> Form | None:
    for leaf in pytree.tree_leaves(target):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.is_floating_point():
            if leaf.dim() == made.dim() and leaf.shape[1:] == made.shape[1:]:
                return Form.CLASSES if _are_probabilities(leaf) else Form.VALUES
        elif leaf.shape[1:] in (made.shape[2:], (1, *made.shape[2:])):
            return Form.CLASSES
    return None


def _are_probabilities(tensor: Tensor) -> bool:
    """Whether the channels of every position add up to 1, as they are or as logarithms."""
    values = tensor.double()
    whole = values.sum(dim=1) if bool((values >= 0).all()) else values.exp().sum(dim=1)
    return bool(((whole - 1).abs() <= _SUM_TOLERANCE).all())
