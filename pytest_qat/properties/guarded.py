"""Calls of a user's functions, with checks: exceptions, changed arguments and results of a wrong form break the law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.tracebacks import headline, place_of
from pytest_qat.properties.law import LawBroken, Raised
from pytest_qat.properties.ops import ChannelQParams, QParams, QuantOps

__all__ = ["Watched", "same", "watched_call"]


def watched_call(function: Any, name: str, *arguments: Any) -> Tensor:
    """Call a function and return its tensor.

    Raises:
        Raised: the function raised an exception.
        LawBroken: the function did not return a tensor, or changed an argument.
    """
    before = [value.detach().clone() if isinstance(value, Tensor) else value for value in arguments]
    try:
        result = function(*arguments)
    except Exception as error:
        raise Raised(f"{name} raised {type(error).__name__}: {headline(error)} ({place_of(error)})",
                        expected="a tensor", actual=type(error).__name__) from error
    for old, new in zip(before, arguments, strict=True):
        if isinstance(new, Tensor) and not same(old, new):
            raise LawBroken(f"{name} changed its argument", expected=old.tolist(), actual=new.tolist())
    if not isinstance(result, Tensor):
        raise LawBroken(f"{name} returned {type(result).__name__}", expected="a torch.Tensor",
                        actual=type(result).__name__)
    return result


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and values; NaN equals NaN, and -0.0 equals 0.0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_floating_point():
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    return bool((one == other).all())


class Watched:
    """The functions of an implementation, with a check of the shape and dtype of each result.

    Args:
        ops: The implementation.
    """

    def __init__(self, ops: QuantOps) -> None:
        self.ops = ops

    def params(self, *, scale: float = 1.0, zero_point: int = 0) -> QParams:
        """Return qparams with the implementation's range of codes."""
        return QParams(scale=scale, zero_point=zero_point, quant_min=self.ops.quant_min, quant_max=self.ops.quant_max)

    def quantize(self, x: Tensor, params: QParams) -> Tensor:
        """Return the codes of x, as an integer tensor of the same shape.

        Raises:
            LawBroken: the call failed, or the result has the wrong type, shape or dtype.
        """
        codes = watched_call(self.ops.quantize, "quantize", x, params.scale, params.zero_point, params.quant_min,
                             params.quant_max)
        return _codes(codes, x, name="quantize")

    def dequantize(self, codes: Tensor, params: QParams) -> Tensor:
        """Return the float32 values of codes.

        Raises:
            LawBroken: the call failed, or the result has the wrong type, shape or dtype.
        """
        return _floats(watched_call(self.ops.dequantize, "dequantize", codes, params.scale, params.zero_point), codes,
                       name="dequantize", dtype=torch.float32)

    def codes(self, values: list[int], params: QParams) -> Tensor:
        """Return codes as a tensor of the dtype that the implementation's `quantize` returns."""
        like = self.quantize(torch.zeros(1, dtype=torch.float32), params)
        return torch.tensor(values, dtype=torch.int64).to(like.dtype)

    def fake_quantize(self, x: Tensor, params: QParams) -> Tensor:
        """Return the fake-quantized values of x, in its shape and dtype.

        Raises:
            LawBroken: the call failed, or the result has the wrong type, shape or dtype.
        """
        result = watched_call(self.ops.fake_quantize, "fake_quantize", x, params.scale, params.zero_point,
                              params.quant_min, params.quant_max)
        return _floats(result, x, name="fake_quantize", dtype=x.dtype)

    def gradient(self, x: Tensor, params: QParams, upstream: Tensor) -> Tensor:
        """Return the gradient of sum(fake_quantize(x) * upstream) at x.

        Raises:
            LawBroken: the call failed, no gradient reaches x, or the gradient has the wrong shape or dtype.
        """
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        result = self.fake_quantize(leaf, params)
        if not result.requires_grad:
            raise LawBroken("the result of fake_quantize has no gradient", expected="a differentiable tensor",
                            actual="one with requires_grad=False")
        try:
            result.backward(upstream)
        except Exception as error:
            raise LawBroken(f"the backward pass of fake_quantize raised {type(error).__name__}: {headline(error)}",
                            expected="a gradient", actual=type(error).__name__) from error
        if leaf.grad is None:
            raise LawBroken("no gradient reaches x through fake_quantize", expected="a gradient", actual="none")
        return _floats(leaf.grad, x, name="the gradient of fake_quantize", dtype=x.dtype)

    def quantize_channels(self, x: Tensor, params: ChannelQParams, *,
                          zero_dtype: torch.dtype = torch.int64) -> Tensor:
        """Return the codes of a tensor that is quantized per channel.

        Raises:
            LawBroken: the call failed, or the result has the wrong type, shape or dtype.
        """
        codes = watched_call(self.ops.quantize_per_channel, "quantize_per_channel", x,
                             *_along(params, zero_dtype), params.axis, params.quant_min, params.quant_max)
        return _codes(codes, x, name="quantize_per_channel")

    def dequantize_channels(self, codes: Tensor, params: ChannelQParams, *,
                            zero_dtype: torch.dtype = torch.int64) -> Tensor:
        """Return the float32 values of codes that are quantized per channel.

        Raises:
            LawBroken: the call failed, or the result has the wrong type, shape or dtype.
        """
        result = watched_call(self.ops.dequantize_per_channel, "dequantize_per_channel", codes,
                              *_along(params, zero_dtype), params.axis)
        return _floats(result, codes, name="dequantize_per_channel", dtype=torch.float32)


def _along(params: ChannelQParams, zero_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.tensor(params.scales, dtype=torch.float32), torch.tensor(params.zero_points, dtype=zero_dtype)


def _codes(result: Tensor, x: Tensor, *, name: str) -> Tensor:
    if result.is_quantized:
        raise LawBroken(f"{name} returned a quantized tensor", expected="codes of an integer dtype",
                        actual=f"{result.dtype}; return .int_repr()")
    if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
        raise LawBroken(f"{name} returned {result.dtype}", expected="codes of an integer dtype", actual=result.dtype)
    return _shaped(result, x, name=name)


def _floats(result: Tensor, like: Tensor, *, name: str, dtype: torch.dtype) -> Tensor:
    if result.dtype != dtype:
        raise LawBroken(f"{name} returned {result.dtype}", expected=dtype, actual=result.dtype)
    return _shaped(result, like, name=name)


def _shaped(result: Tensor, like: Tensor, *, name: str) -> Tensor:
    if result.shape != like.shape:
        raise LawBroken(f"{name} returned the shape {tuple(result.shape)}", expected=tuple(like.shape),
                        actual=tuple(result.shape))
    return result
