"""Laws of operations on codes: exact accumulation and requantization (R1 to R8)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_qat.properties.examples import IntegerExample
from pytest_qat.properties.guarded import watched_call
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.ops import IntegerOps
from pytest_qat.properties.oracle import Codes
from pytest_qat.properties.strategies import fl32

__all__ = ["LAWS"]

_BAND = Fraction(1, 2**20)
"""Relative tolerance, because kernels multiply the accumulator by a float32 product of three scales."""
_SCALES = (1.0, 0.5, 0.05, 0.00392156862745098, 1 / 15)


@st.composite
def _examples(draw: st.DrawFn, most: int) -> IntegerExample:
    length, samples, channels = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    code = st.sampled_from([0, 255, 1, 128, 127]) | st.integers(0, 255)
    activation = st.sampled_from(sorted({0, 1, most // 2, most // 2 + 1, most})) | st.integers(0, most)
    weight = st.sampled_from([0, 1, 127, -128, -1]) | st.integers(-128, 127)
    scales = st.sampled_from(_SCALES).map(fl32)
    x_scale = draw(scales)
    weight_scales = tuple(draw(scales) for _ in range(channels))
    biased = draw(st.booleans())
    return IntegerExample(
        x=tuple(draw(st.tuples(*[activation] * length)) for _ in range(samples)),
        weight=tuple(draw(st.tuples(*[weight] * length)) for _ in range(channels)),
        bias=tuple(draw(st.sampled_from([0.0, 1.0, -3.5]) | st.floats(-20, 20, width=32))
                   for _ in range(channels)) if biased else (),
        x_scale=x_scale, x_zero_point=draw(activation), weight_scales=weight_scales,
        scale=draw(st.sampled_from([1.0, 4.0, 50.0, 0.1, 0.5]).map(fl32)), zero_point=draw(code))


def _sweep(ops: IntegerOps) -> Iterator[IntegerExample]:
    most = ops.activation_max
    yield IntegerExample(x=((most, most),), weight=((127, 127),), scale=fl32(2 * 127 * most / 200))
    yield IntegerExample(x=((most,) * 64,), weight=((-128,) * 64, (127,) * 64), weight_scales=(1.0, 1.0),
                         scale=16384.0, zero_point=128)
    yield IntegerExample(x=tuple((code, 3) for code in range(0, most + 1, 5)), weight=((1, 0), (-1, 1)), x_zero_point=7,
                         weight_scales=(1.0, 0.5), scale=2.0, zero_point=101)
    yield IntegerExample(x=((10, 20, 30), (0, 5, most)), weight=((3, -2, 1), (0, 0, 0), (-7, 6, 5)),
                         bias=(1.5, -2.0, 0.25), x_scale=0.5, x_zero_point=20, weight_scales=(1.0, 2.0, 0.5),
                         scale=0.25, zero_point=3)


def _integer_law(*, needs: tuple[str, ...] = (), sweep: Callable[[Any], Iterable[Any]] = _sweep,
                 ) -> Callable[[Callable[..., None]], Law]:
    return law(kind=IntegerOps, example=IntegerExample, examples=lambda ops: _examples(ops.activation_max),
               sweep=sweep, needs=needs, share=0.5)


def _linear(ops: IntegerOps, example: IntegerExample) -> Tensor:
    bias = torch.tensor(example.bias) if example.bias else torch.zeros(len(example.weight))
    codes = watched_call(ops.linear, "linear", torch.tensor(example.x, dtype=torch.uint8), example.x_scale,
                         example.x_zero_point, torch.tensor(example.weight, dtype=torch.int8),
                         torch.tensor(example.weight_scales), bias, example.scale, example.zero_point)
    _check_form(codes, (len(example.x), len(example.weight)), "linear", example)
    return codes


def _exact(example: IntegerExample, sample: int, channel: int) -> Fraction:
    """Return the exact output of a linear layer, in steps and before rounding."""
    total = sum((code - example.x_zero_point) * weight
                for code, weight in zip(example.x[sample], example.weight[channel], strict=True))
    product = Fraction(example.x_scale) * Fraction(example.weight_scales[channel])
    bias = Fraction(example.bias[channel]) if example.bias else Fraction(0)
    return (total * product + bias) / Fraction(example.scale)


def _correct_codes(exact: Fraction, zero_point: int, *, band: Fraction, tolerance: int) -> Codes:
    low = round(exact - band) + zero_point - tolerance
    high = round(exact + band) + zero_point + tolerance
    return Codes(min(max(low, 0), 255), min(max(high, 0), 255))


def _band(example: IntegerExample, exact: Fraction, channel: int) -> Fraction:
    """Return how many steps rounding in the kernel, including that of the bias to int32, may move the output."""
    bias_step = Fraction(example.x_scale) * Fraction(example.weight_scales[channel]) / Fraction(example.scale)
    size = sum(abs((code - example.x_zero_point) * weight) for row in example.x
               for code, weight in zip(row, example.weight[channel], strict=True)) * bias_step
    return (abs(exact) + size) * _BAND + (bias_step / 2 if example.bias else 0)


@_integer_law()
def R1_exact_accumulation(ops: IntegerOps, example: IntegerExample) -> None:
    """Sums of products of codes are exact; no 16-bit intermediate result saturates.

    The activations are 255 (or `activation_max`) and the weights 127 and -128, so that sums of two products
    exceed int16 (the instruction vpmaddubsw). The tolerance is one code, and the rounding of the output.
    """
    extreme = dataclasses.replace(
        example, x=tuple((ops.activation_max,) * len(row) for row in example.x), x_zero_point=0, bias=(),
        weight=tuple(tuple(127 if index % 2 == 0 else -128 for _ in row) for index, row in enumerate(example.weight)),
        weight_scales=(1.0,) * len(example.weight), x_scale=1.0, zero_point=128,
        scale=fl32(255 * 128 * len(example.x[0]) / 100))
    _check_linear(ops, extreme, tolerance=max(1, ops.tolerance))


@_integer_law()
def R2_requantization(ops: IntegerOps, example: IntegerExample) -> None:
    """The accumulator is multiplied by the scales and rounded; then the zero point is added and the sum clamped.

    There is no bias. Next to a tie, within 2^-20 of the accumulated size, both neighbors are accepted, and codes may
    differ by the `tolerance` of the ops.
    """
    _check_linear(ops, dataclasses.replace(example, bias=()), tolerance=ops.tolerance)


@_integer_law()
def R3_linear(ops: IntegerOps, example: IntegerExample) -> None:
    """A linear layer gives the result of float arithmetic on the dequantized inputs.

    The tolerance is half a step of the output, half a step of the bias (whose scale is x_scale * weight_scale), and the
    `tolerance` of the ops.
    """
    _check_linear(ops, example, tolerance=ops.tolerance)


def _check_linear(ops: IntegerOps, example: IntegerExample, *, tolerance: int) -> None:
    codes = _linear(ops, example).tolist()
    for sample, row in enumerate(codes):
        for channel, code in enumerate(row):
            exact = _exact(example, sample, channel)
            right = _correct_codes(exact, example.zero_point, band=_band(example, exact, channel), tolerance=tolerance)
            if code not in right:
                raise LawBroken(f"output {channel} of sample {sample}, {float(exact)!r} steps, {example}",
                                expected=f"code {right}", actual=f"code {code}")


@_integer_law(needs=("add",))
def R4_add(ops: IntegerOps, example: IntegerExample) -> None:
    """Addition uses the given scale and zero point of its output.

    Next to a tie both neighbors are accepted, and codes may differ by the `tolerance` of the ops.
    """
    _check_pairs(ops, ops.add, "add", example, lambda one, two: (one + two, abs(one) + abs(two)))


@_integer_law(needs=("mul",))
def R4_mul(ops: IntegerOps, example: IntegerExample) -> None:
    """Multiplication uses the given scale and zero point of its output.

    Next to a tie both neighbors are accepted, and codes may differ by the `tolerance` of the ops.
    """
    _check_pairs(ops, ops.mul, "mul", example, lambda one, two: (one * two, abs(one * two)))


@_integer_law(needs=("cat",))
def R4_cat(ops: IntegerOps, example: IntegerExample) -> None:
    """Concatenation converts both inputs to the given scale and zero point of its output.

    Next to a tie both neighbors are accepted, and codes may differ by the `tolerance` of the ops.
    """
    a, b, codes = _pairs(ops.cat, "cat", example)
    (a_scale, a_zero), (b_scale, b_zero) = _pair_qparams(example)
    exact = [(code - a_zero) * a_scale for code in a] + [(code - b_zero) * b_scale for code in b]
    _check_each(ops, "cat", example, [(value, abs(value)) for value in exact], codes)


def _pair_qparams(example: IntegerExample) -> tuple[tuple[Fraction, int], tuple[Fraction, int]]:
    return (Fraction(example.x_scale), example.x_zero_point), (Fraction(example.weight_scales[0]), example.zero_point)


def _pairs(function: Any, name: str, example: IntegerExample) -> tuple[list[int], list[int], list[int]]:
    """Call a function of two tensors, and return the codes of both tensors and of the result."""
    a = torch.tensor(example.x, dtype=torch.uint8)
    b = a.flip(0)
    codes = watched_call(function, name, a, example.x_scale, example.x_zero_point, b, example.weight_scales[0],
                         example.zero_point, example.scale, example.zero_point)
    _check_form(codes, (len(a) * (2 if name == "cat" else 1), a.shape[1]), name, example)
    return a.flatten().tolist(), b.flatten().tolist(), codes.flatten().tolist()


def _check_pairs(ops: IntegerOps, function: Any, name: str, example: IntegerExample,
                 join: Callable[[Fraction, Fraction], tuple[Fraction, Fraction]]) -> None:
    a, b, codes = _pairs(function, name, example)
    (a_scale, a_zero), (b_scale, b_zero) = _pair_qparams(example)
    _check_each(ops, name, example, [join((one - a_zero) * a_scale, (two - b_zero) * b_scale)
                                     for one, two in zip(a, b, strict=True)], codes)


def _check_each(ops: IntegerOps, name: str, example: IntegerExample, expected: list[tuple[Fraction, Fraction]],
                codes: list[int]) -> None:
    """Compare codes with exact values; each value comes with the size that its rounding errors are relative to."""
    for lane, ((value, size), code) in enumerate(zip(expected, codes, strict=True)):
        right = _correct_codes(value / Fraction(example.scale), example.zero_point, tolerance=ops.tolerance,
                       band=size / Fraction(example.scale) * _BAND)
        if code not in right:
            raise LawBroken(f"element {lane} of {name}, {example}", expected=f"code {right}", actual=f"code {code}")


@_integer_law(needs=("relu",))
def R4_relu(ops: IntegerOps, example: IntegerExample) -> None:
    """ReLU on codes is exactly max(code, zero_point)."""
    x = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    codes = watched_call(ops.relu, "relu", x, example.x_scale, example.x_zero_point)
    _check_form(codes, (256,), "relu", example)
    for code, found in zip(x.tolist(), codes.tolist(), strict=True):
        if found != max(code, example.x_zero_point):
            raise LawBroken(f"code {code}, zero_point {example.x_zero_point}", expected=max(code, example.x_zero_point),
                            actual=found)


@_integer_law(needs=("conv2d",))
def R5_padding(ops: IntegerOps, example: IntegerExample) -> None:
    """Padding uses the zero point, which is the code of zero, so padding the input explicitly gives the same.

    The two results must be equal, because they come from the same kernel. They are also compared with the exact sum as
    in R2.
    """
    code = example.x[0][0]
    x = torch.full((1, 1, 3, 3), code, dtype=torch.uint8)
    framed = torch.full((1, 1, 5, 5), example.x_zero_point, dtype=torch.uint8)
    framed[:, :, 1:4, 1:4] = code
    weight = torch.full((1, 1, 3, 3), example.weight[0][0], dtype=torch.int8)
    common = (weight, torch.tensor(example.weight_scales[:1]), torch.zeros(1))
    ends = (example.scale, example.zero_point)
    padded = watched_call(ops.conv2d, "conv2d", x, example.x_scale, example.x_zero_point, *common, 1, *ends)
    explicit = watched_call(ops.conv2d, "conv2d", framed, example.x_scale, example.x_zero_point, *common, 0, *ends)
    if not torch.equal(padded, explicit):
        raise LawBroken(f"a 3x3 convolution of code {code} with padding 1, {example}",
                        expected=f"{explicit.flatten().tolist()}, as with explicit padding",
                        actual=padded.flatten().tolist())
    _check_form(explicit, (1, 1, 3, 3), "conv2d", example)
    product = Fraction(example.x_scale) * Fraction(example.weight_scales[0]) / Fraction(example.scale)
    for taps, found in zip((4, 6, 4, 6, 9, 6, 4, 6, 4), explicit.flatten().tolist(), strict=True):
        exact = taps * (code - example.x_zero_point) * example.weight[0][0] * product
        right = _correct_codes(exact, example.zero_point, band=abs(exact) * _BAND, tolerance=ops.tolerance)
        if found not in right:
            raise LawBroken(f"{taps} taps of a 3x3 convolution of code {code}, {example}", expected=f"code {right}",
                            actual=f"code {found}")


def _check_form(codes: Tensor, shape: tuple[int, ...], name: str, example: IntegerExample) -> None:
    if tuple(codes.shape) != shape or codes.dtype != torch.uint8:
        raise LawBroken(f"{name}, {example}", expected=f"uint8 codes of shape {shape}",
                        actual=f"{codes.dtype} of shape {tuple(codes.shape)}")


@_integer_law()
def R6_batch_position(ops: IntegerOps, example: IntegerExample) -> None:
    """The output of a sample does not depend on the other samples in its batch at all."""
    whole = _linear(ops, example)
    for index, row in enumerate(example.x):
        alone = _linear(ops, dataclasses.replace(example, x=(row,)))
        if not torch.equal(whole[index:index + 1], alone):
            raise LawBroken(f"sample {index} of {len(example.x)}, {example}", expected=f"{alone.tolist()}, as alone",
                            actual=whole[index].tolist())


@_integer_law()
def R7_channel_permutation(ops: IntegerOps, example: IntegerExample) -> None:
    """Permuting the output channels of weight, scales and bias permutes the output, and changes nothing else."""
    permuted = dataclasses.replace(example, weight=example.weight[::-1], bias=example.bias[::-1],
                                   weight_scales=example.weight_scales[::-1])
    expected, actual = _linear(ops, example).flip(1), _linear(ops, permuted)
    if not torch.equal(expected, actual):
        raise LawBroken(f"output channels in reverse order, {example}", expected=expected.tolist(),
                        actual=actual.tolist())


@_integer_law()
def R8_zero_weights(ops: IntegerOps, example: IntegerExample) -> None:
    """If weights and bias are zero, every output is the zero point."""
    zeros = dataclasses.replace(example, bias=(), weight=tuple((0,) * len(row) for row in example.weight))
    codes = _linear(ops, zeros)
    if set(codes.flatten().tolist()) != {example.zero_point}:
        raise LawBroken(f"zero weights and bias, {example}", expected=f"code {example.zero_point}",
                        actual=codes.tolist())


LAWS: tuple[Law, ...] = (
    R1_exact_accumulation, R2_requantization, R3_linear, R4_add, R4_mul, R4_cat, R4_relu, R5_padding, R6_batch_position,
    R7_channel_permutation, R8_zero_weights)
