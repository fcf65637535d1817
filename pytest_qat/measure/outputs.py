"""How far two models' outputs agree, sample by sample: the measure for a model without evaluation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import NotComparable
from pytest_qat.measure.accuracy import Scores
from pytest_qat.measure.output_forms import Form, form_of
from pytest_qat.measure.paired_outputs import PairedOutput, nothing_to_compare, pair_outputs, with_rows
from pytest_qat.measure.parity import sqnr_db

__all__ = ["Agreement", "agreement_of"]

AGREES_DB = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a candidate's outputs agree with a reference's.

    Attributes:
        scores: How far each sample agrees, from 0 to 1.
        sqnr_db: SQNR over all outputs.
        ragged: Outputs that cannot be compared, each with the reason.
        same_class: Share of the positions of maps that may be classes where both name the same class; None where there
            are no such maps. In `scores` they count as values.
    """

    scores: Scores
    sqnr_db: float
    ragged: tuple[str, ...]
    same_class: float | None


def agreement_of(reference: Sequence[Any], candidate: Sequence[Any], *, samples: Sequence[int],
                 target: Any = None) -> Agreement:
    """Score how far a candidate's outputs agree with a reference's.

    A sample of scores `(N, classes)` counts 1 if the argmax is the same, a map of classes `(N, classes, ...)` the share
    of positions with the same argmax. In any other output a sample counts 1 if its root-mean-square error is at most a
    tenth of the output's own spread over the samples (20 dB). Outputs without a row for each sample (an auxiliary loss,
    the state of an LSTM) count in the SQNR only.

    Args:
        reference: Outputs of the float model, one a batch.
        candidate: Outputs of the int8 model on the same batches.
        samples: Number of samples in each batch.
        target: A target that the model was trained on, where there is one: it tells classes from values.

    Raises:
        NotComparable: no output is a floating-point tensor of the same shapes on both sides, with a row a sample.
    """
    paired = pair_outputs(reference, candidate)
    found = {place: (output, form_of(output.before, place=place, target=target))
             for place, output in with_rows(paired.same, samples).items()}
    if not found and paired.ragged:
        raise nothing_to_compare(paired.ragged)
    if not found:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in named_float_tensors(reference[0]).values())
        raise NotComparable(
            f"the model returned tensors of shape {shapes} for a batch of {samples[0]} samples, none with a row for "
            "each, so float and int8 cannot be compared.", hint="Give eval_data and metric.")
    agreed = [_same_class(output) if form is Form.CLASSES else _close(output) for output, form in found.values()]
    perhaps = [float(_same_class(output).mean()) for output, form in found.values() if form is Form.UNKNOWN]
    return Agreement(
        scores=Scores(values=torch.stack(agreed).mean(dim=0).double().numpy(), fingerprint="", majority=None),
        sqnr_db=sqnr_db(torch.cat([tensor.flatten() for output in paired.same.values() for tensor in output.before]),
                        torch.cat([tensor.flatten() for output in paired.same.values() for tensor in output.after])),
        ragged=paired.ragged, same_class=min(perhaps, default=None))


def _close(output: PairedOutput) -> Tensor:
    spread = torch.cat([before.flatten() for before in output.before]).double().std(correction=0)
    return torch.cat([_close_rows(before, after, spread=spread)
                      for before, after in zip(output.before, output.after, strict=True)])


def _close_rows(before: Tensor, after: Tensor, *, spread: Tensor) -> Tensor:
    rows = before.reshape(len(before), -1).double()
    level = rows.square().mean(dim=1).sqrt()
    error = (rows - after.reshape(rows.shape).double()).square().mean(dim=1).sqrt()
    allowed = spread.expand_as(level) if spread > 1e-6 * level.max() else level  # one sample, or all alike
    return (error * 10 ** (AGREES_DB / 20) <= allowed).float()


def _same_class(output: PairedOutput) -> Tensor:
    return torch.cat([(before.argmax(dim=1) == after.argmax(dim=1)).float().reshape(len(before), -1).mean(dim=1)
                      for before, after in zip(output.before, output.after, strict=True)])
