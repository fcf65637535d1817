"""Examples that every run tests, for a few qparams each: all codes with their ties, edges, vector tails, layouts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from pytest_qat.properties.examples import LAYOUTS, TAILS, AffineExample, ChannelExample
from pytest_qat.properties.ops import ChannelQParams, LearnableOps, QParams, QuantOps
from pytest_qat.properties.strategies import HUGE_EDGES, MAX_SCALE, PLACES, WIDE, edges, fl32, largest_scale, place_of

__all__ = ["channel_grids", "grids", "huge_grids", "qparams_grid", "tails", "tie_grids"]

_SCALES = (1.0, 1 / 15, 0.00214854861, 2.0**-100, MAX_SCALE)
_MOST_CODES = 300


def qparams_grid(ops: QuantOps | LearnableOps) -> Iterator[QParams]:
    """Yield a few qparams, with zero points in the middle, at odd codes, and at both ends of the range."""
    low, high = max(ops.quant_min, -WIDE), min(ops.quant_max, WIDE)
    zero_points = list(dict.fromkeys(code for code in (0, 3, low, high, 1) if low <= code <= high))
    for index, scale in enumerate(_SCALES):
        yield QParams(scale=min(fl32(scale), largest_scale(ops.quant_min, ops.quant_max)),
                      zero_point=zero_points[index % len(zero_points)], quant_min=ops.quant_min,
                      quant_max=ops.quant_max)


def grids(ops: QuantOps) -> Iterator[AffineExample]:
    """Yield the values of the codes, their ties and the neighbors of these, and the edges of the range."""
    for params in qparams_grid(ops):
        yield AffineExample(qparams=params, values=_grid(params))


def tie_grids(ops: QuantOps) -> Iterator[AffineExample]:
    """Yield the same as `grids`, with scales that are powers of two, for which there is one correct code."""
    for params, scale in zip(qparams_grid(ops), (1.0, 0.5, 2.0**-20, 2.0**-100, MAX_SCALE), strict=True):
        exact = dataclasses.replace(params, scale=min(scale, params.scale) if scale == MAX_SCALE else scale)
        yield AffineExample(qparams=exact, values=_grid(exact))


def huge_grids(ops: QuantOps) -> Iterator[AffineExample]:
    """Yield powers of two from the end of the range to float32's largest number."""
    for params in qparams_grid(ops):
        for zero_point in (params.quant_min, params.quant_max):
            placed = dataclasses.replace(params, zero_point=min(max(zero_point, -WIDE), WIDE))
            sizes = tuple(sign * size * params.scale for power in range(4, 128) for sign in (1, -1)
                          for size in (2.0**power, 2.0**power * (2 - 2.0**-23)))
            yield AffineExample(qparams=placed, values=tuple(size for size in sizes if abs(size) < 2.0**128))


def tails(ops: QuantOps) -> Iterator[AffineExample]:
    """Yield tensors of all sizes in `TAILS`, and in every layout for the first qparams."""
    for index, params in enumerate(qparams_grid(ops)):
        values = tuple(place_of(code, PLACES[code % len(PLACES)], params.scale) for code in range(-3, 4))
        for layout in LAYOUTS if index == 0 else LAYOUTS[:1]:
            for size in TAILS:
                yield AffineExample(qparams=params, values=values[:size], size=size, layout=layout)


def channel_grids(ops: QuantOps) -> Iterator[ChannelExample]:
    """Yield tensors of up to four axes with channels along each axis, with different scales and zero points."""
    middle = (max(ops.quant_min, -WIDE) + min(ops.quant_max, WIDE)) // 2
    for ndim in (1, 2, 4):
        for axis in range(ndim):
            yield _channels(ops, middle, channels=3, count=1 if ndim == 1 else 9, ndim=ndim, axis=axis)
    for ndim, axis in ((2, 0), (2, 1), (4, 1)):  # more channels and values than fit a vector
        yield _channels(ops, middle, channels=17, count=129, ndim=ndim, axis=axis)


def _channels(ops: QuantOps, middle: int, *, channels: int, count: int, ndim: int, axis: int) -> ChannelExample:
    scales = tuple(fl32((1.0, 1 / 15, 0.25)[index % 3] * (1 + index // 3)) for index in range(channels))
    zero_points = tuple(min(max(middle + (0, 1, -3)[index % 3], ops.quant_min), ops.quant_max)
                        for index in range(channels))
    rows = tuple(tuple(place_of((3 * code - 7) % 251 - 125 if code > 8 else 3 * code - 7, PLACES[code % len(PLACES)],
                                scale) for code in range(count)) for scale in scales)
    params = ChannelQParams(scales=scales, zero_points=zero_points, axis=axis, quant_min=ops.quant_min,
                            quant_max=ops.quant_max)
    return ChannelExample(qparams=params, rows=rows, ndim=ndim)


@functools.lru_cache(maxsize=64)
def _grid(params: QParams) -> tuple[float, ...]:
    first = max(params.quant_min - params.zero_point, -WIDE)
    last = min(params.quant_max - params.zero_point, WIDE)
    every = max(1, (last - first) // _MOST_CODES)
    codes = range(first - 1, last + 2, every)
    dense = {*range(max(first, -3), min(last, 3) + 1), first, first + 1, last - 1, last, last + 1, *codes[::16]}
    values = [place_of(code, place, params.scale) for code in codes for place in PLACES[:2]]
    values += [place_of(code, place, params.scale) for code in sorted(dense) for place in PLACES]
    return tuple(dict.fromkeys([*values, *edges(params)[:-HUGE_EDGES]]))
