"""Laws of quantize and dequantize with a scale and a zero point per channel (C1 to C8 and C11)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from pytest_qat.properties.examples import ChannelExample
from pytest_qat.properties.guarded import Watched
from pytest_qat.properties.law import Law, LawBroken, Raised, law
from pytest_qat.properties.laws.per_tensor import check_back, check_code, check_saturated, shown
from pytest_qat.properties.ops import ChannelQParams, QuantOps
from pytest_qat.properties.oracle import codes_of, round_trip_bound
from pytest_qat.properties.strategies import WIDE, channel_examples, fl32
from pytest_qat.properties.sweeps import channel_grids

__all__ = ["LAWS"]


def _channels(ops: QuantOps) -> SearchStrategy[ChannelExample]:
    return channel_examples(ops.quant_min, ops.quant_max, allow_huge=False)


def _several(ops: QuantOps) -> SearchStrategy[ChannelExample]:
    return channel_examples(ops.quant_min, ops.quant_max, min_channels=2, allow_huge=False)


def _channel_law(*, examples: Callable[[Any], SearchStrategy[Any]] = _channels,
                 sweep: Callable[[Any], Iterable[Any]] = channel_grids, share: float = 0.5,
                 when: Callable[[Any], bool] = lambda _: True) -> Callable[[Callable[..., None]], Law]:
    return law(kind=QuantOps, example=ChannelExample, examples=examples, sweep=sweep, share=share, when=when,
               needs=("quantize_per_channel", "dequantize_per_channel"))


def _compare(what: str, expected: Tensor, actual: Tensor, example: ChannelExample) -> None:
    """Compare two tensors of shape (channels, n)."""
    if expected.shape != actual.shape:
        raise LawBroken(f"{what}, {example.qparams}", expected=tuple(expected.shape), actual=tuple(actual.shape))
    differ = (expected != actual) & ~(expected.isnan() & actual.isnan()) if expected.is_floating_point() else (
        expected != actual)
    if bool(differ.any()):
        channel, lane = (int(index) for index in differ.nonzero()[0])
        x = example.rows[channel][lane] if lane < len(example.rows[channel]) else 0.0
        raise LawBroken(f"{what}: {shown(x)} in channel {channel}, {example.ndim} axes, {example.qparams}",
                        expected=expected[channel, lane].item(), actual=actual[channel, lane].item())


def _codes(calls: Watched, example: ChannelExample) -> Tensor:
    return example.gathered(calls.quantize_channels(example.tensor(), example.qparams))


def _reordered(example: ChannelExample, order: list[int]) -> ChannelExample:
    params = example.qparams
    return dataclasses.replace(
        example, rows=tuple(example.rows[index] for index in order),
        qparams=dataclasses.replace(params, scales=tuple(params.scales[index] for index in order),
                                    zero_points=tuple(params.zero_points[index] for index in order)))


@_channel_law()
def C1_slices(ops: QuantOps, example: ChannelExample) -> None:
    """Each channel is quantized and dequantized with its own scale and zero point.

    Codes are those of the exact specification, or either neighbor next to a tie. Dequantized values are within
    `oracle.back_slack`.
    """
    calls = Watched(ops)
    codes = calls.quantize_channels(example.tensor(), example.qparams)
    back = example.gathered(calls.dequantize_channels(codes, example.qparams))
    for channel, (row, found, numbers) in enumerate(
            zip(example.rows, example.gathered(codes).tolist(), back.tolist(), strict=True)):
        params = example.qparams.channel(channel)
        for x, code, number in zip(row, found, numbers, strict=True):
            where = f"in channel {channel}, {example.ndim} axes, {example.qparams}"
            check_code(x, code, params, ops.rounding, where)
            check_back(number, code, params, where)


@_channel_law(examples=_several)
def C2_channel_permutation(ops: QuantOps, example: ChannelExample) -> None:
    """Permuting the channels together with their qparams permutes the result, and changes nothing else."""
    calls, order = Watched(ops), list(range(len(example.rows)))[::-1]
    _compare("channels in reverse order", _codes(calls, example)[order], _codes(calls, _reordered(example, order)),
             example)


@_channel_law()
def C3_axis(ops: QuantOps, example: ChannelExample) -> None:
    """Moving the axis of the channels moves that of the result, and changes nothing else."""
    calls = Watched(ops)
    first = dataclasses.replace(example, qparams=dataclasses.replace(example.qparams, axis=0))
    _compare(f"channels along axis {example.axis}", _codes(calls, first), _codes(calls, example), example)


@_channel_law()
def C4_equal_channels(ops: QuantOps, example: ChannelExample) -> None:
    """If all channels have the same scale and zero point, the result equals per-tensor quantization.

    Next to a tie, as `oracle` defines it, both neighbors are accepted.
    """
    calls, params, count = Watched(ops), example.qparams.channel(0), len(example.rows)
    far = max(abs(x) for row in example.rows for x in row) / params.scale
    if far > WIDE:
        return  # P14 tests such values
    equal = dataclasses.replace(example, qparams=dataclasses.replace(
        example.qparams, scales=(params.scale,) * count, zero_points=(params.zero_point,) * count))
    whole = example.gathered(calls.quantize(equal.tensor(), params)).long()
    channels = _codes(calls, equal).long()
    for row, ones, others in zip(equal.rows, whole.tolist(), channels.tolist(), strict=True):
        for x, one, other in zip(row, ones, others, strict=True):
            right = codes_of(x, params, ops.rounding)
            if one != other and not (one in right and other in right):
                raise LawBroken(f"equal channels: {shown(x)}, {params}", expected=f"{one}, as per tensor",
                                actual=other)


@_channel_law(examples=_several)
def C5_independence(ops: QuantOps, example: ChannelExample) -> None:
    """Changing the scale and zero point of one channel does not change any other channel."""
    calls, params = Watched(ops), example.qparams
    before = _codes(calls, example)
    for changed in {0, len(example.rows) - 1}:
        scales, zero_points = list(params.scales), list(params.zero_points)
        scales[changed] = 0.75 if scales[changed] == 1 else 1.0
        zero_points[changed] += 1 if zero_points[changed] < params.quant_max else -1
        other = dataclasses.replace(example, qparams=dataclasses.replace(params, scales=tuple(scales),
                                                                         zero_points=tuple(zero_points)))
        kept = [index for index in range(len(example.rows)) if index != changed]
        _compare(f"after changing the qparams of channel {changed} only", before[kept], _codes(calls, other)[kept],
                 _reordered(example, kept))


@_channel_law()
def C6_zero_point_dtype(ops: QuantOps, example: ChannelExample) -> None:
    """Zero points of int32 and of int64 give the same result, or int32 raises an exception."""
    calls = Watched(ops)
    wide = _codes(calls, example)
    try:
        narrow = calls.quantize_channels(example.tensor(), example.qparams, zero_dtype=torch.int32)
        back = calls.dequantize_channels(narrow, example.qparams, zero_dtype=torch.int32)
    except Raised:
        return
    _compare("int32 zero points", wide, example.gathered(narrow), example)
    _compare("int32 zero points, dequantized", example.gathered(calls.dequantize_channels(narrow, example.qparams)),
             example.gathered(back), example)


@_channel_law()
def C7_negative_axis(ops: QuantOps, example: ChannelExample) -> None:
    """A negative axis gives the same result as the same axis counted from the front, or raises an exception."""
    calls = Watched(ops)
    front = dataclasses.replace(example, qparams=dataclasses.replace(example.qparams, axis=example.axis))
    from_end = dataclasses.replace(
        example, qparams=dataclasses.replace(example.qparams, axis=example.axis - example.ndim))
    expected = calls.quantize_channels(example.tensor(), front.qparams)
    try:
        actual = _codes(calls, from_end)
        back = calls.dequantize_channels(expected, from_end.qparams)
    except Raised:
        return
    _compare(f"axis {from_end.qparams.axis} of {example.ndim}", example.gathered(expected), actual, example)
    _compare(f"axis {from_end.qparams.axis} of {example.ndim}, dequantized",
             example.gathered(calls.dequantize_channels(expected, front.qparams)), example.gathered(back), example)


def _weights(ops: QuantOps) -> Iterator[ChannelExample]:
    rows = tuple(tuple(size * value for value in (1.0, -0.5, 0.25, -1.0)) for size in (1.0, 100.0, 0.01))
    middle = 0 if ops.quant_min < 0 else (ops.quant_min + ops.quant_max + 1) // 2
    reach = min(ops.quant_max - middle, middle - ops.quant_min, 127)
    if reach < 1:
        return
    scales = tuple(fl32(max(map(abs, row)) / reach) for row in rows)
    params = ChannelQParams(scales=scales, zero_points=(middle,) * 3, axis=1, quant_min=ops.quant_min,
                            quant_max=ops.quant_max)
    yield ChannelExample(qparams=params, rows=rows, ndim=4)


def _huge(ops: QuantOps) -> Iterator[ChannelExample]:
    for example in channel_grids(ops):
        if len(example.rows) == 3 and example.ndim > 1:
            sizes = tuple(sign * 2.0**power for power in (12, 31, 32, 63, 127) for sign in (1, -1))[:9]
            yield dataclasses.replace(example, rows=(sizes,) * 3)


@_channel_law(examples=lambda ops: channel_examples(ops.quant_min, ops.quant_max), sweep=_huge)
def C11_huge_finite(ops: QuantOps, example: ChannelExample) -> None:
    """Values far outside the range saturate in every channel; they never wrap around."""
    codes = _codes(Watched(ops), example).tolist()
    for channel, (row, found) in enumerate(zip(example.rows, codes, strict=True)):
        for x, code in zip(row, found, strict=True):
            check_saturated(x, code, example.qparams.channel(channel), f"in channel {channel}, {example.qparams}")


@_channel_law(examples=lambda ops: st.sampled_from(list(_weights(ops))), sweep=_weights, share=0,
              when=lambda ops: any(_weights(ops)))
def C8_transposed_convolution(ops: QuantOps, example: ChannelExample) -> None:
    """Quantize and dequantize change weights with channels along axis 1 by at most half a step of their own channel.

    Transposed convolutions have such weights. The scales of the channels differ by up to a factor of 10,000, so that a
    wrong axis or scale breaks the law.
    """
    calls = Watched(ops)
    codes = calls.quantize_channels(example.tensor(), example.qparams)
    back = example.gathered(calls.dequantize_channels(codes, example.qparams)).tolist()
    for channel, (row, numbers) in enumerate(zip(example.rows, back, strict=True)):
        params = example.qparams.channel(channel)
        for x, number in zip(row, numbers, strict=True):
            if not math.isfinite(number) or abs(Fraction(number) - Fraction(x)) > round_trip_bound(x, params):
                raise LawBroken(f"weight {x!r} in channel {channel} of a transposed convolution, {example.qparams}",
                                expected=f"within {float(round_trip_bound(x, params)):.3g} of it", actual=repr(number))


LAWS: tuple[Law, ...] = (
    C1_slices, C2_channel_permutation, C3_axis, C4_equal_channels, C5_independence, C6_zero_point_dtype,
    C7_negative_axis, C8_transposed_convolution, C11_huge_finite)
