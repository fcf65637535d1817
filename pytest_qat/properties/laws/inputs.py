"""Laws of quantize about its inputs: infinities, huge numbers, invalid qparams, dtypes, layouts (P13 to P20)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_qat.core.forked import HANGS, signal_of
from pytest_qat.core.torch_state import threads
from pytest_qat.properties.examples import AffineExample, laid_out
from pytest_qat.properties.guarded import Watched
from pytest_qat.properties.law import Law, LawBroken, Raised
from pytest_qat.properties.laws.per_tensor import (
    affine_law,
    check_code,
    check_codes,
    check_saturated,
    each_params,
    huge,
    lanes,
    params_alone,
    scattered,
    shown,
    usual,
)
from pytest_qat.properties.ops import QParams, QuantOps
from pytest_qat.properties.sweeps import huge_grids, tails, tie_grids

__all__ = ["LAWS"]

_THREADED = 100_003
"""An odd number of elements, more than torch gives to one thread (32,768)."""


@affine_law(sweep=tails)
def P13_nan_and_infinity(ops: QuantOps, example: AffineExample) -> None:
    """Infinities get the codes at the ends of the range, and NaN gets what `nan` promises, in every vector lane.

    NaN is not tested if `nan` is None.
    """
    calls, params = Watched(ops), example.qparams
    size = max(1, len(example.lanes))
    for x, expected in ((math.inf, params.quant_max), (-math.inf, params.quant_min)):
        _check_filled(calls, example, size, x, expected)
    if ops.nan == "raises":
        for lane, mixed in _with_one_replaced(example, math.nan):
            try:
                codes = calls.quantize(mixed, params)
            except Raised:
                continue
            raise LawBroken(f"NaN at element {lane} of {mixed.numel()}, {params}", expected="an exception",
                            actual=codes.tolist())
    elif ops.nan is not None:
        _check_filled(calls, example, size, math.nan, int(getattr(params, ops.nan)))


def _with_one_replaced(example: AffineExample, value: float) -> Iterator[tuple[int, Tensor]]:
    """Yield an index and the example's tensor with that element replaced: the first, the middle and the last one."""
    plain = dataclasses.replace(example, layout="contiguous").tensor()
    for lane in sorted({0, plain.numel() // 2, plain.numel() - 1}) if plain.numel() else ():
        replaced = plain.clone()
        replaced[lane] = value
        yield lane, replaced


def _check_filled(calls: Watched, example: AffineExample, size: int, x: float, expected: int) -> None:
    filled = dataclasses.replace(example, values=(x,), size=size, layout="contiguous")
    codes = calls.quantize(filled.tensor(), example.qparams)
    if set(codes.flatten().tolist()) != {expected}:
        wrong = [lane for lane, code in enumerate(codes.flatten().tolist()) if code != expected]
        raise LawBroken(f"{x} quantized, {size} elements, {example.qparams}",
                        expected=f"code {expected}",
                        actual=f"{codes.flatten()[wrong[0]].item()} at element {wrong[0]}")
    clean = calls.quantize(dataclasses.replace(example, layout="contiguous").tensor(), example.qparams)
    for place, mixed in _with_one_replaced(example, x):
        right = clean.clone()
        right[place] = expected
        found = calls.quantize(mixed, example.qparams)
        if not torch.equal(right, found):
            lane = int((right != found).nonzero()[0])
            raise LawBroken(f"{x} at element {place} of {mixed.numel()}, {example.qparams}",
                            expected=f"code {right[lane].item()} at element {lane}", actual=found[lane].item())


@affine_law(examples=huge, sweep=huge_grids)
def P14_huge_finite(ops: QuantOps, example: AffineExample) -> None:
    """Finite values up to float32's largest number saturate with every valid scale; they never wrap around."""
    for x, code in lanes(ops, example):
        check_saturated(x, code, example.qparams, f"with {example.qparams}")


_BAD_SCALES = (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 2.0**-140)


def _bad_params(ops: QuantOps) -> Iterator[AffineExample]:
    low, high = ops.quant_min, ops.quant_max
    middle = min(max(0, low), high)
    pairs = [(scale, middle) for scale in _BAD_SCALES] + [(1.0, low - 1), (1.0, high + 1)]
    for scale, zero_point in pairs:
        params = QParams(scale=scale, zero_point=zero_point, quant_min=low, quant_max=high)
        yield AffineExample(qparams=params, values=(0.0, 1.0, -3.5), size=37)


@affine_law(examples=lambda ops: st.sampled_from(list(_bad_params(ops))), sweep=_bad_params, share=0)
def P15_scale_domain(ops: QuantOps, example: AffineExample) -> None:
    """Invalid qparams raise an exception or give codes within the range; they never crash the process.

    They are scales of 0, below 0, NaN, infinite or subnormal, and zero points outside the codes. The call is first made
    in a child process.
    """
    params, x = example.qparams, example.tensor()
    died = signal_of(_call_of(ops, params, x))
    if died == HANGS and signal_of(_call_of(ops, dataclasses.replace(params, scale=1.0, zero_point=max(
            0, params.quant_min)), x)) == HANGS:
        return  # it hangs in every forked process, so testing it would put this process at risk
    if died is not None:
        raise LawBroken(f"quantize, {params}", expected="an exception, or codes within the range",
                        actual=f"the process {died if died == HANGS else f'died of {died}'}")
    try:
        codes = Watched(ops).quantize(x, params)
    except Raised:
        return
    outside = [code for code in codes.flatten().tolist() if not params.quant_min <= code <= params.quant_max]
    if outside:
        raise LawBroken(f"quantize, {params}", expected="an exception, or codes within the range", actual=outside[0])


def _call_of(ops: QuantOps, params: QParams, x: Tensor) -> Callable[[], object]:
    return lambda: ops.quantize(x.clone(), params.scale, params.zero_point, params.quant_min, params.quant_max)


@affine_law(examples=usual, sweep=tie_grids)
def P16_input_dtype(ops: QuantOps, example: AffineExample) -> None:
    """float16, bfloat16 and float64 inputs get the codes of the same values in float32, or raise an exception.

    Values are first rounded to the dtype. Next to a tie both neighbors are accepted, as float64 kernels round less.
    """
    params = example.qparams
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = example.tensor(dtype)
        lanes = x.double().flatten().tolist()
        try:
            codes = Watched(ops).quantize(x, params)
        except Raised:
            continue
        for value, code in zip(lanes, codes.flatten().tolist(), strict=True):
            check_code(value, code, params, ops.rounding, f"as {dtype}, {params}")


@affine_law(examples=scattered, sweep=tails)
def P17_layout(ops: QuantOps, example: AffineExample) -> None:
    """The code of an element does not depend on its neighbors, its position or the memory layout of the tensor.

    The same applies to the dequantized value. There is no tolerance.
    """
    calls, params = Watched(ops), example.qparams
    alone = {x.hex(): int(calls.quantize(torch.tensor([x], dtype=torch.float32), params)) for x in example.values}
    for lane, (x, code) in enumerate(lanes(ops, example)):
        if code != alone[x.hex()]:
            raise LawBroken(f"{shown(x)} at element {lane} of {len(example.lanes)}, {example.layout}, {params}",
                            expected=f"{alone[x.hex()]}, as on its own", actual=code)
    codes = calls.quantize(dataclasses.replace(example, layout="contiguous").tensor(), params)
    plain, scattered_back = (calls.dequantize(laid_out(codes, layout), params).flatten()
                             for layout in ("contiguous", example.layout))
    if not torch.equal(plain, scattered_back):
        lane = int((plain != scattered_back).nonzero()[0])
        raise LawBroken(f"code {codes[lane].item()} dequantized at element {lane} of {len(plain)}, {example.layout}, "
                        f"{params}", expected=f"{plain[lane].item()!r}, as in a contiguous tensor",
                        actual=scattered_back[lane].item())


@affine_law(examples=usual, sweep=lambda ops: itertools.islice(tails(ops), 3), share=0, threaded=True)
def P18_threads(ops: QuantOps, example: AffineExample) -> None:
    """Large tensors get the same codes with one thread and with several threads."""
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


@affine_law(examples=params_alone, sweep=each_params, share=0.2)
def P19_sizes(ops: QuantOps, example: AffineExample) -> None:
    """Quantize and dequantize keep the shape of empty tensors and of tensors without axes."""
    calls = Watched(ops)
    for shape in ((0,), (0, 3), (2, 0, 3), ()):
        codes = calls.quantize(torch.ones(shape, dtype=torch.float32), example.qparams)
        calls.dequantize(codes, example.qparams)


@affine_law()
def P20_cross_implementation(ops: QuantOps, example: AffineExample) -> None:
    """Codes are those of the exact specification, so that implementations agree.

    Next to a tie, as `oracle` defines it, both neighbors are accepted.
    """
    check_codes(ops, example)


LAWS: tuple[Law, ...] = (
    P13_nan_and_infinity, P14_huge_finite, P15_scale_domain, P16_input_dtype, P17_layout, P18_threads, P19_sizes,
    P20_cross_implementation)
