"""Pair the outputs of two models on the same batches, by the place of each output in what the model returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import DataError

__all__ = ["PairedOutput", "pair_outputs", "with_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedOutput:
    """One output of both models over all batches.

    Attributes:
        before: Values of the float model, one tensor per batch.
        after: Values of the int8 model, of the same shapes.
    """

    before: list[Tensor]
    after: list[Tensor]


def pair_outputs(reference: Sequence[Any], candidate: Sequence[Any]) -> dict[str, PairedOutput]:
    """Return each floating-point output of two models by its place, such as `['boxes']`; "" for a lone tensor.

    Args:
        reference: Outputs of the float model, one per batch.
        candidate: Outputs of the int8 model on the same batches.

    Raises:
        DataError: there is no floating-point output, or the outputs of the two models differ in shape.
    """
    found: dict[str, PairedOutput] = {}
    for one, other in zip(reference, candidate, strict=True):
        named = named_float_tensors(one)
        if not named:
            raise DataError("the model returned no floating-point tensor, so float and int8 cannot be compared.",
                            hint="Give eval_data and metric.")
        for (place, before), after in zip(named.items(), named_float_tensors(other).values(), strict=True):
            if before.shape != after.shape:
                raise DataError(
                    f"float and int8 outputs differ in shape: {tuple(before.shape)} and {tuple(after.shape)}.",
                    hint="Look for a reshape that depends on the dtype.")
            output = found.setdefault(place, PairedOutput(before=[], after=[]))
            output.before.append(before)
            output.after.append(after)
    return found


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
