"""Hypothesis strategies for quantization: qparams, difficult values, tensors in every layout, batches for observers.

Values are drawn as positions relative to the codes (a code, a tie, a neighbor of a tie, an edge of the range), times
the scale, so that the first examples already cover rounding, saturation and ties. Up to eight elements are drawn one by
one, and they are repeated to sizes at which vectorized loops leave a tail. Hypothesis draws everything that is random;
examples shrink toward one element, scale 1 and zero point 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from pytest_qat.errors import InvalidOption
from pytest_qat.properties.examples import FLOAT32_MAX, LAYOUTS, TAILS, AffineExample, ChannelExample, StreamExample
from pytest_qat.properties.ops import ChannelQParams, FakeQuantizeConfig, QParams

__all__ = ["affine_examples", "channel_examples", "code_range", "fake_quantize_configs",
           "observer_streams", "per_channel", "qparams", "quantizable_tensors", "values_for"]

MIN_SCALE, MAX_SCALE = 2.0**-100, 2.0**119
"""Between these bounds, 1 / scale and scale times any 8-bit code are normal float32 numbers."""
WIDE = 2**20
"""32-bit codes are drawn within this distance of the zero point, because float32 has no half steps beyond 2^22."""
_SCHEMES = ("affine", "symmetric", "power_of_two")
_SCALES = (1.0, 0.5, 2.0, 1 / 15, 0.1, 0.00214854861, 1 / 255, 2.0**-23, 1e-7, 3.0, 2.0**-60, 2.0**60, 1e30, 2.0**119)
_CODES = {"quint8": (0, 255), "uint8": (0, 255), "qint8": (-128, 127), "int8": (-128, 127),
          "qint32": (-2**31, 2**31 - 1), "int32": (-2**31, 2**31 - 1), "int16": (-2**15, 2**15 - 1),
          "uint16": (0, 2**16 - 1), "quint4x2": (0, 15), "uint4": (0, 15), "int4": (-8, 7), "quint2x4": (0, 3),
          "uint2": (0, 3), "int2": (-2, 1)}


def code_range(dtype: torch.dtype | str) -> tuple[int, int]:
    """Return the smallest and the largest code of a dtype, such as torch.qint8, torch.uint4 or "int2".

    Raises:
        InvalidOption: the dtype has no codes, such as float8, to which torch casts without a zero point.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _CODES:
        raise InvalidOption(f"dtype is {dtype}, expected a dtype that holds codes.",
                            hint=f"Use one of {', '.join(_CODES)}.")
    return _CODES[name]


def fl32(value: float) -> float:
    """Return the float32 number nearest to a value, and the largest finite one instead of infinity."""
    if abs(value) > FLOAT32_MAX:
        return math.copysign(FLOAT32_MAX, value)
    return float(np.float32(value))


def _inward(bound: float, sign: int) -> float:
    """Return the nearest float32 number that is within a bound; `sign` is 1 for a lower and -1 for an upper bound."""
    value = fl32(bound)
    inside = sign * value >= sign * bound
    return value if inside else float(np.nextafter(np.float32(value), np.float32(sign * math.inf)))


def qparams(dtype: torch.dtype | str = torch.qint8, scheme: str = "affine", *, quant_min: int | None = None,
            quant_max: int | None = None, min_scale: float = MIN_SCALE,
            max_scale: float = MAX_SCALE) -> SearchStrategy[QParams]:
    """Return a strategy of qparams.

    Args:
        dtype: Dtype that determines the range of codes, unless quant_min and quant_max are given.
        scheme: "affine"; "symmetric" (the zero point is 0, or the middle of unsigned codes); or "power_of_two" (affine
            with scales that are powers of two).
        quant_min: Smallest code; default: that of the dtype.
        quant_max: Largest code; default: that of the dtype.
        min_scale: Smallest scale.
        max_scale: Largest scale.

    Raises:
        InvalidOption: an argument is invalid.
    """
    low, high = code_range(dtype)
    low, high = low if quant_min is None else quant_min, high if quant_max is None else quant_max
    if not low < high:
        raise InvalidOption(f"the range of codes is {low} to {high}, expected quant_min to be less than quant_max.",
                            hint="Swap quant_min and quant_max.")
    if scheme not in _SCHEMES:
        raise InvalidOption(f"scheme is {scheme!r}, expected one of {', '.join(_SCHEMES)}.", hint='Use "affine".')
    if not (math.isfinite(min_scale) and 0 < min_scale <= max_scale <= FLOAT32_MAX):
        raise InvalidOption(f"min_scale is {min_scale} and max_scale is {max_scale}, expected positive float32 "
                            "numbers, the smaller one first.", hint="Remove both to use the defaults.")
    max_scale = min(max_scale, largest_scale(low, high))
    min_scale = min(min_scale, max_scale)
    return st.builds(lambda scale, zero_point: QParams(scale=scale, zero_point=zero_point, quant_min=low,
                                                       quant_max=high),
                     _scales(min_scale, max_scale, powers=scheme == "power_of_two"),
                     _zero_points(low, high, symmetric=scheme == "symmetric"))


def largest_scale(quant_min: int, quant_max: int) -> float:
    """Return the largest scale at which the value of every code, up to `WIDE` steps from zero, is a float32 number."""
    return float(2.0**(127 - (min(quant_max - quant_min, 2 * WIDE)).bit_length()))


def _scales(low: float, high: float, *, powers: bool) -> SearchStrategy[float]:
    low, high = _inward(low, 1), _inward(high, -1)
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    usual = [fl32(scale) for scale in _SCALES if low <= scale <= high]
    if first > last:
        return st.floats(fl32(low), fl32(high), width=32)
    exact = st.integers(first, last).map(lambda power: 2.0**power)
    if powers:
        return st.sampled_from([scale for scale in usual if math.frexp(scale)[0] == 0.5] or [2.0**last]) | exact
    any_size = st.builds(lambda mantissa, power: min(max(fl32(mantissa * 2.0**power), fl32(low)), high),
                         st.floats(1, 2, width=32), st.integers(first, last))
    return st.sampled_from(usual) | any_size | exact if usual else any_size | exact


def _zero_points(low: int, high: int, *, symmetric: bool) -> SearchStrategy[int]:
    middle = 0 if low < 0 else (low + high + 1) // 2
    if symmetric:
        return st.just(middle)
    near, far = max(low, -WIDE), min(high, WIDE)
    usual = dict.fromkeys(code for code in (0, 1, near, far, middle, middle + 1, 3) if near <= code <= far)
    return st.sampled_from(list(usual)) | st.integers(near, far)


def values_for(params: QParams, *, min_size: int = 1, max_size: int = 8, allow_nan: bool = False,
               allow_infinity: bool = False, allow_huge: bool = True) -> SearchStrategy[tuple[float, ...]]:
    """Return a strategy of float32 values that are difficult to quantize with these qparams.

    Args:
        params: The qparams.
        min_size: Smallest number of values.
        max_size: Largest number of values.
        allow_nan: Whether values may be NaN.
        allow_infinity: Whether values may be infinite.
        allow_huge: Whether values may lie far outside the range of codes, up to float32's largest number.

    Raises:
        InvalidOption: the sizes are invalid.
    """
    if not 0 <= min_size <= max_size:
        raise InvalidOption(f"min_size is {min_size} and max_size is {max_size}, expected 0 <= min_size <= max_size.",
                            hint="Remove both to use the defaults.")
    kinds = [_spots(params.quant_min, params.quant_max, huge=allow_huge)]
    if allow_infinity:
        kinds.append(st.sampled_from([math.inf, -math.inf]))
    if allow_nan:
        kinds.append(st.just(math.nan))
    return st.lists(st.one_of(kinds), min_size=min_size, max_size=max_size).map(
        lambda spots: tuple(_value_at(spot, params, huge=allow_huge) for spot in spots))


def _spots(low: int, high: int, *, huge: bool) -> SearchStrategy[int | float]:
    """Return a strategy of positions of values, which `_value_at` turns into values for given qparams.

    A position is a number, so that it is cheap to draw. An integer stands for an offset from a code, for an edge (three
    in ten) or for a point anywhere in the range (one in ten); a float stands for itself. Codes are numbered from the
    zero point outward, so that values shrink toward 0.
    """
    grid = _numbered(low, high) * len(PLACES)
    spots = st.integers(0, grid + grid // 2 + grid // 6 - 1)
    return spots | st.floats(width=32, allow_nan=False, allow_infinity=False) if huge else spots


def _numbered(low: int, high: int) -> int:
    """Return the number of codes that values are drawn at: all codes and two more beyond each end."""
    return min(high - low, 2 * WIDE) + 5


def _value_at(spot: Any, params: QParams, *, huge: bool) -> float:
    if isinstance(spot, float):
        return spot
    codes = _numbered(params.quant_min, params.quant_max)
    place, number = divmod(spot, codes)
    if place < len(PLACES):
        outward = (number + 1) // 2 * (1 if number % 2 else -1)
        lowest = max(params.quant_min - params.zero_point, -WIDE) - 2
        return place_of(lowest + (outward - lowest) % codes, PLACES[place], params.scale)
    beyond, anywhere = spot - codes * len(PLACES), codes * len(PLACES) // 6
    if beyond >= anywhere:
        edge: float = edges(params)[beyond % (_EDGES if huge else _EDGES - HUGE_EDGES)]
        return edge
    first, last = _reach(params)
    return fl32((first + (beyond + 0.37) / anywhere * (last - first)) * params.scale)


def _sizes() -> SearchStrategy[int]:
    return st.integers(0, 136) | st.sampled_from(TAILS)


PLACES = ((0.0, 0), (0.5, 0), (-0.5, 0), (0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1), (0.25, 0), (0.0, 1))
"""Offsets from a code: first in steps, then in units in the last place (ulps)."""


def place_of(code: int, place: tuple[float, int], scale: float) -> float:
    """Return the float32 number at an offset, in steps and ulps, from a code that is counted from the zero point."""
    offset, ulps = place
    value = np.float32(fl32((code + offset) * scale))
    return fl32(float(np.nextafter(value, np.float32(math.copysign(math.inf, ulps))))) if ulps else float(value)


def _reach(params: QParams) -> tuple[int, int]:
    return (max(params.quant_min - params.zero_point, -WIDE), min(params.quant_max - params.zero_point, WIDE))


@functools.lru_cache(maxsize=2**12)
def edges(params: QParams) -> tuple[float, ...]:
    """Return values that often cause errors: zeros, tiny numbers, the ends of the range, and finally huge numbers."""
    first, last = _reach(params)
    found = [0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, -(2.0**-126)]
    found += [place_of(code, place, params.scale) for code in (first, last) for place in PLACES]
    sizes = (params.scale * 2.0**20, params.scale * 2.0**31, params.scale * 2.0**40, 1e30, FLOAT32_MAX)
    return tuple(found + [sign * fl32(size) for size in sizes for sign in (1, -1)])


HUGE_EDGES = 10
_EDGES = 6 + 2 * len(PLACES) + HUGE_EDGES


def affine_examples(quant_min: int = -128, quant_max: int = 127, *, scheme: str = "affine",
                    min_scale: float = MIN_SCALE, max_scale: float = MAX_SCALE, min_size: int = 1,
                    max_size: int = 8, allow_huge: bool = True,
                    layouts: Sequence[str] = LAYOUTS) -> SearchStrategy[AffineExample]:
    """Return a strategy of per-tensor examples: qparams with values, a size and a memory layout."""
    def example(params: QParams, size: int, layout: str, spots: list[Any]) -> AffineExample:
        return AffineExample(qparams=params, size=size,
                             values=tuple(_value_at(spot, params, huge=allow_huge) for spot in spots),
                             layout=layout)
    return st.builds(example, qparams(scheme=scheme, quant_min=quant_min, quant_max=quant_max, min_scale=min_scale,
                                      max_scale=max_scale),
                     _sizes(), st.sampled_from(list(layouts)),
                     st.lists(_spots(quant_min, quant_max, huge=allow_huge), min_size=min_size, max_size=max_size))


def quantizable_tensors(params: QParams, *, max_size: int = 8, allow_nan: bool = False, allow_infinity: bool = False,
                        layouts: Sequence[str] = LAYOUTS) -> SearchStrategy[Tensor]:
    """Return a strategy of float32 tensors for these qparams: up to 136 elements, in every memory layout.

    Args:
        params: The qparams.
        max_size: Largest number of different values, which are repeated to fill the tensor.
        allow_nan: Whether values may be NaN.
        allow_infinity: Whether values may be infinite.
        layouts: The layouts to draw from, a selection of `LAYOUTS`.

    Raises:
        InvalidOption: a layout is unknown, or there is none.
    """
    unknown = [layout for layout in layouts if layout not in LAYOUTS]
    if unknown or not layouts:
        raise InvalidOption(f"layouts are {list(layouts)}, expected a selection of {', '.join(LAYOUTS)}.",
                            hint="Remove layouts to use all of them.")
    return st.builds(lambda size, layout, values: AffineExample(qparams=params, values=values, size=size,
                                                                layout=layout).tensor(),
                     _sizes(), st.sampled_from(list(layouts)),
                     values_for(params, max_size=max_size, allow_nan=allow_nan, allow_infinity=allow_infinity))


def per_channel(dtype: torch.dtype | str = torch.qint8, scheme: str = "affine", *, min_channels: int = 1,
                max_channels: int = 4, axis: int = 0, quant_min: int | None = None, quant_max: int | None = None,
                min_scale: float = MIN_SCALE, max_scale: float = MAX_SCALE) -> SearchStrategy[ChannelQParams]:
    """Return a strategy of qparams along an axis, one scale and zero point per channel.

    Args:
        dtype: Dtype that determines the range of codes, unless quant_min and quant_max are given.
        scheme: The same as in `qparams`.
        min_channels: Smallest number of channels.
        max_channels: Largest number of channels.
        axis: The axis of the channels.
        quant_min: Smallest code; default: that of the dtype.
        quant_max: Largest code; default: that of the dtype.
        min_scale: Smallest scale.
        max_scale: Largest scale.

    Raises:
        InvalidOption: an argument is invalid.
    """
    if not 1 <= min_channels <= max_channels:
        raise InvalidOption(f"min_channels is {min_channels} and max_channels is {max_channels}, expected "
                            "1 <= min_channels <= max_channels.", hint="Remove both to use the defaults.")
    each = qparams(dtype, scheme, quant_min=quant_min, quant_max=quant_max, min_scale=min_scale, max_scale=max_scale)
    return st.lists(each, min_size=min_channels, max_size=max_channels).map(lambda found: ChannelQParams(
        scales=tuple(one.scale for one in found), zero_points=tuple(one.zero_point for one in found), axis=axis,
        quant_min=found[0].quant_min, quant_max=found[0].quant_max))


def channel_examples(quant_min: int = -128, quant_max: int = 127, *, min_channels: int = 1,
                     allow_huge: bool = True) -> SearchStrategy[ChannelExample]:
    """Return a strategy of per-channel examples: qparams with values, an axis and a number of axes."""
    def example(params: ChannelQParams, ndim: int, axis: int, spots: list[Any]) -> ChannelExample:
        placed = replace(params, axis=axis % ndim)
        kept = spots[:1] if ndim == 1 else spots
        rows = tuple(tuple(_value_at(spot, params.channel(index), huge=allow_huge) for spot in kept)
                     for index in range(len(params.scales)))
        return ChannelExample(qparams=placed, rows=rows, ndim=ndim)
    return st.builds(example, per_channel(quant_min=quant_min, quant_max=quant_max, min_channels=min_channels),
                     st.integers(1, 4), st.integers(0, 3),
                     st.lists(_spots(quant_min, quant_max, huge=allow_huge), min_size=1, max_size=4))


def fake_quantize_configs() -> SearchStrategy[FakeQuantizeConfig]:
    """Return a strategy of configurations of fake-quantize modules: 8, 7 and 4 bits, affine and symmetric."""
    codes = st.sampled_from([(0, 255), (0, 127), (-128, 127), (-127, 127), (-64, 63), (0, 15), (-8, 7)])
    return st.builds(lambda found, symmetric, constant: FakeQuantizeConfig(
        quant_min=found[0], quant_max=found[1], symmetric=symmetric, averaging_constant=constant),
        codes, st.booleans(), st.sampled_from([0.01, 0.5, 1.0]))


def observer_streams(*, min_batches: int = 1, max_batches: int = 4, min_size: int = 1, max_size: int = 6,
                     max_value: float = 1e30, min_magnitude: float = 0.0) -> SearchStrategy[StreamExample]:
    """Return a strategy of batches for an observer: values near 1, constant, one-sided, tiny and huge.

    Args:
        min_batches: Smallest number of batches.
        max_batches: Largest number of batches.
        min_size: Smallest number of values in a batch.
        max_size: Largest number of values in a batch.
        max_value: Largest magnitude of a value.
        min_magnitude: Smallest magnitude of a value other than 0.

    Raises:
        InvalidOption: the numbers of batches or values are invalid.
    """
    if not (1 <= min_batches <= max_batches and 0 <= min_size <= max_size):
        raise InvalidOption(f"got {min_batches} to {max_batches} batches of {min_size} to {max_size} values, expected "
                            "at least one batch, and the smaller number first.", hint="Use the defaults.")
    top = fl32(max_value)
    value = (st.sampled_from([0.0, 1.0, -1.0, 5.0, 0.1, -0.5, 255.0, -128.0, 2.0**-30, 2.0**-126])
             | st.floats(-8, 8, width=32) | st.floats(-top, top, width=32)).map(
                 lambda drawn: drawn if drawn == 0 or min_magnitude <= abs(drawn) <= top else 1.0)
    batch = st.lists(value, min_size=min_size, max_size=max_size).map(tuple)
    return st.builds(lambda batches, exponent: StreamExample(batches=tuple(batches), exponent=exponent),
                     st.lists(batch, min_size=min_batches, max_size=max_batches), st.integers(1, 10))
