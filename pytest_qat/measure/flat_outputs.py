"""Find outputs that vary from sample to sample in float but no longer do in int8.

This is for outputs that no metric looks at. Errors are compared with how much an output varies from sample to sample,
not with its size: if boxes around 600 pixels differ by one pixel, an int8 scale of two pixels loses all information.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.measure.paired_outputs import pair_outputs, with_rows

__all__ = ["FlatOutput", "flat_outputs"]

_FLAT = 0.1
"""An output whose int8 spread is below this share of its float spread counts as flat."""
_LIVE = 0.1
"""A column whose spread is below this share of the largest column's is not checked, unless it is small by nature: with
values from 0 to 1, as scores beside boxes in pixels have."""
_FOLLOWS = 0.1
"""Such a column follows its input if its spread is at least this share of its own size."""
_LEAST_FLAT_SHARE = 0.1
"""Share of the live columns that must be flat before the output is reported."""
_FEW_VALUES, _COARSE = 4, 0.5
"""With at most this many distinct values, and noise of this share of float's spread, the steps hide the signal."""
_FEWEST_SAMPLES = 8
_FAINT = 0.2
"""An output that varies by less than this share of its own size is too faint for eight bits to show."""
_NAMED_COLUMNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatOutput:
    """An output that varies from sample to sample in float, but hardly at all or in a few coarse steps in int8.

    Attributes:
        output: Its place, such as `['boxes']`; "" for a lone tensor.
        columns: The columns (classes, coordinates, channels) that went flat.
        of: Number of columns.
        spread: Standard deviation of the first flat column in float.
        left: Standard deviation of the same column in int8.
        values: Number of distinct values that this column takes in int8.
        relative: Float's standard deviation as a share of the column's own root mean square; the median over the
            flat columns.
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
        """Whether the output hardly depends on its input in float either, as in a network with random weights."""
        return self.relative < _FAINT

    @property
    def label(self) -> str:
        """The output with its flat columns, such as `output ['boxes'][:, 0, 1] (2 of 4)`."""
        place = f"output {self.output}" if self.output else "the output"
        if self.of == 1:
            return place
        columns = ", ".join(map(str, self.columns[:_NAMED_COLUMNS]))
        more = ", ..." if len(self.columns) > _NAMED_COLUMNS else ""
        return f"{place}[:, {columns}{more}] ({len(self.columns)} of {self.of})"


def flat_outputs(reference: Sequence[Any], candidate: Sequence[Any], *, samples: Sequence[int],
                 but: str | None = None, small: bool = False) -> tuple[FlatOutput, ...]:
    """Return the outputs in which at least a tenth of the columns went flat.

    Args:
        reference: Outputs of the float model, one per batch.
        candidate: Outputs of the int8 model on the same batches.
        samples: Number of samples in each batch.
        but: Place of an output to leave out, because a metric looks at it.
        small: Whether to check small columns that follow their input whatever their values are.

    Raises:
        NotComparable: no output is a floating-point tensor of the same shapes on both sides.
    """
    found = []
    for place, output in with_rows(pair_outputs(reference, candidate).same, samples).items():
        widths = {_columns(tensor).shape[1] for tensor in output.before}
        if place == but or len(widths) > 1 or sum(map(len, output.before)) < _FEWEST_SAMPLES:
            continue
        before, after = (torch.cat([_columns(tensor) for tensor in tensors]).double()
                         for tensors in (output.before, output.after))
        flat = _flat_output(place, before, after, small=small)
        if flat is not None:
            found.append(flat)
    return tuple(found)


def _flat_output(place: str, before: Tensor, after: Tensor, *, small: bool) -> FlatOutput | None:
    """Check one output, given as `(rows, columns)`; return None if it is fine."""
    spread, left, noise = before.std(dim=0), after.std(dim=0), (before - after).std(dim=0)
    values = torch.tensor([len(column.unique()) for column in after.T])
    size = before.square().mean(dim=0).sqrt()
    scores = (before.amin(dim=0) >= 0) & (before.amax(dim=0) <= 1)
    by_itself = (spread >= _FOLLOWS * size) & (scores | small)
    live = ((spread >= _LIVE * spread.max()) | by_itself) & (spread > 1e-6 * before.abs().max())
    coarse = (values <= _FEW_VALUES) & (noise >= _COARSE * spread)
    flat = (live & (coarse | (left <= _FLAT * spread))).nonzero().flatten().tolist()
    if not flat or len(flat) < _LEAST_FLAT_SHARE * int(live.sum()):
        return None
    first = flat[0]
    relative = (spread / size)[flat]
    return FlatOutput(output=place, columns=tuple(flat), of=before.shape[1], values=int(values[first]),
                      spread=float(spread[first]), left=float(left[first]), relative=float(relative.median()))


def _columns(tensor: Tensor) -> Tensor:
    """Return an output as `(rows, columns)`; columns are classes, coordinates or channels, else there is one column."""
    if tensor.dim() == 2:
        return tensor
    if tensor.dim() >= 4:
        return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
    return tensor.reshape(-1, 1)
