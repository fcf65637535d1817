"""How far the outputs of two forms of a model agree: as a whole, without their means, and by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_qat.errors import NotComparable
from pytest_qat.measure.parity import BEFORE_SELECTION, sqnr_db

__all__ = ["OutputAgreement", "agreement_db", "compare_outputs"]

_FLAT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputAgreement:
    """Agreement of a model's outputs with those of the form before it.

    Attributes:
        sqnr_db: SQNR of all values together, in dB.
        mean_removed_db: The same of the differences from each column's mean, which a common offset does not flatter.
        worst_column_db: The lowest SQNR of a column (dim 1) without its mean.
        worst_column: Its index, in the output given by `worst_output`.
        worst_output: Index of that output.
        same_class: Share of the samples for which the largest column is the same; None where that makes no sense.
    """

    sqnr_db: float
    mean_removed_db: float
    worst_column_db: float
    worst_column: int
    worst_output: int
    same_class: float | None


def agreement_db(reference: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> float:
    """Return the SQNR of all outputs of all batches together.

    Raises:
        NotComparable: there are no outputs, or their forms differ.
    """
    return compare_outputs(reference, other).sqnr_db


def compare_outputs(reference: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> OutputAgreement:
    """Compare the outputs of two forms of a model.

    Args:
        reference: Float tensors that one form returns for each batch, the batch in dim 0.
        other: What the other returns for the same batches.

    Raises:
        NotComparable: there are no outputs, or their forms differ.
    """
    pairs = _joined(reference, other)
    whole = sqnr_db(*(torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1)))
    centered = [_centered(*pair) for pair in pairs]
    without = sqnr_db(*(torch.cat([pair[side].flatten() for pair in centered]) for side in (0, 1)))
    worst, column, output = math.inf, 0, 0
    for index, (one, two) in enumerate(centered):
        for place in range(one.shape[0]):
            if float(one[place].norm()) > _FLAT and (level := sqnr_db(one[place], two[place])) < worst:
                worst, column, output = level, place, index
    first, second = pairs[0]
    classes = first.dim() == 2 and first.shape[1] > 1
    same = float((first.argmax(1) == second.argmax(1)).float().mean()) if classes else None
    return OutputAgreement(sqnr_db=whole, mean_removed_db=without, worst_column_db=worst, worst_column=column,
                           worst_output=output, same_class=same)


def _joined(reference: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return each output of all batches in both forms."""
    counts = {len(batch) for batch in (*reference, *other)}
    if len(counts) != 1 or counts == {0}:
        raise NotComparable("the stages return no floating-point tensors, or not the same number of them.",
                            hint=BEFORE_SELECTION)
    pairs = []
    for index in range(len(reference[0])):
        one, two = ([batch[index].detach().float() for batch in side] for side in (reference, other))
        if any(first.shape != second.shape for first, second in zip(one, two, strict=True)):
            raise NotComparable("the stages return tensors of different shapes.", hint=BEFORE_SELECTION)
        if len({value.shape[1:] for value in one}) == 1 and one[0].dim() > 0:
            pairs.append((torch.cat(one), torch.cat(two)))
        else:
            pairs.append((torch.cat([value.flatten() for value in one]), torch.cat([value.flatten() for value in two])))
    return pairs


def _centered(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with columns in dim 0, less the mean of the first."""
    if one.dim() < 2:
        one, two = one.reshape(1, -1), two.reshape(1, -1)
    else:
        one, two = one.movedim(1, 0).flatten(1), two.movedim(1, 0).flatten(1)
    mean = one.mean(1, keepdim=True)
    return one - mean, two - mean
