"""What the laws of one tensor share: which examples they are tried on, and how an implementation is asked."""

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
    """Values on and beside the grid of codes, with any scale and zero point."""
    return affine_examples(ops.quant_min, ops.quant_max, allow_huge=False, layouts=_PLAIN)


def scattered(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """The same in every memory layout; only the laws about layouts ask for that: one cause, one failure."""
    return affine_examples(ops.quant_min, ops.quant_max, allow_huge=False)


def huge(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """The same, with values far outside of the range too."""
    return affine_examples(ops.quant_min, ops.quant_max, layouts=_PLAIN)


def usual(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """The same with moderate scales, whose multiples are float32 numbers, too."""
    return affine_examples(ops.quant_min, ops.quant_max, min_scale=2.0**-40, max_scale=2.0**40, allow_huge=False,
                           layouts=_PLAIN)


def powers(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """The same with powers of two as scales."""
    return affine_examples(ops.quant_min, ops.quant_max, scheme="power_of_two", allow_huge=False,
                           layouts=_PLAIN)


def params_alone(ops: QuantOps) -> SearchStrategy[AffineExample]:
    """Scales and zero points alone."""
    each = qparams(quant_min=ops.quant_min, quant_max=ops.quant_max)
    return each.map(lambda params: AffineExample(qparams=params, values=(0.0,)))


def each_params(ops: QuantOps) -> Iterator[AffineExample]:
    """Yield a few scales and zero points."""
    for params in qparams_grid(ops):
        yield AffineExample(qparams=params, values=(0.0,), size=70)


def affine_law(*, examples: Callable[[Any], SearchStrategy[Any]] = affine,
                sweep: Callable[[Any], Iterable[Any]] = grids,
                share: float = 1.0, threaded: bool = False) -> Callable[[Callable[..., None]], Law]:
    """Make a law of one tensor."""
    return law(kind=QuantOps, example=AffineExample, examples=examples, sweep=sweep, share=share, threaded=threaded)


def shown(x: float) -> str:
    """Return a value as it is printed: as read, and exactly."""
    return f"{x!r} ({x.hex()})"


def lanes(ops: QuantOps, example: AffineExample) -> Iterator[tuple[float, int]]:
    """Yield each element's value and code."""
    codes = Watched(ops).quantize(example.tensor(), example.qparams).flatten().tolist()
    yield from zip(example.lanes, codes, strict=True)


def round_trips(ops: QuantOps, example: AffineExample) -> Iterator[tuple[float, int, float]]:
    """Yield each element's value, code and the number that comes back."""
    calls = Watched(ops)
    codes = calls.quantize(example.tensor(), example.qparams)
    back = calls.dequantize(codes, example.qparams)
    yield from zip(example.lanes, codes.flatten().tolist(), back.flatten().tolist(), strict=True)


def check_codes(ops: QuantOps, example: AffineExample) -> None:
    """Compare each code with the exact ones."""
    for lane, (x, code) in enumerate(lanes(ops, example)):
        check_code(x, code, example.qparams, ops.rounding,
                   f"at element {lane} of {len(example.lanes)}, {example.layout}, {example.qparams}")


def check_code(x: float, code: int, params: QParams, rounding: str, where: str) -> None:
    """Compare a code with the exact ones."""
    right = codes_of(x, params, rounding)
    if code not in right:
        raise LawBroken(f"{shown(x)} {where}", expected=f"code {right}", actual=f"code {code}")


def check_back(back: float, code: int, params: QParams, where: str) -> None:
    """Compare what a code comes back as with what it stands for."""
    if not stands_for(back, code, params):
        raise LawBroken(f"dequantize of code {code}, {where}", expected=repr(float(dequantized(code, params))),
                        actual=repr(back))


def check_saturated(x: float, code: int, params: QParams, where: str) -> None:
    """Where a value lies three ranges outside, expect the end's code."""
    expected = params.quant_max if x > 0 else params.quant_min
    if abs(step(x, params.scale)) > 3 * (params.quant_max - params.quant_min) and code != expected:
        raise LawBroken(f"{shown(x)} {where}", expected=f"code {expected}", actual=f"code {code}")


def all_codes(params: QParams) -> list[int]:
    """Return all codes, or where there are more than 65,536 a thousand of those around the zero point."""
    low, high = max(params.quant_min, params.zero_point - WIDE), min(params.quant_max, params.zero_point + WIDE)
    return list(range(low, high + 1, 1 if high - low < 2**16 else (high - low) // 2**10))
