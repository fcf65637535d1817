"""How far two models' outputs agree, sample by sample: the measure for a model without evaluation data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import Scores
from pytest_qat.measure.paired_outputs import PairedOutput, pair_outputs, with_rows
from pytest_qat.measure.parity import sqnr_db

__all__ = ["agreement_scores"]

AGREES_DB = 20.0


def agreement_scores(reference: Sequence[Any], candidate: Sequence[Any], *,
                     samples: Sequence[int]) -> tuple[Scores, float]:
    """Score how far a candidate's outputs agree with a reference's.

    A sample of scores `(N, classes)` counts 1 if the argmax is the same. In any other output it counts 1 if its
    root-mean-square error is at most a tenth of the output's own spread over the samples (20 dB); a map
    `(N, classes, ...)` may have the share of positions with the same argmax instead. Outputs without a row for each
    sample (an auxiliary loss, the state of an LSTM) count in the SQNR only.

    Args:
        reference: Outputs of the float model, one a batch.
        candidate: Outputs of the int8 model on the same batches.
        samples: Number of samples in each batch.

    Returns:
        The scores, and the SQNR over all outputs in dB.

    Raises:
        DataError: no output is a floating-point tensor with a row for each sample, or the two differ in shape.
    """
    outputs = pair_outputs(reference, candidate)
    agreed = [_agreement(output) for output in with_rows(outputs, samples).values()]
    if not agreed:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in named_float_tensors(reference[0]).values())
        raise DataError(f"the model returned tensors of shape {shapes} for a batch of {samples[0]} samples, none with "
                        "a row for each, so float and int8 cannot be compared.", hint="Give eval_data and metric.")
    return (Scores(values=torch.stack(agreed).mean(dim=0).double().numpy(), fingerprint="", majority=None),
            sqnr_db(torch.cat([tensor.flatten() for output in outputs.values() for tensor in output.before]),
                    torch.cat([tensor.flatten() for output in outputs.values() for tensor in output.after])))


def _agreement(output: PairedOutput) -> Tensor:
    pairs = list(zip(output.before, output.after, strict=True))
    dims, classes = output.before[0].dim(), all(before.dim() > 1 and before.shape[1] > 1 for before in output.before)
    same = torch.cat([_same_argmax(*pair) for pair in pairs]) if classes else None
    if same is not None and dims == 2:
        return same
    spread = torch.cat([before.flatten() for before in output.before]).double().std(correction=0)
    close = torch.cat([_close(*pair, spread=spread) for pair in pairs])
    return close if same is None else close.maximum(same)


def _close(before: Tensor, after: Tensor, *, spread: Tensor) -> Tensor:
    rows = before.reshape(len(before), -1).double()
    level = rows.square().mean(dim=1).sqrt()
    error = (rows - after.reshape(rows.shape).double()).square().mean(dim=1).sqrt()
    allowed = spread.expand_as(level) if spread > 1e-6 * level.max() else level  # one sample, or all alike
    return (error * 10 ** (AGREES_DB / 20) <= allowed).float()


def _same_argmax(before: Tensor, after: Tensor) -> Tensor:
    same = (before.argmax(dim=1) == after.argmax(dim=1)).float()
    return same.reshape(same.shape[0], -1).mean(dim=1)
