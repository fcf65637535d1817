"""Laws of observers, which turn observed data into scale and zero point (S1 to S4 and O1 to O13)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from pytest_qat.core.tracebacks import headline
from pytest_qat.properties.examples import StreamExample
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.ops import ObserverOps
from pytest_qat.properties.strategies import observer_streams

__all__ = ["LAWS"]

_RELATIVE = 2.0**-20
"""Relative tolerance of float32 arithmetic on a range: a few roundings of 2^-24 each."""
_MOST_CODE_ERROR = 2.0**-21
"""Tolerance of the same arithmetic, in steps per code."""


class Observed(NamedTuple):
    """What an observer calculates: scales and zero points of all channels, or one of each if it is per tensor."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]


def _streams(ops: ObserverOps) -> SearchStrategy[StreamExample]:
    return observer_streams(max_value=16.0, min_magnitude=0.01) if ops.kind == "histogram" else observer_streams()


def _share(ops: ObserverOps) -> float:
    """Draw no examples for histograms, because torch's takes half a second to choose a range."""
    return 0.0 if ops.kind == "histogram" else 0.5


def _sweep(ops: ObserverOps) -> Iterator[StreamExample]:
    for batches in (((1.0, -1.0, 0.5), (2.0, 0.25)), ((5.0, 5.0),), ((-3.0, -1.0), (-4.0, -2.0)), ((0.0, 0.0),),
                    ((1.0,), (10.0,), (2.0,)), ((0.1, 0.2, 0.3), (-0.05, 0.3)), ((-1.0, 2.0), (-7.0, 0.0)),
                    ((2.0**-126, -(2.0**-130)),))[:3 if ops.kind == "histogram" else None]:
        yield StreamExample(batches=batches)


def _sweep_huge(ops: ObserverOps) -> Iterator[StreamExample]:
    yield from _sweep(ops)
    yield StreamExample(batches=((1e30, -2e30),))
    yield StreamExample(batches=((3.0e38, -3.0e38),))


def _observer_law(*, kinds: Sequence[str] = ("minmax", "moving_average", "histogram"),
                  when: Callable[[Any], bool] = lambda _: True,
                  sweep: Callable[[Any], Iterable[Any]] = _sweep) -> Callable[[Callable[..., None]], Law]:
    return law(kind=ObserverOps, example=StreamExample, examples=_streams, sweep=sweep, share=_share,
               when=lambda ops: ops.kind in kinds and when(ops))


def _observed(ops: ObserverOps, batches: Iterable[Tensor], make: Callable[[], Any] | None = None) -> Any:
    """Return an observer that has received the batches."""
    try:
        observer = (make or ops.make)()
        for batch in batches:
            seen = _with_channels(ops, batch) if make is None else batch
            before = seen.clone()
            result = observer(seen)
            if not torch.equal(torch.nan_to_num(result), torch.nan_to_num(before)):
                raise LawBroken("the observer returned different data than it was given", expected=before.tolist(),
                                actual=result.tolist())
    except LawBroken:
        raise
    except Exception as error:
        raise LawBroken(f"the observer raised {type(error).__name__}: {headline(error)}", expected="recorded data",
                        actual=type(error).__name__) from error
    return observer


def _with_channels(ops: ObserverOps, batch: Tensor) -> Tensor:
    """Return the data, or for a per-channel observer two channels: the data, and the data times -1/2."""
    return batch if ops.per_slice is None else torch.stack([batch, -batch / 2])


def _qparams(observer: Any) -> Observed:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scale, zero_point = observer.calculate_qparams()
    except Exception as error:
        raise LawBroken(f"calculate_qparams raised {type(error).__name__}: {headline(error)}",
                        expected="a scale and a zero point", actual=type(error).__name__) from error
    return Observed(tuple(torch.as_tensor(scale).double().reshape(-1).tolist()),
                    tuple(int(value) for value in torch.as_tensor(zero_point).reshape(-1).tolist()))


def _qparams_after(ops: ObserverOps, batches: Iterable[Tensor]) -> Observed:
    return _qparams(_observed(ops, batches))


def _shown(example: StreamExample) -> str:
    return f"after the batches {[list(batch) for batch in example.batches]}"


def _same(one: Observed, other: Observed, relative: float = 0.0) -> bool:
    return one.zero_point == other.zero_point and all(
        a == b or abs(a - b) <= relative * max(abs(a), abs(b)) for a, b in zip(one.scale, other.scale, strict=True))


def _expect_same(what: str, one: Observed, other: Observed, example: StreamExample, relative: float = 0.0) -> None:
    if not _same(one, other, relative):
        raise LawBroken(f"{what}, {_shown(example)}", expected=one, actual=other)


@_observer_law(sweep=_sweep_huge)
def O1_valid_qparams(ops: ObserverOps, example: StreamExample) -> None:
    """Scales are finite and at least eps, and zero points are codes."""
    for scale, zero_point in zip(*_qparams_after(ops, example.tensors()), strict=True):
        if not (math.isfinite(scale) and scale > 0 and scale >= ops.eps * (1 - _RELATIVE)):
            raise LawBroken(f"scale {_shown(example)}", expected=f"a finite number of at least {ops.eps}", actual=scale)
        if not ops.quant_min <= zero_point <= ops.quant_max:
            raise LawBroken(f"zero_point {_shown(example)}", expected=f"{ops.quant_min} to {ops.quant_max}",
                            actual=zero_point)


@_observer_law(kinds=("minmax",))
def O2_coverage(ops: ObserverOps, example: StreamExample) -> None:
    """Quantize and dequantize change every observed value by at most half a step.

    The range is widened to include zero. Rounding the zero point shifts the codes by up to half a step, so an end of
    the range may saturate by that much. The tolerance covers the float32 roundings of the range and the scale, 2^-21
    per code.
    """
    if max(map(abs, example.values), default=0.0) > 2.0**126:
        return  # the width of the range exceeds float32
    found = _qparams_after(ops, example.tensors())
    rows = [example.values] if ops.per_slice is None else [example.values, [-x / 2 for x in example.values]]
    for row, scale, zero_point in zip(rows, *found, strict=True):
        slack = scale * (0.5 + (ops.quant_max - ops.quant_min + 1) * _MOST_CODE_ERROR)
        for x in row:
            code = min(max(round(x / scale) + zero_point, ops.quant_min), ops.quant_max)
            if abs((code - zero_point) * scale - x) > slack:
                raise LawBroken(f"{x!r} {_shown(example)} with scale {scale!r} and zero_point {zero_point}",
                                expected=f"within {slack!r} of it", actual=repr((code - zero_point) * scale))


@_observer_law(kinds=("minmax",))
def O3_order(ops: ObserverOps, example: StreamExample) -> None:
    """The result depends only on the set of values, not on their order, batches or repetition."""
    batches, expected = example.tensors(), _qparams_after(ops, example.tensors())
    _expect_same("the same data in one batch", expected, _qparams_after(ops, [torch.cat(batches)]), example)
    _expect_same("the same data in reverse", expected,
                 _qparams_after(ops, [batch.flip(0) for batch in batches[::-1]]), example)
    _expect_same("the same data twice", expected, _qparams_after(ops, batches + batches), example)
    observer = _observed(ops, batches)
    if hasattr(observer, "reset_min_max_vals") and batches[0].numel():
        observer.reset_min_max_vals()
        observer(_with_channels(ops, batches[0]))
        _expect_same("the first batch after a reset", _qparams_after(ops, batches[:1]), _qparams(observer), example)


@_observer_law(kinds=("minmax",))
def O4_monotone(ops: ObserverOps, example: StreamExample) -> None:
    """More data never makes the range narrower.

    The tolerance is the rounding of the scale.
    """
    observer = _observed(ops, [])
    before: tuple[float, ...] = ()
    for batch in example.tensors():
        observer(_with_channels(ops, batch))
        after = _qparams(observer).scale
        if any(new < old * (1 - _RELATIVE) for old, new in zip(before, after, strict=False)):
            raise LawBroken(f"scale with one more batch, {_shown(example)}", expected=f"at least {before}",
                            actual=after)
        before = after


@_observer_law(kinds=("minmax", "moving_average"))
def O5_scaling(ops: ObserverOps, example: StreamExample) -> None:
    """Multiplying the data by a power of two multiplies the scale by it and keeps the zero point.

    Only data are tested for which the scale is not near eps and all numbers are normal float32 numbers. There is no
    tolerance.
    """
    factor = 2.0**example.exponent
    sizes = [abs(x) for x in example.values if x]
    once = _qparams_after(ops, example.tensors())
    if not sizes or max(sizes) * factor > 2.0**120 or min(sizes) < 2.0**-90 or min(once.scale) <= 4 * ops.eps:
        return
    scaled = _qparams_after(ops, [batch * factor for batch in example.tensors()])
    _expect_same(f"data times {factor:g}", Observed(tuple(scale * factor for scale in once.scale), once.zero_point),
                 scaled, example)


def _span(ops: ObserverOps, low: float, high: float) -> float:
    """Return the scale of a range after it is widened to include zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = ops.quant_max - ops.quant_min
    return max((max(-low, high) / (steps / 2)) if ops.symmetric else (high - low) / steps, ops.eps)


@_observer_law(kinds=("moving_average",))
def O6_moving_average(ops: ObserverOps, example: StreamExample) -> None:
    """The range starts as that of the first batch and moves toward that of each later one by averaging_constant.

    That is min += averaging_constant * (min of the batch - min), and the same for max. The tolerance is 2^-20 of the
    largest magnitude per batch.
    """
    batches = [batch for batch in example.batches if batch]
    if max(map(abs, example.values), default=0.0) > 2.0**120 or ops.per_slice is not None:
        return
    low, high = min(batches[0]), max(batches[0])
    for batch in batches[1:]:
        low += ops.averaging_constant * (min(batch) - low)
        high += ops.averaging_constant * (max(batch) - high)
    expected, actual = _span(ops, low, high), _qparams_after(ops, example.tensors()).scale[0]
    slack = _RELATIVE * len(batches) * max(map(abs, example.values)) / (ops.quant_max - ops.quant_min) + (
        _RELATIVE * expected)
    if not abs(actual - expected) <= 2 * slack:
        raise LawBroken(f"scale {_shown(example)}", expected=repr(expected), actual=repr(actual))


@_observer_law(kinds=("histogram",))
def O7_histogram(ops: ObserverOps, example: StreamExample) -> None:
    """The chosen range is within that of the data, and the histogram counts every value exactly once.

    The range of the data includes zero.
    """
    observer = _observed(ops, example.tensors())
    widest = _span(ops, min(example.values), max(example.values))
    scale = _qparams(observer).scale[0]
    if scale > widest * (1 + 2.0**-10):
        raise LawBroken(f"scale {_shown(example)}", expected=f"at most {widest!r}", actual=repr(scale))
    counted = getattr(observer, "histogram", None)
    if isinstance(counted, Tensor) and abs(float(counted.sum()) - len(example.values)) > 1e-3 * len(example.values):
        raise LawBroken(f"values in the histogram {_shown(example)}", expected=len(example.values),
                        actual=float(counted.sum()))


@_observer_law()
def O8_not_a_number(ops: ObserverOps, example: StreamExample) -> None:
    """If the data contain NaN, the observer raises an exception or ignores it; the scale never becomes NaN."""
    with_nan = [torch.cat([batch, torch.tensor([math.nan])]) for batch in example.tensors()]
    try:
        observer = ops.make()
        for batch in with_nan:
            observer(_with_channels(ops, batch))
        scale, _ = observer.calculate_qparams()
    except Exception:
        return
    if not bool(torch.isfinite(torch.as_tensor(scale)).all()):
        raise LawBroken(f"scale {_shown(example)}, each followed by NaN", expected="a finite number, or an "
                        "exception", actual=torch.as_tensor(scale).tolist())


@_observer_law()
def O9_never_run(ops: ObserverOps, example: StreamExample) -> None:
    """An observer without data warns and returns scale 1.0 and a valid zero point, or it raises an exception."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            scale, zero_point = ops.make().calculate_qparams()
        except Exception:
            return
    quiet = not warned
    valid = bool((torch.as_tensor(scale) == 1).all()) and all(
        ops.quant_min <= int(code) <= ops.quant_max for code in torch.as_tensor(zero_point).reshape(-1))
    if quiet or not valid:
        raise LawBroken("calculate_qparams before any data", expected="a warning, scale 1.0 and a valid zero_point",
                        actual=f"{'no' if quiet else 'a'} warning, scale {torch.as_tensor(scale).tolist()} and "
                               f"zero_point {torch.as_tensor(zero_point).tolist()}")


@_observer_law()
def O10_empty_batch(ops: ObserverOps, example: StreamExample) -> None:
    """An empty batch does not change the result."""
    batches = example.tensors()
    _expect_same("with an empty batch in between", _qparams_after(ops, batches),
                 _qparams_after(ops, [batches[0], torch.empty(0), *batches[1:]]), example)


@_observer_law(kinds=("minmax", "histogram"))
def O11_constant(ops: ObserverOps, example: StreamExample) -> None:
    """After observing a constant tensor, quantize and dequantize change the constant by at most half a step.

    The tolerance is that of O2, plus one of 2048 bins that a histogram may cut off.
    """
    constant = example.values[0] if example.values else 1.0
    if not 2.0**-100 < abs(constant) < 2.0**120:
        return
    scale, zero_point = (part[0] for part in _qparams_after(ops, [torch.full((5,), constant)]))
    code = min(max(round(constant / scale) + zero_point, ops.quant_min), ops.quant_max)
    bins = abs(constant) / 1024 if ops.kind == "histogram" else 0.0
    slack = scale * (0.5 + (ops.quant_max - ops.quant_min + 1) * _MOST_CODE_ERROR) + bins
    if abs((code - zero_point) * scale - constant) > slack:
        raise LawBroken(f"the constant {constant!r} with scale {scale!r} and zero_point {zero_point}",
                        expected=f"within {slack!r} of it", actual=repr((code - zero_point) * scale))


@_observer_law(when=lambda ops: ops.per_slice is not None)
def O12_channels(ops: ObserverOps, example: StreamExample) -> None:
    """Each channel gets the same qparams as from an observer of that channel alone."""
    whole = _qparams_after(ops, example.tensors())
    for channel in range(2):
        data = [_with_channels(ops, batch)[channel] for batch in example.tensors()]
        alone = _qparams(_observed(ops, data, ops.per_slice))
        if (whole.scale[channel], whole.zero_point[channel]) != (alone.scale[0], alone.zero_point[0]):
            raise LawBroken(f"channel {channel} of two, {_shown(example)}", expected=alone,
                            actual=(whole.scale[channel], whole.zero_point[channel]))


@_observer_law(kinds=("minmax",), when=lambda ops: ops.reduced is not None)
def O13_reduced_range(ops: ObserverOps, example: StreamExample) -> None:
    """`reduce_range` halves the number of codes and so doubles the scale, to keep int16 sums from overflowing.

    255 steps become 127, so the scale grows by a factor of 255 / 127. The tolerance is 2^-20. Scales near eps are not
    tested.
    """
    if max(map(abs, example.values), default=0.0) > 2.0**120:
        return
    scale = _qparams_after(ops, example.tensors()).scale[0]
    reduced = _qparams(_observed(ops, example.tensors(), ops.reduced)).scale[0]
    expected = scale * (ops.quant_max - ops.quant_min) / ((ops.quant_max - ops.quant_min) // 2)
    if scale > 2 * ops.eps and abs(reduced - expected) > expected * _RELATIVE:
        raise LawBroken(f"scale with reduce_range {_shown(example)}", expected=repr(expected), actual=repr(reduced))


@_observer_law(when=lambda ops: ops.symmetric)
def S1_symmetric_zero_point(ops: ObserverOps, example: StreamExample) -> None:
    """A symmetric scheme has its zero point in the middle: 0 for signed codes, (min + max + 1) // 2 for unsigned."""
    middle = 0 if ops.quant_min < 0 else (ops.quant_min + ops.quant_max + 1) // 2
    found = _qparams_after(ops, example.tensors()).zero_point
    if set(found) != {middle}:
        raise LawBroken(f"zero_point {_shown(example)}", expected=middle, actual=found)


@_observer_law(kinds=("minmax",), when=lambda ops: ops.per_slice is None)
def S2_scale(ops: ObserverOps, example: StreamExample) -> None:
    """The scale is the range divided by the number of steps, or the largest magnitude by half of it if symmetric.

    For symmetric schemes PyTorch divides by (quant_max - quant_min) / 2, which is 127.5 for 8 bits; others divide by
    127. The tolerance is 2^-20.
    """
    if max(map(abs, example.values), default=0.0) > 2.0**126:
        return
    expected = Fraction(_span(ops, min(example.values), max(example.values)))
    actual = _qparams_after(ops, example.tensors()).scale[0]
    if not math.isfinite(actual) or abs(Fraction(actual) - expected) > expected / 2**20:
        raise LawBroken(f"scale {_shown(example)}", expected=repr(float(expected)), actual=repr(actual))


@_observer_law(kinds=("minmax", "moving_average"), when=lambda ops: ops.symmetric)
def S3_sign_symmetry(ops: ObserverOps, example: StreamExample) -> None:
    """A symmetric scheme gives exactly the same result for the negated data."""
    negative = _qparams_after(ops, [-batch for batch in example.tensors()])
    _expect_same("the negated data", _qparams_after(ops, example.tensors()), negative, example)


@_observer_law(kinds=("minmax",), when=lambda ops: ops.symmetric and ops.quant_min == -ops.quant_max)
def S4_narrow_range(ops: ObserverOps, example: StreamExample) -> None:
    """With a narrow range such as -127 to 127, no observed value lies beyond the last code on either side.

    The tolerance is half a step, for the rounding of the scale.
    """
    for x in (min(example.values), max(example.values)):
        scale = _qparams_after(ops, example.tensors()).scale[0]
        if abs(x / scale) > ops.quant_max + 0.5:
            raise LawBroken(f"{x!r} divided by the scale {_shown(example)}", expected=f"at most {ops.quant_max}",
                            actual=x / scale)


LAWS: tuple[Law, ...] = (
    O1_valid_qparams, O2_coverage, O3_order, O4_monotone, O5_scaling, O6_moving_average, O7_histogram, O8_not_a_number,
    O9_never_run, O10_empty_batch, O11_constant, O12_channels, O13_reduced_range, S1_symmetric_zero_point, S2_scale,
    S3_sign_symmetry, S4_narrow_range)
