"""Exact results in `fractions.Fraction`: which codes a quantizer may return, and which value a code represents.

Specification: q = clamp(round(x / scale) + zero_point, quant_min, quant_max), and dequantized (q - zero_point) * scale.
Kernels in float32 multiply by fl(1 / scale), which differs from x / scale by up to two roundings of 2^-24 each. Next to
a tie this can change the code (757.5 * fl(1 / 15) is slightly more than 50.5), so both neighbors are accepted there.
This module alone defines "next to a tie": within |x / scale| * 2^-22 of it, and never if the scale is a power of two,
because then the products are exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from pytest_qat.properties.ops import QParams

__all__ = ["NEAR_TIE", "Codes", "back_slack", "codes_of", "dequantized", "is_power_of_two", "round_trip_bound",
           "stands_for", "step", "unclamped"]

NEAR_TIE = Fraction(1, 2**22)
_HALF = Fraction(1, 2)
_OVERFLOWS = Fraction(2)**128 * (1 - Fraction(1, 2**25))


class Codes(NamedTuple):
    """The correct codes: a single one, both neighbors next to a tie, or a range if the ops declare a tolerance.

    Attributes:
        low: The smallest.
        high: The largest.
    """

    low: int
    high: int

    def __contains__(self, code: object) -> bool:
        return isinstance(code, int) and self.low <= code <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return str(self.low)
        return f"{self.low} {'or' if self.high - self.low == 1 else 'to'} {self.high}"


def _half_even(value: Fraction) -> int:
    return round(value)


def _half_away(value: Fraction) -> int:
    size = math.floor(abs(value) + _HALF)
    return size if value >= 0 else -size


def _half_up(value: Fraction) -> int:
    return math.floor(value + _HALF)


_ROUND: dict[str, Callable[[Fraction], int]] = {
    "half_even": _half_even, "half_away": _half_away, "half_up": _half_up}


def is_power_of_two(scale: float) -> bool:
    """Whether a scale is a power of two, so that multiplying by 1 / scale is exact."""
    return math.frexp(scale)[0] == 0.5


def step(x: float, scale: float) -> Fraction:
    """Return x / scale, exactly."""
    return Fraction(x) / Fraction(scale)


def unclamped(x: float, qparams: QParams, rounding: str = "half_even") -> Codes:
    """Return the correct values of round(x / scale) + zero_point, without clamping, for finite x."""
    return _unclamped(x, qparams.scale, qparams.zero_point, rounding)


@functools.lru_cache(maxsize=2**16)
def _unclamped(x: float, scale: float, zero_point: int, rounding: str) -> Codes:
    exact = step(x, scale)
    band = Fraction(0) if is_power_of_two(scale) else abs(exact) * NEAR_TIE
    nearest = _ROUND[rounding]
    return Codes(nearest(exact - band) + zero_point, nearest(exact + band) + zero_point)


def codes_of(x: float, qparams: QParams, rounding: str = "half_even") -> Codes:
    """Return the correct codes for x, which may be infinite but not NaN."""
    low, high = qparams.quant_min, qparams.quant_max
    if math.isinf(x):
        return Codes(high, high) if x > 0 else Codes(low, low)
    found = unclamped(x, qparams, rounding)
    return Codes(min(max(found.low, low), high), min(max(found.high, low), high))


def dequantized(code: int, qparams: QParams) -> Fraction:
    """Return the exact value of a code."""
    return (code - qparams.zero_point) * Fraction(qparams.scale)


def back_slack(code: int, qparams: QParams) -> Fraction:
    """Return how far float32 arithmetic may be from `dequantized`.

    The product is rounded once, and so is zero_point * scale in kernels that compute fma(code, scale,
    -fl(zero_point * scale)). Each rounding is 2^-24, and the bound is twice their sum.
    """
    return (abs(code - qparams.zero_point) + abs(qparams.zero_point)) * Fraction(qparams.scale) / 2**23


def stands_for(number: float, code: int, qparams: QParams, *, relative: Fraction = Fraction(0)) -> bool:
    """Whether a number is the value of a code, within `back_slack` and an additional relative error."""
    product = (code - qparams.zero_point) * qparams.scale  # exact in float64 for codes within 2^29
    if abs(number - product) <= abs(product) * 2.0**-24:
        return True
    exact = dequantized(code, qparams)
    if abs(exact) >= _OVERFLOWS:  # float32 rounds it to infinity
        return math.isinf(number) and (number > 0) is (exact > 0)
    return math.isfinite(number) and (
        abs(Fraction(number) - exact) <= back_slack(code, qparams) + abs(exact) * relative)


def round_trip_bound(x: float, qparams: QParams) -> Fraction:
    """Return by how much quantize and dequantize together may change an x inside the range.

    This is the sum of half a step, |x| * 2^-22 for values next to a tie, one rounding of the product, which is at most
    (|x| + scale) * 2^-24, and the rounding of zero_point * scale.
    """
    scale = Fraction(qparams.scale)
    return scale / 2 + (abs(Fraction(x)) + scale) / 2**22 + abs(qparams.zero_point) * scale / 2**23
