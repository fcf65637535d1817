"""What the per-tensor laws share: the examples that they are tested on, and functions that compare results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hypothesis.strategies import SearchStrategy

from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.guarded import Watched
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.ops import QParams, QuantOps
from pytest_qat.properties.oracle import codes_of, dequantized, stands_for, step
from pytest_qat.properties.strategies import WIDE, affine_examples, qparams
from pytest_qat.properties.sweeps import grids, qparams_grid

__all__ = ["affine", "affine_law", "all_codes", "check_back", "check_code", "check_codes", "check_saturated",
           "each_params", "huge", "lanes", "params_alone", "powers", "round_trips", "scattered", "shown", "usual"]

_PLAIN = ("contiguous",)


def affine(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Return a strategy of values at, next to and between the codes, with any scale and zero point."""
    return affine_examples(ops.quant_min, ops.quant_max, allow_huge=False, layouts=_PLAIN)


def scattered(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Return the same in every memory layout; only laws about layouts use it, so that one bug breaks few laws."""
    return affine_examples(ops.quant_min, ops.quant_max, allow_huge=False)


def huge(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Return the same as `affine`, including values far outside the range."""
    return affine_examples(ops.quant_min, ops.quant_max, layouts=_PLAIN)


def usual(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Return the same as `affine` with moderate scales, so that scaled values and scales are float32 numbers too."""
    return affine_examples(ops.quant_min, ops.quant_max, min_scale=2.0**-40, max_scale=2.0**40, allow_huge=False,
                           layouts=_PLAIN)


def powers(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Return the same as `affine` with scales that are powers of two."""
    return affine_examples(ops.quant_min, ops.quant_max, scheme="power_of_two", allow_huge=False,
                           layouts=_PLAIN)


def params_alone(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Return a strategy of scales and zero points without values."""
    each = qparams(quant_min=ops.quant_min, quant_max=ops.quant_max)
    return each.map(lambda params: AffineExample(qparams=params, values=(0.0,)))


def each_params(ops: QuantOps) -> Iterator[AffineExample]:
    """Yield a few scales and zero points."""
    for params in qparams_grid(ops):
        yield AffineExample(qparams=params, values=(0.0,), size=70)


def affine_law(*, examples: Callable[[Any], SearchStrategy[Any]] = affine,
                sweep: Callable[[Any], Iterable[Any]] = grids,
                share: float = 1.0, threaded: bool = False) -> Callable[[Callable[..., None]], Law]:
    """Return a decorator that makes a per-tensor law; see `Law` for the arguments."""
    return law(kind=QuantOps, example=AffineExample, examples=examples, sweep=sweep, share=share, threaded=threaded)


def shown(x: float) -> str:
    """Return a value as text, in decimal and in exact hexadecimal form."""
    return f"{x!r} ({x.hex()})"


def lanes(ops: QuantOps, example: AffineExample) -> Iterator[tuple[float, int]]:
    """Yield the value and the code of each element."""
    codes = Watched(ops).quantize(example.tensor(), example.qparams).flatten().tolist()
    yield from zip(example.lanes, codes, strict=True)


def round_trips(ops: QuantOps, example: AffineExample) -> Iterator[tuple[float, int, float]]:
    """Yield the value, the code and the dequantized value of each element."""
    calls = Watched(ops)
    codes = calls.quantize(example.tensor(), example.qparams)
    back = calls.dequantize(codes, example.qparams)
    yield from zip(example.lanes, codes.flatten().tolist(), back.flatten().tolist(), strict=True)


def check_codes(ops: QuantOps, example: AffineExample) -> None:
    """Check that the code of each element is correct."""
    for lane, (x, code) in enumerate(lanes(ops, example)):
        check_code(x, code, example.qparams, ops.rounding,
                   f"at element {lane} of {len(example.lanes)}, {example.layout}, {example.qparams}")


def check_code(x: float, code: int, params: QParams, rounding: str, where: str) -> None:
    """Check that a code is correct for a value."""
    right = codes_of(x, params, rounding)
    if code not in right:
        raise LawBroken(f"{shown(x)} {where}", expected=f"code {right}", actual=f"code {code}")


def check_back(back: float, code: int, params: QParams, where: str) -> None:
    """Check that a dequantized code has the value of the code."""
    if not stands_for(back, code, params):
        raise LawBroken(f"dequantize of code {code}, {where}", expected=repr(float(dequantized(code, params))),
                        actual=repr(back))


def check_saturated(x: float, code: int, params: QParams, where: str) -> None:
    """Check that a value more than three ranges away from zero gets the code at the end of the range."""
    expected = params.quant_max if x > 0 else params.quant_min
    if abs(step(x, params.scale)) > 3 * (params.quant_max - params.quant_min) and code != expected:
        raise LawBroken(f"{shown(x)} {where}", expected=f"code {expected}", actual=f"code {code}")


def all_codes(params: QParams) -> list[int]:
    """Return all codes; if there are more than 65,536, a thousand of those around the zero point."""
    low, high = max(params.quant_min, params.zero_point - WIDE), min(params.quant_max, params.zero_point + WIDE)
    return list(range(low, high + 1, 1 if high - low < 2**16 else (high - low) // 2**10))
