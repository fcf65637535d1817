"""The score of a sample where the case gives no metric: it follows from the form of the target.

Class indices: top-1, or the share of the positions of a map. Floating-point values in the shape of an output: the
root-mean-square error of the sample, as a share of the root mean square of all targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import classify, float_tensors, named_float_tensors
from pytest_qat.errors import DataError
from pytest_qat.measure.score_names import ACCURACY_OF_POSITIONS, PIXEL_ACCURACY, RELATIVE_ERROR, TOP1

__all__ = ["Default", "default_scores", "top1"]

_TOP1 = "the default metric, top-1,"
_ROWS, _MAP_DIMENSIONS = 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """What the default metric says of a batch.

    Attributes:
        values: One score per sample, shape `(N,)`.
        name: What it is called in reports.
        place: Place of the output that was scored, where the model has others; else None.
        predictions: The class that was named, one a sample, shape `(N,)`; None for maps and errors.
        classes: Number of classes; 0 for errors.
        lower_is_better: Whether the score is an error.
        squares: Sum of the squared targets, where errors are to be a share of their root mean square; else 0.
        numbers: Number of targets that were summed.
    """

    values: Tensor
    name: str
    place: str | None
    predictions: Tensor | None = None
    classes: int = 0
    lower_is_better: bool = False
    squares: float = 0.0
    numbers: int = 0


def default_scores(output: Any, target: Any, *, first: bool = True) -> Default:
    """Score a batch by the form of its target.

    Args:
        output: What the model returned.
        target: The target of the batch.
        first: Whether it is the first batch, by which targets of only 0 and 1 are told; a later one may be all zeros.

    Raises:
        DataError: the target is neither class indices nor floating-point values that fit an output.
    """
    if isinstance(target, Tensor) and target.is_floating_point():
        found = _error(output, target, first=first)
        if found is not None:
            return found
    several = len(float_tensors(output)) > 1
    target = _without_channel(output, target)
    place, logits = classify(output, source=_TOP1, target=target)
    name = {_ROWS: TOP1, _MAP_DIMENSIONS: ACCURACY_OF_POSITIONS}.get(logits.dim(), PIXEL_ACCURACY)
    return Default(values=top1(output, target), name=name, place=place if several else None,
                   classes=logits.shape[1],
                   predictions=logits.argmax(dim=1) if logits.dim() < _MAP_DIMENSIONS else None)


def top1(output: Any, target: Any) -> Tensor:
    """Return 1 where the first logits of the output are largest at the target, else 0; shape `(N,)`.

    Further dimensions (a segmentation map) are averaged per sample, over the positions whose target is a class: others
    (255, -100) mark what is not labeled. A sample without any such position has nothing wrong.
    """
    _, logits = classify(output, source=_TOP1, target=target)
    expected = (logits.shape[0], *logits.shape[2:])
    if not isinstance(target, Tensor) or tuple(target.shape) != expected or target.is_floating_point():
        seen = (f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}"
                if isinstance(target, Tensor) else type(target).__name__)
        raise DataError(f"top-1 needs class indices of shape {expected} as target, but eval_data gave {seen}.",
                        hint=_how_to_give_classes(logits, target))
    hits = logits.argmax(dim=1) == target
    if logits.dim() < _MAP_DIMENSIONS:
        return hits.float()
    labeled = ((target >= 0) & (target < logits.shape[1])).flatten(1)
    counted, right = labeled.sum(dim=1), (hits.flatten(1) & labeled).sum(dim=1)
    return torch.where(counted > 0, right / counted.clamp(min=1), 1.0)


def _how_to_give_classes(logits: Tensor, target: Any) -> str:
    if isinstance(target, Tensor) and target.shape == logits.shape and _is_binary(target) and (
            logits.dim() >= _MAP_DIMENSIONS or bool((target.sum(dim=1) != 1).any())):
        return _yes_or_no(logits)
    return "Give class indices (target.argmax(1) of one-hot rows), or a metric of your own."


def _yes_or_no(made: Tensor, place: str = "") -> str:
    level = "0.5" if bool(((made >= 0) & (made <= 1)).all()) else "0"
    return (f"Write metric=lambda output, target: ((output{place} > {level}) == (target.reshape(output{place}.shape) > "
            "0.5)).float().reshape(len(target), -1).mean(1), which is the share of right answers.")


def _error(output: Any, target: Tensor, *, first: bool) -> Default | None:
    """Return the errors of the first output that the target fits, or None where it fits none."""
    named = named_float_tensors(output)
    place, made = next(((place, tensor) for place, tensor in named.items() if _fits(tensor, target)), ("", None))
    if made is None:
        return None
    if first and _is_binary(target):
        one_hot = target.dim() == _ROWS and target.shape[1] > 1 and bool((target.sum(dim=1) == 1).all())
        raise DataError(
            f"eval_data gave {str(target.dtype).removeprefix('torch.')} targets of only 0 and 1 in shape "
            f"{tuple(target.shape)}, for which there is no default metric: they are classes, not values.",
            hint="Give class indices (target.argmax(1) of one-hot rows), or a metric of your own." if one_hot else
                 _yes_or_no(made, place))
    wanted = target.double().reshape(len(target), -1)
    error = (made.double().reshape(len(made), -1) - wanted).square().mean(dim=1).sqrt()
    return Default(values=error, name=RELATIVE_ERROR, place=place if len(named) > 1 else None, lower_is_better=True,
                   squares=float(wanted.square().sum()), numbers=wanted.numel())


def _fits(made: Tensor, target: Tensor) -> bool:
    """Whether both have the same shape but for dimensions of size 1 behind the samples, and any values."""
    shapes = [tuple(side for side in tensor.shape[1:] if side != 1) for tensor in (made, target)]
    return (made.dim() > 0 and target.dim() > 0 and made.numel() > 0 and len(made) == len(target)
            and shapes[0] == shapes[1])


def _is_binary(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all()) and bool((target == 0).any()) and bool((target == 1).any())


def _without_channel(output: Any, target: Any) -> Any:
    """Return class indices `(N, 1, ...)`, as masks often are, without their channel, where an output has classes."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dim() < _MAP_DIMENSIONS:
        return target
    fits = any(tensor.dim() == target.dim() and tensor.shape[1] > 1 and target.shape[1] == 1 and (
        tensor.shape[2:] == target.shape[2:]) for tensor in float_tensors(output))
    return target.squeeze(1) if fits else target
