"""Laws of torch's quantized tensors: saving, float zero points, sub-byte codes, order (P22, C9, C10, R4)."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch.nn import functional

from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.ops import QParams, QuantizedTensors
from pytest_qat.properties.strategies import affine_examples

__all__ = ["LAWS"]


def _examples(ops: QuantizedTensors) -> SearchStrategy[AffineExample]:
    return affine_examples(0, 255, min_scale=2.0**-20, max_scale=2.0**20, allow_huge=False,
                           layouts=("contiguous",))


def _sweep(ops: QuantizedTensors) -> Iterator[AffineExample]:
    for scale, zero_point in ((1.0, 0), (0.5, 3), (0.1, 255)):
        yield AffineExample(qparams=QParams(scale=scale, zero_point=zero_point, quant_min=0, quant_max=255), size=12,
                            values=(0.0, 1.5, -2.5, 7.0, 100.0))


def _tensor_law() -> Callable[[Callable[..., None]], Law]:
    return law(kind=QuantizedTensors, example=AffineExample, examples=_examples, sweep=_sweep, share=0.5)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.qscheme() != other.qscheme() or one.dtype != other.dtype or not torch.equal(one.int_repr(),
                                                                                       other.int_repr()):
        return False
    if one.qscheme() == torch.per_tensor_affine:
        return bool(one.q_scale() == other.q_scale()) and bool(one.q_zero_point() == other.q_zero_point())
    return torch.equal(one.q_per_channel_scales(), other.q_per_channel_scales()) and (
        torch.equal(one.q_per_channel_zero_points(), other.q_per_channel_zero_points())
        and one.q_per_channel_axis() == other.q_per_channel_axis())


def _through_file(tensor: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save({"tensor": tensor}, file)
    file.seek(0)
    loaded: Any = torch.load(file, weights_only=True)
    return loaded["tensor"]  # type: ignore[no-any-return]


_COPIES: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("torch.save and torch.load", _through_file), ("deepcopy", copy.deepcopy), ("clone", torch.clone),
    ("pickle", lambda tensor: pickle.loads(pickle.dumps(tensor))))  # noqa: S301 - it was pickled just now


@_tensor_law()
def P22_serialization(ops: QuantizedTensors, example: AffineExample) -> None:
    """Saving and loading, pickling and copying keep codes, scale, zero point, axis and dtype exactly."""
    params, x = example.qparams, example.tensor()
    tensors = [torch.quantize_per_tensor(x, params.scale, params.zero_point, torch.quint8)]
    if x.numel():
        rows = torch.stack([x.flatten(), -x.flatten()])
        tensors.append(torch.quantize_per_channel(rows, torch.tensor([params.scale, 2 * params.scale]).double(),
                                                  torch.tensor([params.zero_point, 1]), 0, torch.quint8))
    for tensor in tensors:
        for method, copied in _COPIES:
            result = copied(tensor)
            if not _same(tensor, result):
                raise LawBroken(f"{tensor.qscheme()} after {method}, {example}", expected=tensor, actual=result)


@_tensor_law()
def C9_float_zero_points(ops: QuantizedTensors, example: AffineExample) -> None:
    """With float zero points per channel, codes are round(x / scale + zero_point), clamped.

    Unlike integer zero points, a float zero point is added before rounding. Next to a tie, within 2^-18 of the size of
    the terms, both neighbors are accepted.
    """
    params = example.qparams
    x = example.tensor().flatten()
    if not x.numel():
        return
    rows, zero_points = torch.stack([x, -x]), torch.tensor([params.zero_point / 255 * 15 + 0.3, 7.25])
    scales = torch.tensor([params.scale, params.scale / 2])
    codes = torch.quantize_per_channel(rows, scales, zero_points, 0, torch.quint8).int_repr().double()
    exact = rows.double() / scales.double()[:, None] + zero_points.double()[:, None]
    band = (exact.abs() + zero_points.double().abs()[:, None] + 1) * 2.0**-18
    low, high = ((exact + sign * band).round().clamp(0, 255) for sign in (-1, 1))
    wrong = (codes < low) | (codes > high)
    if bool(wrong.any()):
        row, lane = (int(index) for index in wrong.nonzero()[0])
        raise LawBroken(f"{rows[row, lane].item()!r} with zero point {zero_points[row].item()!r}, {params}",
                        expected=low[row, lane].item(), actual=codes[row, lane].item())


@_tensor_law()
def C10_packing(ops: QuantizedTensors, example: AffineExample) -> None:
    """Codes of 4 bits, packed two to a byte, are unpacked unchanged and in order, also for odd lengths."""
    x = example.tensor().flatten().abs()
    for length in {x.numel(), max(0, x.numel() - 1)} - {0}:
        values = torch.stack([x[:length], x[:length].flip(0)])
        scales, zero_points = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0])
        packed = torch.quantize_per_channel(values, scales, zero_points, 0, torch.quint4x2)
        codes = (packed.dequantize() / scales[:, None] + zero_points[:, None]).round()
        expected = (values / scales[:, None] + zero_points[:, None]).round().clamp(0, 15)
        if not torch.equal(codes, expected):
            raise LawBroken(f"codes of {values.tolist()} in quint4x2", expected=expected.tolist(),
                            actual=codes.tolist())


@_tensor_law()
def R4_order_preserving(ops: QuantizedTensors, example: AffineExample) -> None:
    """Max-pooling, reshaping, transposing and concatenating give the same codes before and after quantizing.

    These operations only select and move elements, so there is no tolerance.
    """
    params, x = example.qparams, example.tensor().flatten()
    count = x.numel() // 4 * 4
    if not count:
        return
    image = x[:count].reshape(1, 1, 2, -1)

    def quantized(tensor: Tensor) -> Tensor:
        return torch.quantize_per_tensor(tensor, params.scale, params.zero_point, torch.quint8)

    moves: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("max_pool2d", lambda value: functional.max_pool2d(value, 2)), ("reshape", lambda value: value.reshape(-1)),
        ("transpose", lambda value: value.transpose(2, 3)), ("cat", lambda value: torch.cat([value, value], 1)))
    for name, move in moves:
        before, after = quantized(move(image).contiguous()), move(quantized(image))
        if not torch.equal(before.int_repr(), after.int_repr().contiguous()):
            raise LawBroken(f"{name} of {image.tolist()}, {params}", expected=before.int_repr().tolist(),
                            actual=after.int_repr().tolist())


LAWS: tuple[Law, ...] = (P22_serialization, C9_float_zero_points, C10_packing, R4_order_preserving)
