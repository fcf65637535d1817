"""Laws of observers: from the data they saw to scale and zero point (PROPERTIES S1 to S4 and O1 to O13)."""

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
"""Slack of float32 arithmetic on a range: a few roundings of 2^-24 each."""
_MOST_CODE_ERROR = 2.0**-21


class Found(NamedTuple):
    """What an observer gives: one scale and zero point per channel, or one of each."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]


def _streams(ops: ObserverOps) -> SearchStrategy[StreamExample]:
    return observer_streams(max_value=16.0, min_magnitude=0.01) if ops.kind == "histogram" else observer_streams()


def _share(ops: ObserverOps) -> float:
    """Torch's histogram takes half a second to choose a range."""
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
    """Return an observer that has seen the batches."""
    try:
        observer = (make or ops.make)()
        for batch in batches:
            seen = _wide(ops, batch) if make is None else batch
            before = seen.clone()
            result = observer(seen)
            if not torch.equal(torch.nan_to_num(result), torch.nan_to_num(before)):
                raise LawBroken("the observer returned other data than it was given", expected=before.tolist(),
                                actual=result.tolist())
    except LawBroken:
        raise
    except Exception as error:
        raise LawBroken(f"the observer raised {type(error).__name__}: {headline(error)}", expected="recorded data",
                        actual=type(error).__name__) from error
    return observer


def _wide(ops: ObserverOps, batch: Tensor) -> Tensor:
    """Give an observer of channels two of them: the data, and its half with the other sign."""
    return batch if ops.per_slice is None else torch.stack([batch, -batch / 2])


def _qparams(observer: Any) -> Found:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scale, zero_point = observer.calculate_qparams()
    except Exception as error:
        raise LawBroken(f"calculate_qparams raised {type(error).__name__}: {headline(error)}",
                        expected="a scale and a zero point", actual=type(error).__name__) from error
    return Found(tuple(torch.as_tensor(scale).double().reshape(-1).tolist()),
                 tuple(int(value) for value in torch.as_tensor(zero_point).reshape(-1).tolist()))


def _of(ops: ObserverOps, batches: Iterable[Tensor]) -> Found:
    return _qparams(_observed(ops, batches))


def _shown(example: StreamExample) -> str:
    return f"after the batches {[list(batch) for batch in example.batches]}"


def _same(one: Found, other: Found, relative: float = 0.0) -> bool:
    return one.zero_point == other.zero_point and all(
        a == b or abs(a - b) <= relative * max(abs(a), abs(b)) for a, b in zip(one.scale, other.scale, strict=True))


def _expect_same(what: str, one: Found, other: Found, example: StreamExample, relative: float = 0.0) -> None:
    if not _same(one, other, relative):
        raise LawBroken(f"{what}, {_shown(example)}", expected=one, actual=other)


@_observer_law(sweep=_sweep_huge)
def O1_valid_qparams(ops: ObserverOps, example: StreamExample) -> None:
    """Scales are finite and at least eps, zero points are codes."""
    for scale, zero_point in zip(*_of(ops, example.tensors()), strict=True):
        if not (math.isfinite(scale) and scale > 0 and scale >= ops.eps * (1 - _RELATIVE)):
            raise LawBroken(f"scale {_shown(example)}", expected=f"a finite number of at least {ops.eps}", actual=scale)
        if not ops.quant_min <= zero_point <= ops.quant_max:
            raise LawBroken(f"zero_point {_shown(example)}", expected=f"{ops.quant_min} to {ops.quant_max}",
                            actual=zero_point)


@_observer_law(kinds=("minmax",))
def O2_coverage(ops: ObserverOps, example: StreamExample) -> None:
    """Every observed value comes back within half a step, and zero is a code.

    The range is widened to hold zero. Rounding the zero point shifts the grid by up to half a step, so an end may
    saturate, by that much. Slack: the float32 roundings of the range and the scale, 2^-21 a code.
    """
    if max(map(abs, example.values), default=0.0) > 2.0**126:
        return  # the range itself is more than float32 holds
    found = _of(ops, example.tensors())
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
    """All that counts is the data: not their order, nor how they come in batches, nor that they come twice."""
    batches, expected = example.tensors(), _of(ops, example.tensors())
    _expect_same("the same data in one batch", expected, _of(ops, [torch.cat(batches)]), example)
    _expect_same("the same data in reverse", expected, _of(ops, [batch.flip(0) for batch in batches[::-1]]), example)
    _expect_same("the same data twice", expected, _of(ops, batches + batches), example)
    observer = _observed(ops, batches)
    if hasattr(observer, "reset_min_max_vals") and batches[0].numel():
        observer.reset_min_max_vals()
        observer(_wide(ops, batches[0]))
        _expect_same("the first batch after a reset", _of(ops, batches[:1]), _qparams(observer), example)


@_observer_law(kinds=("minmax",))
def O4_monotone(ops: ObserverOps, example: StreamExample) -> None:
    """More data never narrows the range. Slack: one rounding of the scale."""
    observer = _observed(ops, [])
    before: tuple[float, ...] = ()
    for batch in example.tensors():
        observer(_wide(ops, batch))
        after = _qparams(observer).scale
        if any(new < old * (1 - _RELATIVE) for old, new in zip(before, after, strict=False)):
            raise LawBroken(f"scale with one batch more, {_shown(example)}", expected=f"at least {before}",
                            actual=after)
        before = after


@_observer_law(kinds=("minmax", "moving_average"))
def O5_scaling(ops: ObserverOps, example: StreamExample) -> None:
    """Data times a power of two give the scale times that power, and the same zero point.

    Precondition: no scale near eps, and no number beyond float32's normal ones. No tolerance.
    """
    factor = 2.0**example.exponent
    sizes = [abs(x) for x in example.values if x]
    once = _of(ops, example.tensors())
    if not sizes or max(sizes) * factor > 2.0**120 or min(sizes) < 2.0**-90 or min(once.scale) <= 4 * ops.eps:
        return
    scaled = _of(ops, [batch * factor for batch in example.tensors()])
    _expect_same(f"data times {factor:g}", Found(tuple(scale * factor for scale in once.scale), once.zero_point),
                 scaled, example)


def _span(ops: ObserverOps, low: float, high: float) -> float:
    """Return the scale that a range asks for, zero included."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = ops.quant_max - ops.quant_min
    return max((max(-low, high) / (steps / 2)) if ops.symmetric else (high - low) / steps, ops.eps)


@_observer_law(kinds=("moving_average",))
def O6_moving_average(ops: ObserverOps, example: StreamExample) -> None:
    """The range moves by averaging_constant towards each batch's, from the first one's.

    min += constant * (batch's min - min), and max alike. Slack: 2^-20 of the largest magnitude a batch.
    """
    batches = [batch for batch in example.batches if batch]
    if max(map(abs, example.values), default=0.0) > 2.0**120 or ops.per_slice is not None:
        return
    low, high = min(batches[0]), max(batches[0])
    for batch in batches[1:]:
        low += ops.averaging_constant * (min(batch) - low)
        high += ops.averaging_constant * (max(batch) - high)
    expected, actual = _span(ops, low, high), _of(ops, example.tensors()).scale[0]
    slack = _RELATIVE * len(batches) * max(map(abs, example.values)) / (ops.quant_max - ops.quant_min) + (
        _RELATIVE * expected)
    if not abs(actual - expected) <= 2 * slack:
        raise LawBroken(f"scale {_shown(example)}", expected=repr(expected), actual=repr(actual))


@_observer_law(kinds=("histogram",))
def O7_histogram(ops: ObserverOps, example: StreamExample) -> None:
    """The chosen range lies within that of the data, and the histogram counts every value once.

    Zero widens the range where the data lie on one side of it.
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
    """NaN in the data is refused or ignored; it never becomes a scale."""
    spoilt = [torch.cat([batch, torch.tensor([math.nan])]) for batch in example.tensors()]
    try:
        observer = ops.make()
        for batch in spoilt:
            observer(_wide(ops, batch))
        scale, _ = observer.calculate_qparams()
    except Exception:
        return
    if not bool(torch.isfinite(torch.as_tensor(scale)).all()):
        raise LawBroken(f"scale {_shown(example)}, each with NaN at its end", expected="a finite number, or an "
                        "exception", actual=torch.as_tensor(scale).tolist())


@_observer_law()
def O9_never_run(ops: ObserverOps, example: StreamExample) -> None:
    """An observer that saw nothing says so: by a warning, or by raising; else its qparams are 1.0 and a valid code."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            scale, zero_point = ops.make().calculate_qparams()
        except Exception:
            return
    quiet = not said
    valid = bool((torch.as_tensor(scale) == 1).all()) and all(
        ops.quant_min <= int(code) <= ops.quant_max for code in torch.as_tensor(zero_point).reshape(-1))
    if quiet or not valid:
        raise LawBroken("calculate_qparams before any data", expected="a warning, and scale 1.0",
                        actual=f"{'no' if quiet else 'a'} warning, scale {torch.as_tensor(scale).tolist()}")


@_observer_law()
def O10_empty_batch(ops: ObserverOps, example: StreamExample) -> None:
    """An empty batch changes nothing."""
    batches = example.tensors()
    _expect_same("with an empty batch in between", _of(ops, batches),
                 _of(ops, [batches[0], torch.empty(0), *batches[1:]]), example)


@_observer_law(kinds=("minmax", "histogram"))
def O11_constant(ops: ObserverOps, example: StreamExample) -> None:
    """A constant tensor comes back within half a step: the range holds the constant and zero.

    Slack as in O2; a histogram may cut one bin of 2048 off its end.
    """
    constant = example.values[0] if example.values else 1.0
    if not 2.0**-100 < abs(constant) < 2.0**120:
        return
    scale, zero_point = (part[0] for part in _of(ops, [torch.full((5,), constant)]))
    code = min(max(round(constant / scale) + zero_point, ops.quant_min), ops.quant_max)
    bins = abs(constant) / 1024 if ops.kind == "histogram" else 0.0
    slack = scale * (0.5 + (ops.quant_max - ops.quant_min + 1) * _MOST_CODE_ERROR) + bins
    if abs((code - zero_point) * scale - constant) > slack:
        raise LawBroken(f"the constant {constant!r} with scale {scale!r} and zero_point {zero_point}",
                        expected=f"within {slack!r} of it", actual=repr((code - zero_point) * scale))


@_observer_law(when=lambda ops: ops.per_slice is not None)
def O12_channels(ops: ObserverOps, example: StreamExample) -> None:
    """Each channel gets what an observer of that channel alone would give."""
    whole = _of(ops, example.tensors())
    for channel in range(2):
        alone = _qparams(_observed(ops, [_wide(ops, batch)[channel] for batch in example.tensors()], ops.per_slice))
        if (whole.scale[channel], whole.zero_point[channel]) != (alone.scale[0], alone.zero_point[0]):
            raise LawBroken(f"channel {channel} of two, {_shown(example)}", expected=alone,
                            actual=(whole.scale[channel], whole.zero_point[channel]))


@_observer_law(kinds=("minmax",), when=lambda ops: ops.reduced is not None)
def O13_reduced_range(ops: ObserverOps, example: StreamExample) -> None:
    """With `reduce_range` there are half the codes, so that int16 pair sums cannot overflow, and steps twice as wide.

    255 steps become 127, so the scale grows by 255 / 127. Slack: 2^-20, and none where eps is the scale.
    """
    if max(map(abs, example.values), default=0.0) > 2.0**120:
        return
    scale = _of(ops, example.tensors()).scale[0]
    reduced = _qparams(_observed(ops, example.tensors(), ops.reduced)).scale[0]
    expected = scale * (ops.quant_max - ops.quant_min) / ((ops.quant_max - ops.quant_min) // 2)
    if scale > 2 * ops.eps and abs(reduced - expected) > expected * _RELATIVE:
        raise LawBroken(f"scale with reduce_range {_shown(example)}", expected=repr(expected), actual=repr(reduced))


@_observer_law(when=lambda ops: ops.symmetric)
def S1_symmetric_zero_point(ops: ObserverOps, example: StreamExample) -> None:
    """A symmetric scheme puts the zero point in the middle: 0 for signed codes, (min + max + 1) // 2 for unsigned."""
    middle = 0 if ops.quant_min < 0 else (ops.quant_min + ops.quant_max + 1) // 2
    found = _of(ops, example.tensors()).zero_point
    if set(found) != {middle}:
        raise LawBroken(f"zero_point {_shown(example)}", expected=middle, actual=found)


@_observer_law(kinds=("minmax",), when=lambda ops: ops.per_slice is None)
def S2_scale(ops: ObserverOps, example: StreamExample) -> None:
    """The scale is the range by the number of steps; symmetric: the largest magnitude by half of them.

    PyTorch divides by (quant_max - quant_min) / 2, 127.5 for 8 bits, where others take 127. Slack: 2^-20.
    """
    if max(map(abs, example.values), default=0.0) > 2.0**126:
        return
    expected = Fraction(_span(ops, min(example.values), max(example.values)))
    actual = _of(ops, example.tensors()).scale[0]
    if not math.isfinite(actual) or abs(Fraction(actual) - expected) > expected / 2**20:
        raise LawBroken(f"scale {_shown(example)}", expected=repr(float(expected)), actual=repr(actual))


@_observer_law(kinds=("minmax", "moving_average"), when=lambda ops: ops.symmetric)
def S3_sign_symmetry(ops: ObserverOps, example: StreamExample) -> None:
    """A symmetric scheme gives the same for the data with the other sign. No tolerance."""
    negative = _of(ops, [-batch for batch in example.tensors()])
    _expect_same("with the other sign", _of(ops, example.tensors()), negative, example)


@_observer_law(kinds=("minmax",), when=lambda ops: ops.symmetric and ops.quant_min == -ops.quant_max)
def S4_narrow_range(ops: ObserverOps, example: StreamExample) -> None:
    """With a narrow range the largest magnitude gets the last code, on both sides, and nothing lies beyond.

    Slack: half a step, for the rounding of the scale.
    """
    for x in (min(example.values), max(example.values)):
        scale = _of(ops, example.tensors()).scale[0]
        if abs(x / scale) > ops.quant_max + 0.5:
            raise LawBroken(f"{x!r} {_shown(example)} in steps", expected=f"at most {ops.quant_max}",
                            actual=x / scale)


LAWS: tuple[Law, ...] = (
    O1_valid_qparams, O2_coverage, O3_order, O4_monotone, O5_scaling, O6_moving_average, O7_histogram, O8_not_a_number,
    O9_never_run, O10_empty_batch, O11_constant, O12_channels, O13_reduced_range, S1_symmetric_zero_point, S2_scale,
    S3_sign_symmetry, S4_narrow_range)
