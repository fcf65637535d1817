"""Laws of fake-quantize, forward and backward (F1 to F3, F5 to F8 and F12)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from pytest_qat.core.tracebacks import headline
from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.guarded import Watched
from pytest_qat.properties.law import Law, LawBroken, Raised, law
from pytest_qat.properties.laws.per_tensor import affine, scattered, shown
from pytest_qat.properties.ops import LearnableOps, QParams, QuantOps
from pytest_qat.properties.oracle import NEAR_TIE, codes_of, dequantized, stands_for, step, unclamped
from pytest_qat.properties.strategies import PLACES, affine_examples, place_of
from pytest_qat.properties.sweeps import grids, huge_grids, qparams_grid, tails, tie_grids

__all__ = ["LAWS"]

_CAST = {torch.float16: Fraction(1, 2**11), torch.bfloat16: Fraction(1, 2**8), torch.float64: Fraction(0)}
"""Relative error of casting a float32 result to each dtype: half a unit in the last place."""
_GROUP = 5
_ROUNDED = 2.0**-22


def _usual(ops: Any) -> SearchStrategy[AffineExample]:
    return affine_examples(ops.quant_min, ops.quant_max, min_scale=2.0**-20, max_scale=2.0**6, allow_huge=False,
                           layouts=("contiguous",))


def _fake_law(*, sweep: Callable[[Any], Iterable[Any]] = grids,
              examples: Callable[[Any], SearchStrategy[Any]] = affine) -> Callable[[Callable[..., None]], Law]:
    return law(kind=QuantOps, example=AffineExample, examples=examples, sweep=sweep, needs=("fake_quantize",))


def _plain_sweeps(ops: Any) -> Iterable[AffineExample]:
    return itertools.chain(grids(ops), huge_grids(ops))


def _all_sweeps(ops: Any) -> Iterable[AffineExample]:
    return itertools.chain(grids(ops), huge_grids(ops), tails(ops))


@_fake_law(examples=scattered, sweep=_all_sweeps)
def F1_forward(ops: QuantOps, example: AffineExample) -> None:
    """Fake-quantize gives the same as quantize followed by dequantize.

    The tolerance is `oracle.back_slack`; next to a tie, the values of both neighbors are accepted.
    """
    params = example.qparams
    numbers = Watched(ops).fake_quantize(example.tensor(), params).flatten().tolist()
    for lane, (x, number) in enumerate(zip(example.lanes, numbers, strict=True)):
        right = codes_of(x, params, ops.rounding)
        if not any(stands_for(number, code, params) for code in range(right.low, right.high + 1)):
            raise LawBroken(f"{shown(x)} at element {lane} of {len(example.lanes)}, {example.layout}, {params}",
                            expected=f"{float(dequantized(right.low, params))!r} (code {right})", actual=repr(number))


@_fake_law()
def F2_projection(ops: QuantOps, example: AffineExample) -> None:
    """Fake-quantizing a second time changes nothing, and fake-quantize never reverses the order of two values.

    There is no tolerance.
    """
    calls, params = Watched(ops), example.qparams
    ordered = dataclasses.replace(example, values=tuple(sorted(example.values)), size=0)
    once = calls.fake_quantize(ordered.tensor(), params)
    twice = calls.fake_quantize(once.detach(), params)
    for x, one, two in zip(ordered.lanes, once.flatten().tolist(), twice.flatten().tolist(), strict=True):
        if one != two:
            raise LawBroken(f"{shown(x)} fake-quantized twice, {params}", expected=repr(one), actual=repr(two))
    for (x, one), (y, other) in itertools.pairwise(zip(ordered.lanes, once.flatten().tolist(), strict=True)):
        if not one <= other:
            raise LawBroken(f"{shown(x)} and the larger {shown(y)}, {params}",
                            expected=f"at least {one!r} for the larger", actual=repr(other))


@_fake_law(examples=_usual, sweep=tie_grids)
def F3_input_dtype(ops: QuantOps, example: AffineExample) -> None:
    """float16, bfloat16 and float64 keep their dtype and get the codes of float32, or raise an exception.

    The tolerance is one cast of the float32 result and `oracle.back_slack`.
    """
    params = example.qparams
    if not 2.0**-20 <= params.scale <= 2.0**6:
        return  # float16 cannot represent the codes or their values
    for dtype, cast in _CAST.items():
        x = example.tensor(dtype)
        try:
            result = Watched(ops).fake_quantize(x, params)
        except Raised:
            continue
        for value, number in zip(x.double().flatten().tolist(), result.double().flatten().tolist(), strict=True):
            right = codes_of(value, params, ops.rounding)
            if max(abs(dequantized(code, params)) for code in right) > torch.finfo(dtype).max:
                continue
            tiny = Fraction(2)**-24 if dtype == torch.float16 else Fraction(0)  # the smallest float16 number
            if not math.isfinite(number) or not any(
                    stands_for(number, code, params, relative=cast)
                    or abs(Fraction(number) - dequantized(code, params)) <= tiny for code in right):
                raise LawBroken(f"{shown(value)} as {dtype}, {params}",
                                expected=f"{float(dequantized(right.low, params))!r} (code {right})",
                                actual=repr(number))


def _upstream(x: Tensor) -> Tensor:
    """Return a gradient of powers of two, so that products are exact, which differs from element to element."""
    pattern = torch.tensor([1.0, -2.0, 0.5, 4.0, -0.25], dtype=x.dtype)
    return pattern.repeat(x.numel() // _GROUP + 1)[:x.numel()].reshape(x.shape)


@_fake_law(sweep=_plain_sweeps)
def F5_gradient_mask(ops: QuantOps, example: AffineExample) -> None:
    """The gradient passes where the code is not clamped, including both ends, and is zero elsewhere.

    This is the clipped straight-through estimator: dY * 1[quant_min <= round(x / scale) + zero_point <= quant_max].
    Next to a tie at an end of the range, both are accepted. The tolerance is 2^-22, for kernels that multiply by
    1 / scale and by scale.
    """
    params, x = example.qparams, example.tensor()
    upstream = _upstream(x)
    gradient = Watched(ops).gradient(x, params, upstream).flatten().tolist()
    for value, incoming, found in zip(example.lanes, upstream.flatten().tolist(), gradient, strict=True):
        codes = unclamped(value, params, ops.rounding)
        inside = {params.quant_min <= code <= params.quant_max for code in codes}
        if not any(abs(found - incoming * float(one)) <= abs(incoming) * _ROUNDED for one in inside):
            raise LawBroken(f"gradient {incoming} at {shown(value)}, whose code before clamping is {codes}, {params}",
                            expected=incoming if True in inside else 0.0, actual=found)


@_fake_law(sweep=huge_grids)
def F6_gradient_form(ops: QuantOps, example: AffineExample) -> None:
    """The gradient has the shape and dtype of x, and is finite for finite x."""
    x = example.tensor()
    gradient = Watched(ops).gradient(x, example.qparams, torch.ones_like(x)).flatten().tolist()
    for value, found in zip(example.lanes, gradient, strict=True):
        if not math.isfinite(found):
            raise LawBroken(f"gradient 1 at {shown(value)}, {example.qparams}", expected="a finite number",
                            actual=found)


@_fake_law()
def F8_gradient_linear(ops: QuantOps, example: AffineExample) -> None:
    """The gradient of x is proportional to that of the output, for factors of 2, -1 and 0.

    The gradient is not compared with finite differences, which do not match a straight-through estimator because the
    forward pass is a step function. There is no tolerance, because the factors are powers of two.
    """
    calls, x, params = Watched(ops), example.tensor(), example.qparams
    upstream = _upstream(x)
    ones = torch.ones((), dtype=x.dtype)
    if not torch.equal(calls.gradient(x, params, ones.expand(x.shape)), calls.gradient(x, params, torch.ones_like(x))):
        raise LawBroken(f"an expanded gradient of ones, as the backward pass of sum() gives it, {params}",
                        expected="the same gradient as for a tensor of ones", actual="a different gradient")
    once = calls.gradient(x, params, upstream)
    for factor in (-1.0, 2.0, 0.0):
        scaled = calls.gradient(x, params, upstream * factor)
        if not torch.equal(scaled, once * factor):
            lane = int((scaled != once * factor).flatten().nonzero()[0])
            raise LawBroken(f"{factor} times the gradient at {shown(example.lanes[lane])}, {params}",
                            expected=(once * factor).flatten()[lane].item(), actual=scaled.flatten()[lane].item())


@_fake_law(sweep=tails)
def F12_nan(ops: QuantOps, example: AffineExample) -> None:
    """Fake-quantize gives NaN the value of the code that quantize gives it, or keeps NaN.

    This makes sure that training simulates what ships. The law is not tested if quantize raises an exception for NaN.
    """
    params = example.qparams
    x = dataclasses.replace(example, values=(math.nan,), size=max(1, len(example.lanes))).tensor()
    try:
        codes = Watched(ops).quantize(x, params)
    except Raised:
        return
    numbers = Watched(ops).fake_quantize(x, params).flatten().tolist()
    for code, number in zip(codes.flatten().tolist(), numbers, strict=True):
        if not math.isnan(number) and not stands_for(number, code, params):
            raise LawBroken(f"NaN fake-quantized, {len(numbers)} elements, {params}",
                            expected=f"NaN, or {float(dequantized(code, params))!r} (code {code}, as from quantize)",
                            actual=repr(number))


def _learnable_grids(ops: LearnableOps) -> Iterable[AffineExample]:
    for params in qparams_grid(ops):
        first, last = ops.quant_min - params.zero_point, ops.quant_max - params.zero_point
        if 2.0**-20 <= params.scale <= 2.0**6:
            yield AffineExample(qparams=params, values=tuple(
                place_of(code, place, params.scale) for code in (first - 2, first, 0, 1, last, last + 2)
                for place in PLACES))


@law(kind=LearnableOps, example=AffineExample, examples=_usual, sweep=_learnable_grids)
def F7_learnable(ops: LearnableOps, example: AffineExample) -> None:
    """Scale and zero point get the gradients of learned step size quantization (LSQ).

    The forward pass gives the values of the codes, and x gets the clipped straight-through gradient. The gradient of
    the scale is dY * (quant_min - z) or dY * (quant_max - z) where the code is clamped, and dY * (back - x) / scale
    elsewhere. That of the zero point is -scale * dY where the code is clamped, and 0 elsewhere. Both are summed and
    multiplied by grad_factor (Esser et al. 2020, and the reference in torch's tests). Elements next to a tie are
    skipped. The tolerance is 2^-18 of the sum of magnitudes, for the float32 sums.
    """
    params = example.qparams
    kept = tuple(x for x in example.lanes if not _next_to_tie(x, params))
    if not kept:
        return
    x = torch.tensor(kept, requires_grad=True)
    scale = torch.tensor([params.scale], requires_grad=True)
    zero_point = torch.tensor([float(params.zero_point)], requires_grad=True)
    upstream, factor = _upstream(x.detach()), 0.5
    try:
        result = ops.fake_quantize(x, scale, zero_point, params.quant_min, params.quant_max, factor)
        result.backward(upstream)
    except Exception as error:
        raise LawBroken(f"fake_quantize raised {type(error).__name__}: {headline(error)}", expected="gradients",
                        actual=type(error).__name__) from error
    grad_scale = [_scale_part(value, params) * Fraction(dy) for value, dy in zip(kept, upstream.tolist(), strict=True)]
    unclipped = [params.quant_min <= unclamped(value, params).low <= params.quant_max for value in kept]
    grad_zero = [Fraction(0) if inside else -Fraction(params.scale) * Fraction(dy)
                 for inside, dy in zip(unclipped, upstream.tolist(), strict=True)]
    for value, number, dy, inside, found in zip(
            kept, result.flatten().tolist(), upstream.tolist(), unclipped,
            [math.nan] * len(kept) if x.grad is None else x.grad.tolist(), strict=True):
        if not stands_for(number, codes_of(value, params).low, params):
            raise LawBroken(f"{shown(value)} fake-quantized, {params}", actual=repr(number),
                            expected=repr(float(dequantized(codes_of(value, params).low, params))))
        if not abs(found - dy * float(inside)) <= abs(dy) * _ROUNDED:
            raise LawBroken(f"gradient {dy} at {shown(value)}, {params}", expected=dy * float(inside), actual=found)
    for what, gradient, parts in (("scale", scale.grad, grad_scale), ("zero_point", zero_point.grad, grad_zero)):
        exact, size = sum(parts) * Fraction(factor), sum(map(abs, parts)) * Fraction(factor)
        actual = math.nan if gradient is None else float(gradient)
        slack = size / 2**18 + Fraction(len(kept), 2**16)  # the rounding of the forward pass affects (back - x) / scale
        if not math.isfinite(actual) or abs(Fraction(actual) - exact) > slack:
            raise LawBroken(f"gradient of {what} at {[value.hex() for value in kept]}, {params}",
                            expected=repr(float(exact)), actual=repr(actual))


def _next_to_tie(x: float, params: QParams) -> bool:
    away = abs(abs(step(x, params.scale)) % 1 - Fraction(1, 2))
    return away <= abs(step(x, params.scale)) * NEAR_TIE


def _scale_part(x: float, params: QParams) -> Fraction:
    code = unclamped(x, params).low
    if code < params.quant_min:
        return Fraction(params.quant_min - params.zero_point)
    if code > params.quant_max:
        return Fraction(params.quant_max - params.zero_point)
    return (dequantized(code, params) - Fraction(x)) / Fraction(params.scale)


LAWS: tuple[Law, ...] = (F1_forward, F2_projection, F3_input_dtype, F5_gradient_mask, F6_gradient_form, F7_learnable,
                         F8_gradient_linear, F12_nan)
