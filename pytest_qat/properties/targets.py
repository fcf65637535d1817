"""The implementations that laws test: those of PyTorch and torchao, and those that a user's reference names."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantize, FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver, observer
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - importing it registers the ops

from pytest_qat.core.forked import signal_of
from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.core.torch_state import quantized_engine
from pytest_qat.errors import InvalidCase
from pytest_qat.properties.laws.nets import LAYERS
from pytest_qat.properties.ops import (
    FakeQuantizeConfig,
    FakeQuantizeModules,
    FlowOps,
    IntegerOps,
    LearnableOps,
    ObserverOps,
    QuantizedTensors,
    QuantOps,
)
from pytest_qat.references import load_value

__all__ = ["KINDS", "TORCH", "load_ops", "torch_targets"]

TORCH = "torch"
"""The reference that stands for PyTorch's own implementations."""
KINDS = (QuantOps, ObserverOps, IntegerOps, LearnableOps, FakeQuantizeModules, QuantizedTensors, FlowOps)
_QUANTIZED = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.qint32: (-2**31, 2**31 - 1)}


def load_ops(reference: str, *, root: Path, seed: int = 0) -> tuple[Any, ...]:
    """Return the implementations that a reference names, which is `torch` or a function of the user.

    Raises:
        ReferenceNotFound: the module, file or attribute does not exist.
        InvalidCase: the function returned neither a QuantOps nor a list of them.
    """
    if reference == TORCH:
        with quiet_loggers():
            return tuple(torch_targets())
    value = load_value(reference, root=root, seed=seed)
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    wrong = [type(item).__name__ for item in found if not isinstance(item, KINDS)]
    if not found or wrong:
        raise InvalidCase(f"{reference} gave {wrong[0] if wrong else 'an empty list'}, expected a QuantOps or a list "
                          "of them.", hint="Return pytest_qat.QuantOps(name=..., quantize=..., "
                          "dequantize=...) from the function.")
    names = [item.name for item in found]
    if len(set(names)) < len(names):
        raise InvalidCase(f"{reference} gave two implementations of the same name: {', '.join(sorted(names))}.",
                          hint="Give each implementation a different name.")
    return found


def torch_targets() -> Iterator[Any]:
    """Yield all implementations of PyTorch, and those of torchao if it is installed."""
    yield from map(_kernels, _QUANTIZED)
    for name, low, high, dtype in (("int8", -128, 127, torch.int8), ("uint8", 0, 255, torch.uint8),
                                   ("int4", -8, 7, torch.int8), ("int2", -2, 1, torch.int8),
                                   ("int16", -2**15, 2**15 - 1, torch.int16)):
        yield _decomposed_ops(name, low, high, dtype)
    if importlib.util.find_spec("torchao") is not None:
        yield from (_torchao(name, low, high, dtype) for name, low, high, dtype in (
            ("int8", -128, 127, torch.int8), ("int4", -8, 7, torch.int8)))
    yield LearnableOps(name="learnable", fake_quantize=torch._fake_quantize_learnable_per_tensor_affine)  # noqa: SLF001 - it has no public name
    yield FakeQuantizeModules(name="FakeQuantize", make=_module(FakeQuantize))
    yield FakeQuantizeModules(name="FusedMovingAvgObsFakeQuantize", make=_module(FusedMovingAvgObsFakeQuantize),
                              observer=_moving_average)
    yield from _observers()
    yield from _engines()
    yield QuantizedTensors()
    yield FlowOps(name="eager", recipe="eager-x86", layers=LAYERS)
    yield FlowOps(name="fx", recipe="fx-x86", layers=LAYERS)
    if importlib.util.find_spec("torchao") is not None:
        # Converting its Conv-BatchNorm patterns takes seconds per layer.
        yield FlowOps(name="pt2e", recipe="pt2e-torch", layers=tuple(kind for kind in LAYERS if "bn" not in kind))


def _promise(quantize: Callable[..., Tensor], low: int, high: int) -> str | None:
    """Return what `quantize` does with one NaN: the result may be anything, but must be the same in every lane."""
    code = int(quantize(torch.tensor([math.nan]), 1.0, 1, low, high))
    return {low: "quant_min", high: "quant_max", 1: "zero_point"}.get(code)


def _kernels(dtype: torch.dtype) -> QuantOps:
    low, high = _QUANTIZED[dtype]

    def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
        return torch.quantize_per_tensor(x, scale, zero_point, dtype).int_repr()

    def dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
        return _quantized(codes, scale, zero_point).dequantize()

    def per_channel(x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int,
                    quant_max: int) -> Tensor:
        return torch.quantize_per_channel(x, scales.double(), zero_points.long(), axis, dtype).int_repr()

    def back_per_channel(codes: Tensor, scales: Tensor, zero_points: Tensor, axis: int) -> Tensor:
        return torch._make_per_channel_quantized_tensor(  # noqa: SLF001 - the only way from codes
            codes, scales.double(), zero_points.long(), axis).dequantize()

    name = str(dtype).removeprefix("torch.")
    return QuantOps(
        name=name, quantize=quantize, dequantize=dequantize, quantize_per_channel=per_channel, quant_min=low,
        quant_max=high, dequantize_per_channel=back_per_channel, nan=_promise(quantize, low, high),
        fake_quantize=None if dtype == torch.qint32 else torch.fake_quantize_per_tensor_affine)


def _decomposed_ops(name: str, low: int, high: int, dtype: torch.dtype) -> QuantOps:
    ops: Any = torch.ops.quantized_decomposed

    def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
        codes: Tensor = ops.quantize_per_tensor(x, scale, zero_point, quant_min, quant_max, dtype)
        return codes

    def dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
        back: Tensor = ops.dequantize_per_tensor(codes, scale, zero_point, low, high, dtype)
        return back

    def per_channel(x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int,
                    quant_max: int) -> Tensor:
        codes: Tensor = ops.quantize_per_channel(x, scales, zero_points, axis, quant_min, quant_max, dtype)
        return codes

    def back_per_channel(codes: Tensor, scales: Tensor, zero_points: Tensor, axis: int) -> Tensor:
        back: Tensor = ops.dequantize_per_channel(codes, scales, zero_points, axis, low, high, dtype)
        return back

    return QuantOps(name=f"decomposed {name}", quantize=quantize, dequantize=dequantize, quant_min=low, quant_max=high,
                    quantize_per_channel=per_channel, dequantize_per_channel=back_per_channel)


def _torchao(name: str, low: int, high: int, dtype: torch.dtype) -> QuantOps:
    from torchao.quantization import quant_primitives as primitives

    def whole(scale: float, zero_point: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(scale), torch.tensor(zero_point)

    def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
        codes: Tensor = primitives.quantize_affine(x, tuple(x.shape), *whole(scale, zero_point), dtype, quant_min,
                                                   quant_max)
        return codes

    def dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
        back: Tensor = primitives.dequantize_affine(codes, tuple(codes.shape), *whole(scale, zero_point), dtype, low,
                                                    high)
        return back

    def fake_quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
        back: Tensor = primitives._fake_quantize_affine(  # noqa: SLF001 - its QAT modules call this
            x, tuple(x.shape), *whole(scale, zero_point), dtype, quant_min, quant_max)
        return back

    def blocks(x: Tensor, axis: int) -> tuple[int, ...]:
        return tuple(1 if index == axis % x.ndim else size for index, size in enumerate(x.shape))

    def per_channel(x: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int,
                    quant_max: int) -> Tensor:
        codes: Tensor = primitives.quantize_affine(x, blocks(x, axis), scales, zero_points, dtype, quant_min,
                                                   quant_max)
        return codes

    def back_per_channel(codes: Tensor, scales: Tensor, zero_points: Tensor, axis: int) -> Tensor:
        back: Tensor = primitives.dequantize_affine(codes, blocks(codes, axis), scales, zero_points, dtype, low, high)
        return back

    return QuantOps(name=f"torchao {name}", quantize=quantize, dequantize=dequantize, fake_quantize=fake_quantize,
                    quant_min=low, quant_max=high, quantize_per_channel=per_channel,
                    dequantize_per_channel=back_per_channel)


def _scheme(symmetric: bool) -> torch.qscheme:
    return torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine


def _moving_average(config: FakeQuantizeConfig) -> MovingAverageMinMaxObserver:
    return MovingAverageMinMaxObserver(**_arguments(config))


def _module(kind: Callable[..., Any]) -> Callable[[FakeQuantizeConfig], Any]:
    return lambda config: kind(observer=MovingAverageMinMaxObserver, **_arguments(config))


def _arguments(config: FakeQuantizeConfig) -> dict[str, Any]:
    return {"quant_min": config.quant_min, "quant_max": config.quant_max, "qscheme": _scheme(config.symmetric),
            "dtype": torch.qint8 if config.quant_min < 0 else torch.quint8,
            "averaging_constant": config.averaging_constant}


def _observers() -> Iterator[ObserverOps]:
    for kind, symmetric in (("affine", False), ("symmetric", True)):
        dtype, low, high = (torch.qint8, -128, 127) if symmetric else (torch.quint8, 0, 255)
        common: dict[str, Any] = {"dtype": dtype, "qscheme": _scheme(symmetric)}
        codes: dict[str, Any] = {"quant_min": low, "quant_max": high, "symmetric": symmetric}
        eps = float(torch.finfo(torch.float32).eps)
        yield ObserverOps(name=f"MinMaxObserver {kind}", eps=eps, **codes,
                          make=functools.partial(observer.MinMaxObserver, **common),
                          reduced=functools.partial(observer.MinMaxObserver, reduce_range=True, **common))
        yield ObserverOps(name=f"MovingAverageMinMaxObserver {kind}", kind="moving_average", eps=eps, **codes,
                          make=functools.partial(observer.MovingAverageMinMaxObserver, **common))
        channels = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        for name, made, alone, minmax in (
                ("PerChannelMinMaxObserver", observer.PerChannelMinMaxObserver, observer.MinMaxObserver, "minmax"),
                ("MovingAveragePerChannelMinMaxObserver", observer.MovingAveragePerChannelMinMaxObserver,
                 observer.MovingAverageMinMaxObserver, "moving_average")):
            yield ObserverOps(name=f"{name} {kind}", kind=minmax, eps=eps, **codes,
                              make=functools.partial(made, ch_axis=0, dtype=dtype, qscheme=channels),
                              per_slice=functools.partial(alone, **common))
    yield ObserverOps(name="HistogramObserver", kind="histogram", make=observer.HistogramObserver)
    if importlib.util.find_spec("torchao") is not None:
        from torchao.quantization.pt2e import observer as pt2e

        affine: dict[str, Any] = {"dtype": torch.uint8, "qscheme": torch.per_tensor_affine}
        yield ObserverOps(name="PT2E MinMaxObserver", make=functools.partial(pt2e.MinMaxObserver, **affine))
        yield ObserverOps(name="PT2E MovingAverageMinMaxObserver", kind="moving_average",
                          make=functools.partial(pt2e.MovingAverageMinMaxObserver, **affine))
    yield ObserverOps(name="MinMaxObserver narrow", eps=float(torch.finfo(torch.float32).eps), symmetric=True,
                      quant_min=-127, quant_max=127, make=functools.partial(
                          observer.MinMaxObserver, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric,
                          quant_min=-127, quant_max=127))


def _quantized(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch._make_per_tensor_quantized_tensor(codes, scale, zero_point)  # noqa: SLF001 - the only way from codes


def _weights(codes: Tensor, scales: Tensor) -> Tensor:
    return torch._make_per_channel_quantized_tensor(  # noqa: SLF001 - the only way from codes
        codes, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0)


def _binary(engine: str, kind: str) -> Callable[..., Tensor]:
    """Return an engine's add, mul or cat."""
    function: Any = getattr(torch.ops.quantized, kind)

    def run(a: Tensor, a_scale: float, a_zero: int, b: Tensor, b_scale: float, b_zero: int, scale: float,
            zero_point: int) -> Tensor:
        both = [_quantized(a, a_scale, a_zero), _quantized(b, b_scale, b_zero)]
        with quantized_engine(engine):
            result: Tensor = function(both, 0, scale, zero_point) if kind == "cat" else function(
                *both, scale, zero_point)
            return result.int_repr()

    return run


def _engines() -> Iterator[IntegerOps]:
    """Yield the operations of each engine; those whose default qconfig keeps activations to 7 bits also in these."""
    for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
        ops = _integer(engine)
        if ops is not None:
            yield ops
            if engine in {"x86", "fbgemm"}:
                yield dataclasses.replace(ops, name=f"{ops.name}, reduce_range", activation_max=127)


def _integer(engine: str) -> IntegerOps | None:
    """Return an engine's operations, or None if the machine does not have the engine or the engine crashes on it."""
    if engine not in torch.backends.quantized.supported_engines:
        return None
    ops: Any = torch.ops.quantized

    def linear(x: Tensor, x_scale: float, x_zero: int, weight: Tensor, weight_scales: Tensor, bias: Tensor,
               scale: float, zero_point: int) -> Tensor:
        with quantized_engine(engine):
            packed = ops.linear_prepack(_weights(weight, weight_scales), bias)
            result: Tensor = ops.linear(_quantized(x, x_scale, x_zero), packed, scale, zero_point)
            return result.int_repr()

    def conv2d(x: Tensor, x_scale: float, x_zero: int,  # noqa: PLR0917 - IntegerOps has this signature
               weight: Tensor, weight_scales: Tensor, bias: Tensor,
               padding: int, scale: float, zero_point: int) -> Tensor:
        with quantized_engine(engine):
            paddings: Sequence[int] = (padding, padding)
            packed = ops.conv2d_prepack(_weights(weight, weight_scales), bias, (1, 1), paddings, (1, 1),
                                        1)
            result: Tensor = ops.conv2d(_quantized(x, x_scale, x_zero), packed, scale, zero_point)
            return result.int_repr()

    def relu(x: Tensor, scale: float, zero_point: int) -> Tensor:
        with quantized_engine(engine):
            return torch.relu(_quantized(x, scale, zero_point)).int_repr()

    def every_shape() -> None:
        for size in (1, 2, 5, 6, 64):
            linear(torch.ones(3, size, dtype=torch.uint8), 1.0, 0, torch.ones(3, size, dtype=torch.int8),
                   torch.ones(3), torch.zeros(3), 1.0, 0)

    if signal_of(every_shape) is not None:  # onednn's linear uses an instruction that some CPUs lack
        return None
    return IntegerOps(name=f"engine {engine}", linear=linear, conv2d=conv2d, relu=relu,
                      add=_binary(engine, "add"), mul=_binary(engine, "mul"), cat=_binary(engine, "cat"),
                      tolerance=1 if engine in ("qnnpack", "onednn") else 0)
