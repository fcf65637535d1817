"""How far two models' outputs agree, sample by sample, and which outputs int8 leaves flat.

For a model without evaluation data, and for outputs that no metric looks at. Errors are held to how much an output
varies from sample to sample, never to its level: a box at 600 pixels that moves by one has lost everything once its
step is two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import Scores
from pytest_qat.measure.parity import sqnr_db

__all__ = ["FlatOutput", "agreement_scores", "flat_outputs"]

AGREES_DB = 20.0
_FLAT = 0.1
"""Share of float's spread under which an output hardly varies any more."""
_LIVE = 0.1
"""Share of the largest column's spread from which on a column says anything."""
_FEW_VALUES, _COARSE = 4, 0.5
"""So few values, and noise of that share of float's spread: the steps are coarser than what they should tell."""
_FEWEST_SAMPLES = 8
_FAINT = 0.2
"""Share of its own size that an output varies by, under which nobody could expect eight bits to show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatOutput:
    """An output that varies from sample to sample in float, and hardly, or in a few coarse steps, in int8.

    Attributes:
        output: Its place, such as `['boxes']`; "" for a lone tensor.
        columns: Those of its columns (classes, coordinates, channels) that went flat.
        of: Number of its columns.
        spread: Standard deviation of the first of them in float.
        left: The same in int8.
        values: Number of values that it takes in int8.
        relative: Float's standard deviation as a share of the column's own size (root mean square), the median of
            these columns.
    """

    output: str
    columns: tuple[int, ...]
    of: int
    spread: float
    left: float
    values: int
    relative: float = 1.0

    @property
    def faint(self) -> bool:
        """Whether it follows its input hardly in float either, as in a network with random weights."""
        return self.relative < _FAINT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """One output over all batches, in float and in the candidate."""

    before: list[Tensor]
    after: list[Tensor]


def agreement_scores(reference: Sequence[Any], candidate: Sequence[Any], *,
                     samples: Sequence[int]) -> tuple[Scores, float]:
    """Score how far a candidate's outputs agree with a reference's.

    A sample of scores `(N, classes)` counts 1 if the argmax is the same. In any other output it counts 1 if its
    root-mean-square error is at most a tenth of the output's own spread over the samples (20 dB); a map
    `(N, classes, ...)` may have the share of positions with the same argmax instead. Outputs without a row for each
    sample (an auxiliary loss, the state of an LSTM) count in the SQNR only.

    Args:
        reference: Outputs of each batch.
        candidate: The same of the other model.
        samples: Number of samples of each batch.

    Returns:
        The scores, and the SQNR over all outputs in dB.

    Raises:
        DataError: no output is a floating-point tensor with a row for each sample, or the two differ in shape.
    """
    outputs = _paired(reference, candidate)
    agreed = [_agreement(output) for output in _with_rows(outputs, samples).values()]
    if not agreed:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in named_float_tensors(reference[0]).values())
        raise DataError(f"the model returned tensors of shape {shapes} for a batch of {samples[0]} samples, none with "
                        "a row for each, so float and int8 cannot be compared.", hint="Give eval_data and metric.")
    return (Scores(values=torch.stack(agreed).mean(dim=0).double().numpy(), fingerprint="", majority=None),
            sqnr_db(torch.cat([tensor.flatten() for output in outputs.values() for tensor in output.before]),
                    torch.cat([tensor.flatten() for output in outputs.values() for tensor in output.after])))


def flat_outputs(reference: Sequence[Any], candidate: Sequence[Any], *, samples: Sequence[int],
                 but: str | None = None) -> tuple[FlatOutput, ...]:
    """Return the outputs of which a tenth of the columns or more went flat.

    Args:
        reference: Outputs of each batch.
        candidate: The same of the other model.
        samples: Number of samples of each batch.
        but: Place of an output that need not be looked at.

    Raises:
        DataError: as `agreement_scores`.
    """
    found = []
    for place, output in _with_rows(_paired(reference, candidate), samples).items():
        widths = {_columns(tensor).shape[1] for tensor in output.before}
        if place == but or len(widths) > 1 or sum(map(len, output.before)) < _FEWEST_SAMPLES:
            continue
        before, after = (torch.cat([_columns(tensor) for tensor in tensors]).double()
                         for tensors in (output.before, output.after))
        spread, left, noise = before.std(dim=0), after.std(dim=0), (before - after).std(dim=0)
        values = torch.tensor([len(column.unique()) for column in after.T])
        live = (spread >= _LIVE * spread.max()) & (spread > 1e-6 * before.abs().max())
        coarse = (values <= _FEW_VALUES) & (noise >= _COARSE * spread)
        flat = (live & (coarse | (left <= _FLAT * spread))).nonzero().flatten().tolist()
        if flat and len(flat) >= 0.1 * int(live.sum()):
            first = flat[0]
            relative = (spread / before.square().mean(dim=0).sqrt())[flat]
            found.append(FlatOutput(output=place, columns=tuple(flat), of=before.shape[1], values=int(values[first]),
                                    spread=float(spread[first]), left=float(left[first]),
                                    relative=float(relative.median())))
    return tuple(found)


def _paired(reference: Sequence[Any], candidate: Sequence[Any]) -> dict[str, _Output]:
    """Return each output by its place."""
    found: dict[str, _Output] = {}
    for one, other in zip(reference, candidate, strict=True):
        named = named_float_tensors(one)
        if not named:
            raise DataError("the model returned no floating-point tensor, so float and int8 cannot be compared.",
                            hint="Give eval_data and metric.")
        for (place, before), after in zip(named.items(), named_float_tensors(other).values(), strict=True):
            if before.shape != after.shape:
                raise DataError(
                    f"float and int8 outputs differ in shape: {tuple(before.shape)}, {tuple(after.shape)}.",
                    hint="Look for a reshape that depends on the dtype.")
            output = found.setdefault(place, _Output(before=[], after=[]))
            output.before.append(before)
            output.after.append(after)
    return found


def _with_rows(outputs: Mapping[str, _Output], samples: Sequence[int]) -> dict[str, _Output]:
    """Return the outputs that have a row for each sample in every batch."""
    found = {place: _Output(before=[torch.atleast_1d(tensor) for tensor in output.before],
                            after=[torch.atleast_1d(tensor) for tensor in output.after])
             for place, output in outputs.items()}
    return {place: output for place, output in found.items() if [len(rows) for rows in output.before] == list(samples)}


def _agreement(output: _Output) -> Tensor:
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


def _columns(tensor: Tensor) -> Tensor:
    """Return an output as `(rows, columns)`: classes, coordinates or channels; others have one column."""
    if tensor.dim() == 2:
        return tensor
    if tensor.dim() >= 4:
        return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
    return tensor.reshape(-1, 1)
