"""Why rounding at one place costs so much: other ranges and scales are tried there, and what mends it is the cause.

An explanation is an intervention: the fake-quantizer is switched off, and its values are rounded to as many steps, but
with a range from the data, without the outermost values, for each call or for each column by itself. The first that
takes away at least half of what leaving the place in float takes away is named, with that share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.batches import call
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.effects import Errors, Place
from pytest_qat.findings import Finding, json_number

__all__ = ["TAIL", "Rounding", "cause_at", "cause_of_part", "extent", "look_at"]

_HALF = 0.5
TAIL = 0.0005
"""Share of the values that is cut off at each end where a few outermost ones are taken for outliers."""
_LIKE = 1.5
"""Two ranges whose ends differ by less than this factor are the same."""
_MOST_VALUES = 200_000
_NAMED = 3
Round = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What a fake-quantizer does, and what passes it.

    Attributes:
        low: Least value of its range; the least of all channels.
        high: Greatest value.
        steps: Number of codes less one.
        per_channel: Whether each channel has a scale of its own.
        seen: Per call of one pass, the least and greatest value and those without the tails.
        columns: Least and greatest value of each column, of all calls; dim 0 for weights, dim 1 for activations.
    """

    low: float
    high: float
    steps: int
    per_channel: bool
    seen: tuple[tuple[float, float, float, float], ...]
    columns: tuple[Tensor, Tensor] | None

    @property
    def least(self) -> float:
        """Least value that passes."""
        return min(each[0] for each in self.seen)

    @property
    def greatest(self) -> float:
        """Greatest value that passes."""
        return max(each[1] for each in self.seen)

    @property
    def inner(self) -> tuple[float, float]:
        """The same without the tails."""
        return min(each[2] for each in self.seen), max(each[3] for each in self.seen)


def look_at(prepared: nn.Module, place: Place, batches: Sequence[Any]) -> Rounding | None:
    """Return what passes a fake-quantizer; None if nothing does.

    Args:
        prepared: In eval mode.
        place: Where to look; no part.
        batches: What to run it on; those of a pass are taken together, call by call.
    """
    quantizer: Any = prepared.get_submodule(place.quantizers[0])
    calls: list[list[Tensor]] = []
    index = 0

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal index
        if index == len(calls):
            calls.append([])
        calls[index].append(args[0].detach().float())
        index += 1

    handle = quantizer.register_forward_pre_hook(note)
    try:
        with torch.inference_mode():
            for inputs in batches:
                index = 0
                call(prepared, inputs)
                if place.kind == "weight":
                    break
    finally:
        handle.remove()
    calls = [values for values in calls if any(value.numel() for value in values)]
    if not calls or not hasattr(quantizer, "quant_min"):
        return None
    scale, zero_point = quantizer.scale.detach().float().flatten(), quantizer.zero_point.detach().float().flatten()
    return Rounding(
        low=float(((quantizer.quant_min - zero_point) * scale).min()),
        high=float(((quantizer.quant_max - zero_point) * scale).max()),
        steps=int(quantizer.quant_max) - int(quantizer.quant_min), per_channel=scale.numel() > 1,
        seen=tuple(extent(torch.cat([value.flatten() for value in values])) for values in calls),
        columns=_columns([value for values in calls for value in values], axis=0 if place.kind == "weight" else 1))


def cause_at(prepared: nn.Module, place: Place, seen: Rounding, *, error_with: Callable[[], Errors]) -> Finding:
    """Return why rounding costs so much at a place, on whose range observing anew has no effect.

    Args:
        prepared: In eval mode; what is not to count is switched off.
        place: Where.
        seen: What passes there.
        error_with: Measures the error of the model as it is now.
    """
    whole = error_with().mean()

    def gained(rounding: Round) -> float:
        with _rounding(prepared, place, rounding):
            return float(1 - error_with().mean() / whole) if whole > 0 else 0.0

    alone = gained(lambda values, index: values)
    for code, tell, rounding in _interventions(place, seen) if alone > 0 else ():
        share = gained(rounding)
        if share >= _HALF * alone:
            told = f"{tell} With {_MENDS[code]}, {percent(share / alone, digits=0)} of that goes away."
            return _finding(code, place, told, seen=seen, share=share / alone)
    return _finding("rounding-too-coarse", place, seen=seen, share=None, message=(
        f"{place} is rounded to {seen.steps + 1} steps from {seen.low:.3g} to {seen.high:.3g}, which are too coarse "
        "there; no other range or scale mends it."))


def cause_of_part(place: Place) -> Finding:
    """Return that a part of the model does not bear being rounded; there is no single range to mend."""
    return Finding(
        code="rounding-too-coarse", severity="error", module=place.module or None,
        remedy=_REMEDIES["rounding-too-coarse"],
        evidence={"place": str(place), "kind": place.kind, "quantizers": len(place.quantizers), "share_mended": None},
        message="this part of the model does not bear being rounded to eight bits.")


_MENDS = {
    "range-does-not-fit": "a range from the values that pass",
    "outliers-set-the-range": "a range without them", "one-range-for-all-calls": "a range for each call",
    "one-scale-for-all-channels": "a scale for each channel", "one-scale-for-unlike-columns": "a scale for each column",
}
"""What each cause's intervention is."""

_REMEDIES = {
    "range-does-not-fit": "give these values an observer of their own and codes of both signs, or leave this module in "
                          "float with skip=.",
    "outliers-set-the-range": "clip these values in the model, or use an observer that leaves them out "
                              "(HistogramObserver).",
    "one-range-for-all-calls": "use one module for each call, such as one FloatFunctional for each operation.",
    "one-scale-for-all-channels": "quantize these weights per channel.",
    "one-scale-for-unlike-columns": "bring the columns to one range, or return them as outputs of their own.",
    "rounding-too-coarse": "leave this module in float with skip=.",
}


def _finding(code: str, place: Place, message: str, *, seen: Rounding, share: float | None) -> Finding:
    return Finding(
        code=code, severity="error", module=place.module or None, message=message, remedy=_REMEDIES[code],
        evidence={"place": str(place), "kind": place.kind, "range": [json_number(seen.low), json_number(seen.high)],
                  "seen": [json_number(seen.least), json_number(seen.greatest)], "steps": seen.steps,
                  "share_mended": share})


def _interventions(place: Place, seen: Rounding) -> Iterator[tuple[str, str, Round]]:
    """Yield the code of a cause, what is seen of it, and how it would be rounded without it, the simplest first."""
    held = f"{place} is rounded to {seen.steps + 1} steps from {seen.low:.3g} to {seen.high:.3g}"
    weight = place.kind == "weight"
    if not _alike((seen.low, seen.high), (seen.least, seen.greatest)):
        yield "range-does-not-fit", (
            f"{held}, while its values go from {seen.least:.3g} to {seen.greatest:.3g}."), (
            _per_column(seen, axis=0) if weight and seen.per_channel else _to_ranges(
                [(seen.least, seen.greatest)], seen.steps))
    if seen.per_channel:
        return
    if len(seen.seen) > 1:
        calls = " and ".join(f"from {low:.3g} to {high:.3g}" for low, high, *_ in seen.seen[:_NAMED])
        yield "one-range-for-all-calls", f"{held} in {len(seen.seen)} calls, whose values go {calls}.", (
            _to_ranges([each[:2] for each in seen.seen], seen.steps))
    inner = seen.inner
    yield "outliers-set-the-range", (
        f"{held}, while all but {percent(2 * TAIL)} of its values lie from {inner[0]:.3g} to {inner[1]:.3g}."), (
        _to_ranges([inner], seen.steps))
    if seen.columns is not None:
        spans = (seen.columns[1] - seen.columns[0]).abs()
        parts, part = ("channels", "channel") if weight else ("columns", "column")
        yield ("one-scale-for-all-channels" if weight else "one-scale-for-unlike-columns",
               (f"{held}, with one scale for all {parts}; the widest {part} spans {float(spans.max()):.3g}, the median "
                f"one {float(spans.median()):.3g}."), _per_column(seen, axis=0 if weight else 1))


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges reach about equally far."""
    reach, others = max(map(abs, one)), max(map(abs, other))
    return reach > 0 and others > 0 and 1 / _LIKE < reach / others < _LIKE


def extent(values: Tensor, *, at_least_one: bool = False) -> tuple[float, float, float, float]:
    """Return the least and greatest of some values, shape `(N,)`, and those without the tails.

    Args:
        values: At least one.
        at_least_one: Whether the outermost value is cut off at each end, however few there are.
    """
    low, high = float(values.min()), float(values.max())
    sample = values[:: math.ceil(len(values) / _MOST_VALUES)]
    rounds = ("higher", "lower") if at_least_one else ("linear", "linear")
    inner = [torch.quantile(sample, share, interpolation=way)
             for share, way in zip((TAIL, 1 - TAIL), rounds, strict=True)]
    return low, high, float(inner[0]), float(inner[1])


def _columns(values: Sequence[Tensor], axis: int) -> tuple[Tensor, Tensor] | None:
    """Return the extremes of each column; None where values have no such dimension, or differ in it."""
    if any(value.dim() <= max(axis, 1) - (axis == 0) or value.dim() < 2 for value in values) or len(
            {value.shape[axis] for value in values}) != 1:
        return None
    flat = [value.movedim(axis, 0).flatten(1) for value in values]
    return (torch.stack([each.amin(1) for each in flat]).amin(0), torch.stack([each.amax(1) for each in flat]).amax(0))


def _to_ranges(ranges: Sequence[tuple[float, float]], steps: int) -> Round:
    """Round the values of each call to a range of its own; further calls take the last one's."""
    def rounded(values: Tensor, index: int) -> Tensor:
        low, high = ranges[min(index, len(ranges) - 1)]
        return _fake_quantized(values, torch.tensor(low), torch.tensor(high), steps)

    return rounded


def _per_column(seen: Rounding, *, axis: int) -> Round:
    def rounded(values: Tensor, index: int) -> Tensor:
        assert seen.columns is not None, "unreachable because columns were looked at before"
        shape = [-1 if dim == axis else 1 for dim in range(values.dim())]
        low, high = seen.columns
        return _fake_quantized(values, low.view(shape), high.view(shape), seen.steps)

    return rounded


def _fake_quantized(values: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # zero must have a code of its own
    scale = ((high - low) / steps).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round()
    return (((values / scale).round() + zero).clamp(0, steps) - zero) * scale


@contextmanager
def _rounding(prepared: nn.Module, place: Place, rounding: Round) -> Iterator[None]:
    """Let other code round the values of a place."""
    quantizer: Any = prepared.get_submodule(place.quantizers[0])
    index = 0

    def begin(*_: Any) -> None:
        nonlocal index
        index = 0

    def instead(_: nn.Module, args: tuple[Any, ...], __: Any) -> Tensor:
        nonlocal index
        made = rounding(args[0], index)
        index += 1
        return made.to(args[0].dtype)

    handles = (prepared.register_forward_pre_hook(begin), quantizer.register_forward_hook(instead))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
