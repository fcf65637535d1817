"""Laws of quantize and dequantize with one scale and zero point: what codes mean (P1 to P12 and P21)."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from fractions import Fraction

import torch
from torch import Tensor

from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.guarded import Watched
from pytest_qat.properties.law import Law, LawBroken
from pytest_qat.properties.laws.per_tensor import (
    affine_law,
    all_codes,
    check_back,
    check_codes,
    each_params,
    lanes,
    params_alone,
    powers,
    round_trips,
    shown,
    usual,
)
from pytest_qat.properties.ops import QuantOps
from pytest_qat.properties.oracle import round_trip_bound, step, unclamped
from pytest_qat.properties.strategies import WIDE, fl32
from pytest_qat.properties.sweeps import tie_grids

__all__ = ["LAWS"]


@affine_law()
def P1_round_trip(ops: QuantOps, example: AffineExample) -> None:
    """Inside the range, quantize and dequantize change a value by at most half a step.

    A value is inside if scale * (quant_min - zero_point - 1/2) <= x <= scale * (quant_max - zero_point + 1/2). The
    tolerance is `oracle.round_trip_bound`, which is at most 0.5001 steps for 8 bits.
    """
    params = example.qparams
    low, high = params.quant_min - params.zero_point, params.quant_max - params.zero_point
    half = Fraction(1, 2)
    for x, code, back in round_trips(ops, example):
        if low - half <= step(x, params.scale) <= high + half:  # otherwise it saturates
            if abs(back - x) <= params.scale / 2:
                continue
            bound = round_trip_bound(x, params)
            if not math.isfinite(back) or abs(Fraction(back) - Fraction(x)) > bound:
                raise LawBroken(f"{shown(x)} dequantizes to {back!r} (code {code}), {params}",
                                expected=f"within {float(bound):.6g} of it", actual=f"{back - x:+.6g}")


@affine_law()
def P2_saturation(ops: QuantOps, example: AffineExample) -> None:
    """Values at or beyond an end of the range get the code at that end, and dequantize to its value.

    The tolerance of the dequantized value is `oracle.back_slack`.
    """
    params = example.qparams
    ends = ((params.quant_max, 1), (params.quant_min, -1))
    for x, code, back in round_trips(ops, example):
        for end, sign in ends:
            if sign * (step(x, params.scale) - (end - params.zero_point)) >= 0:
                if code != end:
                    raise LawBroken(f"{shown(x)} is at or beyond the end of the range, {params}",
                                    expected=f"code {end}", actual=f"code {code}")
                check_back(back, code, params, str(params))


@affine_law()
def P3_range(ops: QuantOps, example: AffineExample) -> None:
    """Codes lie between quant_min and quant_max, and dequantize gives (code - zero_point) * scale.

    Every call also checks shape and dtype, and that the arguments did not change. The tolerance of the dequantized
    value is `oracle.back_slack`.
    """
    params = example.qparams
    for x, code, back in round_trips(ops, example):
        if not params.quant_min <= code <= params.quant_max:
            raise LawBroken(f"{shown(x)} gets a code outside the range, {params}",
                            expected=f"{params.quant_min} to {params.quant_max}", actual=code)
        check_back(back, code, params, str(params))


@affine_law(examples=params_alone, sweep=each_params)
def P4_zero_exact(ops: QuantOps, example: AffineExample) -> None:
    """Zero is exact: 0.0 and -0.0 get zero_point, and zero_point dequantizes to 0.0, in every vector lane.

    Padding relies on this, so there is no tolerance.
    """
    calls, params = Watched(ops), example.qparams
    for size in (1, max(1, example.size), 70):
        for zero in (0.0, -0.0):
            codes = calls.quantize(torch.full((size,), zero, dtype=torch.float32), params)
            if set(codes.tolist()) != {params.zero_point}:
                raise LawBroken(f"{zero} quantized, {size} elements, {params}", expected=f"code {params.zero_point}",
                                actual=_other(codes, params.zero_point))
        back = calls.dequantize(calls.codes([params.zero_point] * size, params), params)
        if set(back.tolist()) != {0.0}:
            raise LawBroken(f"zero_point dequantized, {size} elements, {params}", expected="0.0",
                            actual=_other(back, 0.0))


def _other(tensor: Tensor, expected: float) -> object:
    return next(value for value in tensor.tolist() if value != expected)


@affine_law()
def P5_monotone(ops: QuantOps, example: AffineExample) -> None:
    """A larger value never gets a smaller code or a smaller dequantized value."""
    ordered = dataclasses.replace(example, values=tuple(sorted(example.values)), size=0)
    for (x, code, back), (y, next_code, next_back) in itertools.pairwise(round_trips(ops, ordered)):
        if code > next_code or not back <= next_back:
            raise LawBroken(f"{shown(x)} and the larger {shown(y)}, {example.qparams}",
                            expected=f"at least code {code} ({back!r}) for the larger",
                            actual=f"code {next_code} ({next_back!r})")


@affine_law(examples=params_alone, sweep=each_params)
def P6_idempotent(ops: QuantOps, example: AffineExample) -> None:
    """The dequantized value of a code quantizes to the same code again, for all codes.

    If there are more than 65,536 codes, those within 2^20 of the zero point are tested, because float32 cannot resolve
    steps beyond 2^22.
    """
    calls, params = Watched(ops), example.qparams
    given = all_codes(params)
    again = calls.quantize(calls.dequantize(calls.codes(given, params), params), params).long()
    wrong = (again != torch.tensor(given)).nonzero()
    if len(wrong):
        lane = int(wrong[0])
        raise LawBroken(f"code {given[lane]} dequantized and quantized again, {params}", expected=given[lane],
                        actual=int(again[lane]))


@affine_law()
def P7_exact_grid(ops: QuantOps, example: AffineExample) -> None:
    """The float32 number nearest to k * scale gets the code k + zero_point, if that is a code.

    There is no tolerance: for |k| up to 2^20, two roundings of 2^-24 cannot add up to half a step.
    """
    params = example.qparams
    nearest = [round(step(x, params.scale)) for x in example.lanes]
    kept = [k for k in nearest if params.quant_min <= k + params.zero_point <= params.quant_max and abs(k) <= WIDE]
    if not kept:
        return
    exact = dataclasses.replace(example, size=0, values=tuple(fl32(k * params.scale) for k in kept))
    for k, (x, code) in zip(kept, lanes(ops, exact), strict=True):
        if code != k + params.zero_point:
            raise LawBroken(f"{shown(x)}, which is {k} steps, {params}", expected=k + params.zero_point, actual=code)


@affine_law(examples=powers, sweep=tie_grids)
def P8_ties(ops: QuantOps, example: AffineExample) -> None:
    """Ties are rounded as `rounding` says, before the zero point is added; their neighbors get the nearer code.

    Scales are powers of two, so products are exact and only one code is correct.
    """
    check_codes(ops, example)


@affine_law(examples=usual)
def P9_zero_point_translation(ops: QuantOps, example: AffineExample) -> None:
    """If the zero point is larger by one, so is the code, unless it is clamped.

    This holds at ties too, because rounding comes before the zero point is added.
    """
    params = example.qparams
    if params.zero_point + 1 > params.quant_max:
        return
    moved = dataclasses.replace(example, qparams=dataclasses.replace(params, zero_point=params.zero_point + 1))
    for (x, code), (_, next_code) in zip(lanes(ops, example), lanes(ops, moved), strict=True):
        free = unclamped(x, params, ops.rounding)
        if params.quant_min <= free.low and free.high + 1 <= params.quant_max and next_code != code + 1:
            raise LawBroken(f"{shown(x)} with zero_point {params.zero_point + 1} instead of {params}",
                            expected=code + 1, actual=next_code)


@affine_law(examples=usual)
def P10_power_of_two_scaling(ops: QuantOps, example: AffineExample) -> None:
    """Multiplying both the value and the scale by a power of two does not change the code.

    Only values are tested for which all numbers are normal float32 numbers, so that the products are exact.
    """
    params = example.qparams
    for power in (3, -5):
        factor = 2.0**power
        if not 2.0**-110 <= params.scale * factor <= 2.0**119:
            continue
        scaled = dataclasses.replace(example, values=tuple(x * factor if _normal(x) else x for x in example.values),
                                     qparams=dataclasses.replace(params, scale=params.scale * factor))
        for (x, code), (y, other) in zip(lanes(ops, example), lanes(ops, scaled), strict=True):
            if _normal(x) and code != other:
                raise LawBroken(f"{shown(x)} with {params}, and {shown(y)} with scale {params.scale * factor!r}",
                                expected=code, actual=other)


def _normal(x: float) -> bool:
    return x == 0 or 2.0**-100 <= abs(x) <= 2.0**110


@affine_law()
def P11_negation(ops: QuantOps, example: AffineExample) -> None:
    """The codes of x and -x have the same distance from the zero point, unless one is clamped.

    For half-up rounding, values next to a tie are skipped, because it rounds all ties upward.
    """
    params = example.qparams
    negative = dataclasses.replace(example, values=tuple(-x for x in example.values))
    for (x, code), (_, other) in zip(lanes(ops, example), lanes(ops, negative), strict=True):
        here, there = unclamped(x, params, ops.rounding), unclamped(-x, params, ops.rounding)
        free = all(params.quant_min <= found.low and found.high <= params.quant_max for found in (here, there))
        next_to_tie = ops.rounding == "half_up" and len({*here, *(2 * params.zero_point - code for code in there)}) > 1
        if free and not next_to_tie and code - params.zero_point != params.zero_point - other:
            raise LawBroken(f"the negative of {shown(x)}, which itself gets code {code}, {params}",
                            expected=f"code {2 * params.zero_point - code}", actual=f"code {other}")


@affine_law()
def P12_nearest(ops: QuantOps, example: AffineExample) -> None:
    """No other code dequantizes to a number that is nearer to the value.

    This uses the implementation's own dequantize, for all codes, and compares in float64. The tolerance is 2^-22 of the
    value and of the scale on each side of a tie, plus the rounding of both numbers.
    """
    calls, params = Watched(ops), example.qparams
    codes = all_codes(params) if params.quant_max - params.quant_min <= 2**16 else []
    values = calls.dequantize(calls.codes(codes, params), params).double() if codes else torch.empty(0)
    if not codes or not bool((values[1:] > values[:-1]).all()):
        return  # P21 reports what is wrong
    table = values.tolist()
    for x, code, back in round_trips(ops, example):
        place = bisect.bisect(table, x)
        best = min(table[max(0, place - 1):place + 1], key=lambda value: abs(value - x))
        slack = (abs(x) + params.scale) * 2.0**-21 + (abs(params.zero_point) + 1) * params.scale * 2.0**-21
        if abs(back - x) > abs(best - x) + slack:
            raise LawBroken(f"{shown(x)} dequantizes to {back!r} (code {code}), {params}",
                            expected=f"{best!r} (code {codes[table.index(best)]})", actual=f"{back!r} (code {code})")


@affine_law(examples=params_alone, sweep=each_params)
def P21_dequantize_linear(ops: QuantOps, example: AffineExample) -> None:
    """From one code to the next, the dequantized value increases by the scale.

    The tolerance is `oracle.back_slack` of both values.
    """
    calls, params = Watched(ops), example.qparams
    codes = all_codes(params)
    numbers = calls.dequantize(calls.codes(codes, params), params)
    places, back = torch.tensor(codes).double(), numbers.double()
    apart, exact = back[1:] - back[:-1], (places[1:] - places[:-1]) * params.scale  # exact up to 2^-53
    away = (places - params.zero_point).abs() + abs(params.zero_point)
    slack = (away[1:] + away[:-1]) * params.scale * 2.0**-23  # `oracle.back_slack` of both
    wrong = (~(apart > 0) | ~apart.isfinite() | ((apart - exact).abs() > slack)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise LawBroken(f"codes {codes[index]} and {codes[index + 1]} dequantized, {params}",
                        expected=f"{float(exact[index])!r} apart",
                        actual=f"{float(back[index])!r} and {float(back[index + 1])!r}")


LAWS: tuple[Law, ...] = (
    P1_round_trip, P2_saturation, P3_range, P4_zero_exact, P5_monotone, P6_idempotent, P7_exact_grid, P8_ties,
    P9_zero_point_translation, P10_power_of_two_scaling, P11_negation, P12_nearest, P21_dequantize_linear)
