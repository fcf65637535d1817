"""Pair the outputs of two models on the same batches, by the place of each output in what the model returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import NotComparable

__all__ = ["PairedOutput", "PairedOutputs", "nothing_to_compare", "pair_outputs", "with_rows"]

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedOutput:
    """One output over all batches in which there is one.

    Attributes:
        before: Values of the float model, one tensor per batch.
        after: Values of the int8 model, of the same shapes.
    """

    before: list[Tensor]
    after: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedOutputs:
    """What two models returned.

    Attributes:
        same: The outputs that have the same shapes on both sides, by place, such as `['boxes']`; "" for a lone tensor.
        ragged: The others, each with what differs, as boxes of which float and int8 find another number.
    """

    same: dict[str, PairedOutput]
    ragged: tuple[str, ...]


def pair_outputs(reference: Sequence[Any], candidate: Sequence[Any]) -> PairedOutputs:
    """Hold each floating-point output of two models against each other; empty ones say nothing and are left out.

    Args:
        reference: Outputs of the float model, one per batch.
        candidate: Outputs of the int8 model on the same batches.

    Raises:
        NotComparable: there is no floating-point output, or none has the same shapes on both sides.
    """
    found: dict[str, PairedOutput] = {}
    ragged: dict[str, str] = {}
    for index, (one, other) in enumerate(zip(reference, candidate, strict=True)):
        before, after = named_float_tensors(one), named_float_tensors(other)
        for place in dict.fromkeys((*before, *after)):
            seen = [_shape(named.get(place)) for named in (before, after)]
            if seen[0] != seen[1]:
                ragged.setdefault(place, f"{_title(place)} is {seen[0]} in float and {seen[1]} in int8 (batch {index})")
            elif before[place].numel():
                output = found.setdefault(place, PairedOutput(before=[], after=[]))
                output.before.append(before[place])
                output.after.append(after[place])
    same = {place: output for place, output in found.items() if place not in ragged}
    if not same:
        raise nothing_to_compare(tuple(ragged.values()))
    return PairedOutputs(same=same, ragged=tuple(ragged.values()))


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def _title(place: str) -> str:
    return f"output {place}" if place else "the output"


def nothing_to_compare(ragged: Sequence[str]) -> NotComparable:
    """Return the error for two models that return nothing of the same form.

    Args:
        ragged: What differs, a text for each output; empty if there are no outputs.
    """
    hint = "Give eval_data and metric, which scores each side by itself."
    if not ragged:
        return NotComparable("the model returned no floating-point tensor with values in it, so float and int8 cannot "
                             "be compared.", hint=hint)
    more = f" and {len(ragged) - _NAMED} more" if len(ragged) > _NAMED else ""
    return NotComparable(f"float and int8 outputs differ in shape, so they cannot be compared: "
                         f"{'; '.join(ragged[:_NAMED])}{more}.", hint=hint)


def with_rows(outputs: Mapping[str, PairedOutput], samples: Sequence[int]) -> dict[str, PairedOutput]:
    """Return the outputs that have one row per sample in every batch.

    Args:
        outputs: The outputs by place.
        samples: Number of samples in each batch.
    """
    found = {place: PairedOutput(before=[torch.atleast_1d(tensor) for tensor in output.before],
                                 after=[torch.atleast_1d(tensor) for tensor in output.after])
             for place, output in outputs.items()}
    return {place: output for place, output in found.items() if [len(rows) for rows in output.before] == list(samples)}
