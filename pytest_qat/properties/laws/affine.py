"""Laws of quantize and dequantize with one scale and zero point (PROPERTIES P1 to P21)."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from pytest_qat.containment import signal_of
from pytest_qat.isolation import threads
from pytest_qat.ops import QParams, QuantOps
from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.oracle import (
    back_slack,
    codes_of,
    dequantized,
    round_trip_bound,
    stands_for,
    step,
    unclamped,
)
from pytest_qat.properties.sweeps import grids, huge_grids, qparams_grid, tails, tie_grids
from pytest_qat.properties.watched import Watched
from pytest_qat.strategies import WIDE, affine_examples, qparams

__all__ = ["LAWS"]

_THREADED = 100_003
"""More elements than torch gives to one thread (32,768), and an odd number of them."""


def _affine(ops: QuantOps) -> SearchStrategy[AffineExample]:
    return affine_examples(ops.quant_min, ops.quant_max, allow_huge=False)


def _huge(ops: QuantOps) -> SearchStrategy[AffineExample]:
    return affine_examples(ops.quant_min, ops.quant_max)


def _usual(ops: QuantOps) -> SearchStrategy[AffineExample]:
    return affine_examples(ops.quant_min, ops.quant_max, min_scale=2.0**-40, max_scale=2.0**40, allow_huge=False)


def _powers(ops: QuantOps) -> SearchStrategy[AffineExample]:
    return affine_examples(ops.quant_min, ops.quant_max, scheme="power_of_two", allow_huge=False)


def _params_alone(ops: QuantOps) -> SearchStrategy[AffineExample]:
    each = qparams(quant_min=ops.quant_min, quant_max=ops.quant_max)
    return each.map(lambda params: AffineExample(qparams=params, values=(0.0,)))


def _each_params(ops: QuantOps) -> Iterator[AffineExample]:
    for params in qparams_grid(ops):
        yield AffineExample(qparams=params, values=(0.0,), size=70)


def _affine_law(*, examples: Callable[[Any], SearchStrategy[Any]] = _affine,
                sweep: Callable[[Any], Iterable[Any]] = grids, share: float = 1.0) -> Callable[[Callable[..., None]], Law]:
    return law(kind=QuantOps, example=AffineExample, examples=examples, sweep=sweep, share=share)


def _shown(x: float) -> str:
    return f"{x!r} ({x.hex()})"


def _lanes(ops: QuantOps, example: AffineExample) -> Iterator[tuple[float, int]]:
    """Yield each element's value and code."""
    codes = Watched(ops).quantize(example.tensor(), example.qparams).flatten().tolist()
    yield from zip(example.lanes, codes, strict=True)


def _round_trips(ops: QuantOps, example: AffineExample) -> Iterator[tuple[float, int, float]]:
    """Yield each element's value, code and the number that comes back."""
    calls = Watched(ops)
    codes = calls.quantize(example.tensor(), example.qparams)
    back = calls.dequantize(codes, example.qparams)
    yield from zip(example.lanes, codes.flatten().tolist(), back.flatten().tolist(), strict=True)


@_affine_law()
def P1_round_trip(ops: QuantOps, example: AffineExample) -> None:
    """Inside the range, quantize and dequantize move a value by at most half a step.

    Precondition: scale * (quant_min - zero_point - 1/2) <= x <= scale * (quant_max - zero_point + 1/2). Tolerance:
    `oracle.round_trip_bound`, at most 0.5001 steps for 8 bits.
    """
    params = example.qparams
    low, high = params.quant_min - params.zero_point, params.quant_max - params.zero_point
    half = Fraction(1, 2)
    for x, code, back in _round_trips(ops, example):
        if low - half <= step(x, params.scale) <= high + half:  # else it saturates
            if abs(back - x) <= params.scale / 2:
                continue
            bound = round_trip_bound(x, params)
            if not math.isfinite(back) or abs(Fraction(back) - Fraction(x)) > bound:
                raise LawBroken(f"{_shown(x)} comes back as {back!r} (code {code}), {params}",
                                expected=f"within {float(bound):.6g} of it", actual=f"{back - x:+.6g}")


@_affine_law()
def P2_saturation(ops: QuantOps, example: AffineExample) -> None:
    """Beyond its ends the range saturates: the end's code, and back the end's number.

    Tolerance of the number: `oracle.back_slack`.
    """
    params = example.qparams
    ends = ((params.quant_max, 1), (params.quant_min, -1))
    for x, code, back in _round_trips(ops, example):
        for end, sign in ends:
            if sign * (step(x, params.scale) - (end - params.zero_point)) >= 0:
                if code != end:
                    raise LawBroken(f"{_shown(x)} lies at or beyond the range's end, {params}", expected=f"code {end}",
                                    actual=f"code {code}")
                _check_back(back, code, params)


@_affine_law()
def P3_range(ops: QuantOps, example: AffineExample) -> None:
    """Codes are within quant_min and quant_max, and dequantize gives (code - zero_point) * scale.

    Shape, dtype and untouched arguments are checked with every call. Tolerance: `oracle.back_slack`.
    """
    params = example.qparams
    for x, code, back in _round_trips(ops, example):
        if not params.quant_min <= code <= params.quant_max:
            raise LawBroken(f"{_shown(x)} gets a code outside the range, {params}",
                            expected=f"{params.quant_min} to {params.quant_max}", actual=code)
        _check_back(back, code, params)


def _check_back(back: float, code: int, params: QParams) -> None:
    if not stands_for(back, code, params):
        raise LawBroken(f"dequantize of code {code}, {params}", expected=repr(float(dequantized(code, params))),
                        actual=repr(back))


@_affine_law(examples=_params_alone, sweep=_each_params)
def P4_zero_exact(ops: QuantOps, example: AffineExample) -> None:
    """Zero is exact: 0.0 and -0.0 get zero_point, and zero_point comes back as 0.0, in every lane.

    Padding relies on it. No tolerance.
    """
    calls, params = Watched(ops), example.qparams
    for size in (1, max(1, example.size), 70):
        for zero in (0.0, -0.0):
            codes = calls.quantize(torch.full((size,), zero), params)
            if set(codes.tolist()) != {params.zero_point}:
                raise LawBroken(f"{zero} quantized, {size} elements, {params}", expected=f"code {params.zero_point}",
                                actual=_other(codes, params.zero_point))
        back = calls.dequantize(calls.codes([params.zero_point] * size, params), params)
        if set(back.tolist()) != {0.0}:
            raise LawBroken(f"zero_point dequantized, {size} elements, {params}", expected="0.0",
                            actual=_other(back, 0.0))


def _other(tensor: Tensor, expected: float) -> object:
    return next(value for value in tensor.tolist() if value != expected)


@_affine_law()
def P5_monotone(ops: QuantOps, example: AffineExample) -> None:
    """A larger value never gets a smaller code, nor a smaller number back."""
    ordered = dataclasses.replace(example, values=tuple(sorted(example.values)), size=0)
    for (x, code, back), (y, next_code, next_back) in itertools.pairwise(_round_trips(ops, ordered)):
        if code > next_code or not back <= next_back:
            raise LawBroken(f"{_shown(x)} and the larger {_shown(y)}, {example.qparams}",
                            expected=f"at least code {code} ({back!r}) for the larger",
                            actual=f"code {next_code} ({next_back!r})")


@_affine_law(examples=_params_alone, sweep=_each_params)
def P6_idempotent(ops: QuantOps, example: AffineExample) -> None:
    """What a code stands for quantizes to that code again, for all codes.

    All of them where there are at most 65,536, else those within 2^20 of the zero point; float32 cannot tell steps
    apart beyond 2^22.
    """
    calls, params = Watched(ops), example.qparams
    given = _all_codes(params)
    again = calls.quantize(calls.dequantize(calls.codes(given, params), params), params).tolist()
    for code, found in zip(given, again, strict=True):
        if code != found:
            raise LawBroken(f"code {code} dequantized and quantized again, {params}", expected=code, actual=found)


def _all_codes(params: QParams) -> list[int]:
    low, high = max(params.quant_min, params.zero_point - WIDE), min(params.quant_max, params.zero_point + WIDE)
    return list(range(low, high + 1, max(1, (high - low) // 2**10)))


@_affine_law()
def P7_exact_grid(ops: QuantOps, example: AffineExample) -> None:
    """fl(k * scale) gets the code k + zero_point.

    Precondition: k + zero_point within the codes. Two roundings of 2^-24 cannot move k, at most 2^20, half a step.
    """
    params = example.qparams
    nearest = [round(step(x, params.scale)) for x in example.lanes]
    kept = [k for k in nearest if params.quant_min <= k + params.zero_point <= params.quant_max and abs(k) <= WIDE]
    if not kept:
        return
    exact = dataclasses.replace(example, size=0, values=tuple(float(torch.tensor(k * params.scale)) for k in kept))
    for k, (x, code) in zip(kept, _lanes(ops, exact), strict=True):
        if code != k + params.zero_point:
            raise LawBroken(f"{_shown(x)}, which is {k} steps, {params}", expected=k + params.zero_point, actual=code)


@_affine_law(examples=_powers, sweep=tie_grids)
def P8_ties(ops: QuantOps, example: AffineExample) -> None:
    """Ties go where the rounding says, before the zero point is added, and neighbours of ties to the nearer code.

    Scales are powers of two, so products are exact and there is one right answer. No tolerance.
    """
    _check_codes(ops, example)


@_affine_law(examples=_usual)
def P9_zero_point_translation(ops: QuantOps, example: AffineExample) -> None:
    """One more zero point is one more code, where nothing is clamped.

    Holds at ties too, since rounding comes first.
    """
    params = example.qparams
    if params.zero_point + 1 > params.quant_max:
        return
    moved = dataclasses.replace(example, qparams=dataclasses.replace(params, zero_point=params.zero_point + 1))
    for (x, code), (_, next_code) in zip(_lanes(ops, example), _lanes(ops, moved), strict=True):
        free = unclamped(x, params, ops.rounding)
        if params.quant_min <= free.low and free.high + 1 <= params.quant_max and next_code != code + 1:
            raise LawBroken(f"{_shown(x)} with zero_point {params.zero_point + 1} after {params}", expected=code + 1,
                            actual=next_code)


@_affine_law(examples=_usual)
def P10_power_of_two_scaling(ops: QuantOps, example: AffineExample) -> None:
    """A value and a scale both times a power of two give the same code.

    Precondition: neither the value nor its product leaves float32's normal numbers, so that both are exact.
    """
    params = example.qparams
    for power in (3, -5):
        factor = 2.0**power
        if not 2.0**-110 <= params.scale * factor <= 2.0**119:
            continue
        scaled = dataclasses.replace(example, values=tuple(x * factor if _normal(x) else x for x in example.values),
                                     qparams=dataclasses.replace(params, scale=params.scale * factor))
        for (x, code), (y, other) in zip(_lanes(ops, example), _lanes(ops, scaled), strict=True):
            if _normal(x) and code != other:
                raise LawBroken(f"{_shown(x)} with {params}, and {_shown(y)} with scale {params.scale * factor!r}",
                                expected=code, actual=other)


def _normal(x: float) -> bool:
    return x == 0 or 2.0**-100 <= abs(x) <= 2.0**110


@_affine_law()
def P11_negation(ops: QuantOps, example: AffineExample) -> None:
    """The codes of x and -x lie as far to both sides of the zero point, where nothing is clamped.

    Half-up rounding breaks ties to one side: there, values beside a tie are left out.
    """
    params = example.qparams
    negative = dataclasses.replace(example, values=tuple(-x for x in example.values))
    for (x, code), (_, other) in zip(_lanes(ops, example), _lanes(ops, negative), strict=True):
        here, there = unclamped(x, params, ops.rounding), unclamped(-x, params, ops.rounding)
        free = all(params.quant_min <= found.low and found.high <= params.quant_max for found in (here, there))
        beside_tie = ops.rounding == "half_up" and len({*here, *(2 * params.zero_point - code for code in there)}) > 1
        if free and not beside_tie and code - params.zero_point != params.zero_point - other:
            raise LawBroken(f"{_shown(x)} gets {code}, and -x, {params}", expected=2 * params.zero_point - code,
                            actual=other)


@_affine_law()
def P12_nearest(ops: QuantOps, example: AffineExample) -> None:
    """No other code comes back nearer to the value.

    Measured on the implementation's own dequantize, over all codes, in float64. Slack: 2^-22 of the value and of the
    scale on each side of a tie, and the rounding of both numbers compared.
    """
    calls, params = Watched(ops), example.qparams
    codes = _all_codes(params) if params.quant_max - params.quant_min <= 2**16 else []
    values = calls.dequantize(calls.codes(codes, params), params).double() if codes else torch.empty(0)
    if not codes or not bool((values[1:] > values[:-1]).all()):
        return  # P21 says what is wrong with it
    table = values.tolist()
    for x, code, back in _round_trips(ops, example):
        place = bisect.bisect(table, x)
        best = min(table[max(0, place - 1):place + 1], key=lambda value: abs(value - x))
        slack = (abs(x) + params.scale) * 2.0**-21 + (abs(params.zero_point) + 1) * params.scale * 2.0**-21
        if abs(back - x) > abs(best - x) + slack:
            raise LawBroken(f"{_shown(x)} comes back as {back!r} (code {code}), {params}",
                            expected=f"{best!r} (code {codes[table.index(best)]})", actual=f"{back!r} (code {code})")


@_affine_law(sweep=tails)
def P13_nan_and_infinity(ops: QuantOps, example: AffineExample) -> None:
    """Infinities get the ends' codes, and NaN what is promised, in every lane.

    Where `nan` is None, NaN is left out.
    """
    calls, params = Watched(ops), example.qparams
    size = max(1, len(example.lanes))
    for x, expected in ((math.inf, params.quant_max), (-math.inf, params.quant_min)):
        _check_filled(calls, example, size, x, expected)
    if ops.nan == "raises":
        try:
            codes = ops.quantize(torch.full((size,), math.nan), params.scale, params.zero_point, params.quant_min,
                                 params.quant_max)
        except Exception:  # noqa: BLE001 - any exception keeps the promise
            return
        raise LawBroken(f"NaN quantized, {size} elements, {params}", expected="an exception", actual=codes.tolist())
    if ops.nan is not None:
        _check_filled(calls, example, size, math.nan, int(getattr(params, ops.nan)))


def _check_filled(calls: Watched, example: AffineExample, size: int, x: float, expected: int) -> None:
    filled = dataclasses.replace(example, values=(x,), size=size)
    codes = calls.quantize(filled.tensor(), example.qparams)
    if set(codes.flatten().tolist()) != {expected}:
        wrong = [lane for lane, code in enumerate(codes.flatten().tolist()) if code != expected]
        raise LawBroken(f"{x} quantized, {size} elements, {example.layout}, {example.qparams}",
                        expected=f"code {expected}",
                        actual=f"{codes.flatten()[wrong[0]].item()} at element {wrong[0]}")


@_affine_law(examples=_huge, sweep=huge_grids)
def P14_huge_finite(ops: QuantOps, example: AffineExample) -> None:
    """Finite values up to float32's largest saturate with every valid scale, and never wrap around."""
    params = example.qparams
    far = 3 * (params.quant_max - params.quant_min)
    for x, code in _lanes(ops, example):
        if abs(step(x, params.scale)) > far:
            expected = params.quant_max if x > 0 else params.quant_min
            if code != expected:
                raise LawBroken(f"{_shown(x)}, {params}", expected=f"code {expected}", actual=f"code {code}")


_BAD_SCALES = (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 2.0**-140)


@_affine_law(examples=lambda ops: st.sampled_from(list(_bad_params(ops))), sweep=lambda ops: _bad_params(ops), share=0)
def P15_scale_domain(ops: QuantOps, example: AffineExample) -> None:
    """Qparams that make no sense raise, or give codes within the range; they never end the process.

    Scales of 0, under 0, NaN, infinite or subnormal, and zero points outside the codes. The call is made in a process
    of its own first.
    """
    params, x = example.qparams, example.tensor()
    died = signal_of(lambda: ops.quantize(x.clone(), params.scale, params.zero_point, params.quant_min,
                                          params.quant_max))
    if died is not None:
        raise LawBroken(f"quantize, {params}", expected="an exception, or codes within the range",
                        actual=f"the process died of {died}")
    try:
        codes = ops.quantize(x.clone(), params.scale, params.zero_point, params.quant_min, params.quant_max)
    except Exception:  # noqa: BLE001 - raising is one of the two right answers
        return
    outside = [code for code in codes.flatten().tolist() if not params.quant_min <= code <= params.quant_max]
    if outside:
        raise LawBroken(f"quantize, {params}", expected="an exception, or codes within the range", actual=outside[0])


def _bad_params(ops: QuantOps) -> Iterator[AffineExample]:
    low, high = ops.quant_min, ops.quant_max
    middle = min(max(0, low), high)
    pairs = [(scale, middle) for scale in _BAD_SCALES] + [(1.0, low - 1), (1.0, high + 1)]
    for scale, zero_point in pairs:
        params = QParams(scale=scale, zero_point=zero_point, quant_min=low, quant_max=high)
        yield AffineExample(qparams=params, values=(0.0, 1.0, -3.5), size=37)


@_affine_law(examples=_usual, sweep=tie_grids)
def P16_input_dtype(ops: QuantOps, example: AffineExample) -> None:
    """float16, bfloat16 and float64 inputs get the codes of the same numbers in float32, or raise.

    Values are rounded to the dtype first. Tolerance: the near-tie band, since float64 kernels round less.
    """
    params = example.qparams
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = example.tensor(dtype)
        lanes = x.double().flatten().tolist()
        try:
            codes = ops.quantize(x, params.scale, params.zero_point, params.quant_min, params.quant_max)
        except Exception:  # noqa: BLE001 - a dtype that is not supported may say so
            continue
        for value, code in zip(lanes, codes.flatten().tolist(), strict=True):
            right = codes_of(value, params, ops.rounding)
            if code not in right:
                raise LawBroken(f"{_shown(value)} as {dtype}, {params}", expected=right, actual=code)


@_affine_law(sweep=tails)
def P17_layout(ops: QuantOps, example: AffineExample) -> None:
    """An element's code depends neither on its neighbours, nor on its place, nor on how the tensor lies in memory."""
    calls, params = Watched(ops), example.qparams
    alone = {x.hex(): int(calls.quantize(torch.tensor([x]), params)) for x in example.values}
    for lane, (x, code) in enumerate(_lanes(ops, example)):
        if code != alone[x.hex()]:
            raise LawBroken(f"{_shown(x)} at element {lane} of {len(example.lanes)}, {example.layout}, {params}",
                            expected=f"{alone[x.hex()]}, as on its own", actual=code)


@_affine_law(examples=_usual, sweep=lambda ops: itertools.islice(tails(ops), 3), share=0)
def P18_threads(ops: QuantOps, example: AffineExample) -> None:
    """Large tensors get the same codes with one thread and with several."""
    calls, params = Watched(ops), example.qparams
    large = dataclasses.replace(example, size=_THREADED).tensor()
    with threads(1):
        one = calls.quantize(large, params)
    with threads(max(2, torch.get_num_threads())):
        several = calls.quantize(large, params)
    if not torch.equal(one, several):
        lane = int((one != several).flatten().nonzero()[0])
        raise LawBroken(f"element {lane} of {_THREADED}, {params}",
                        expected=f"{one.flatten()[lane].item()}, as with one thread",
                        actual=several.flatten()[lane].item())


@_affine_law(examples=_params_alone, sweep=_each_params, share=0.2)
def P19_sizes(ops: QuantOps, example: AffineExample) -> None:
    """Empty tensors and tensors without axes keep their shape, both ways."""
    calls = Watched(ops)
    for shape in ((0,), (0, 3), (2, 0, 3), ()):
        codes = calls.quantize(torch.ones(shape), example.qparams)
        calls.dequantize(codes, example.qparams)


@_affine_law()
def P20_cross_implementation(ops: QuantOps, example: AffineExample) -> None:
    """Codes are those of the exact specification, so that implementations agree.

    Tolerance: beside a tie, as `oracle` defines it, both neighbours are right.
    """
    _check_codes(ops, example)


def _check_codes(ops: QuantOps, example: AffineExample) -> None:
    for lane, (x, code) in enumerate(_lanes(ops, example)):
        right = codes_of(x, example.qparams, ops.rounding)
        if code not in right:
            raise LawBroken(f"{_shown(x)} at element {lane} of {len(example.lanes)}, {example.layout}, "
                            f"{example.qparams}", expected=f"code {right}", actual=f"code {code}")


@_affine_law(examples=_params_alone, sweep=_each_params)
def P21_dequantize_linear(ops: QuantOps, example: AffineExample) -> None:
    """Dequantized codes rise strictly, by the scale from one to the next.

    Tolerance: `oracle.back_slack` of both.
    """
    calls, params = Watched(ops), example.qparams
    codes = _all_codes(params)
    back = calls.dequantize(calls.codes(codes, params), params).tolist()
    for (one, x), (other, y) in itertools.pairwise(zip(codes, back, strict=True)):
        if y - x == (other - one) * params.scale:
            continue
        slack = back_slack(one, params) + back_slack(other, params)
        exact = (other - one) * Fraction(params.scale)
        if not (math.isfinite(x) and math.isfinite(y)) or not x < y or abs(Fraction(y) - Fraction(x) - exact) > slack:
            raise LawBroken(f"codes {one} and {other} dequantized, {params}", expected=f"{float(exact)!r} apart",
                            actual=f"{x!r} and {y!r}")


LAWS: tuple[Law, ...] = (
    P1_round_trip, P2_saturation, P3_range, P4_zero_exact, P5_monotone, P6_idempotent, P7_exact_grid, P8_ties,
    P9_zero_point_translation, P10_power_of_two_scaling, P11_negation, P12_nearest, P13_nan_and_infinity,
    P14_huge_finite, P15_scale_domain, P16_input_dtype, P17_layout, P18_threads, P19_sizes, P20_cross_implementation,
    P21_dequantize_linear)
