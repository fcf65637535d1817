"""Implementations of quantization that laws can test, as plain records of functions.

`properties.targets` wraps PyTorch's own implementations in the same records, so they and a user's implementation are
tested against the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_qat.errors import InvalidCase

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ChannelQParams", "FakeQuantizeConfig", "FakeQuantizeModules", "FlowOps", "IntegerOps", "LearnableOps",
           "ObserverOps", "QParams", "QuantOps", "QuantizedTensors"]

ROUNDINGS = ("half_even", "half_away", "half_up")
NAN_PROMISES = ("quant_min", "quant_max", "zero_point", "raises")
_WIDEST = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class QParams:
    """Scale and zero point of one tensor, and the range of its codes.

    Attributes:
        scale: Width of a step; a positive float32 number.
        zero_point: The code of 0.0.
        quant_min: Smallest code.
        quant_max: Largest code.
    """

    scale: float = 1.0
    zero_point: int = 0
    quant_min: int = -128
    quant_max: int = 127

    def __str__(self) -> str:
        return (f"scale {self.scale!r} ({self.scale.hex()}), zero_point {self.zero_point}, "
                f"codes {self.quant_min} to {self.quant_max}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelQParams:
    """Scales and zero points along one axis of a tensor.

    Attributes:
        scales: One per channel.
        zero_points: One per channel.
        axis: The axis of the channels; may be negative.
        quant_min: Smallest code.
        quant_max: Largest code.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0
    quant_min: int = -128
    quant_max: int = 127

    def channel(self, index: int) -> QParams:
        """Return the qparams of one channel."""
        return QParams(scale=self.scales[index], zero_point=self.zero_points[index], quant_min=self.quant_min,
                       quant_max=self.quant_max)

    def __str__(self) -> str:
        return (f"scales {list(self.scales)}, zero_points {list(self.zero_points)}, axis {self.axis}, "
                f"codes {self.quant_min} to {self.quant_max}")


@dataclass(frozen=True, kw_only=True)
class QuantOps:
    """One implementation of affine quantization: q = clamp(round(x / scale) + zero_point, quant_min, quant_max).

    Rounding comes before the zero point is added. All tensors are torch tensors on the CPU; functions must not change
    their arguments.

    Attributes:
        name: Name of the implementation in reports.
        quantize: `(x, scale, zero_point, quant_min, quant_max)` returns a tensor of codes, of any integer dtype and the
            shape of x.
        dequantize: `(codes, scale, zero_point)` returns a float32 tensor of the codes' shape. The codes have the dtype
            that `quantize` returns. zero_point must give exactly 0.0 because padding relies on it, so
            fma(codes, scale, -zero_point * scale) breaks the law.
        fake_quantize: `(x, scale, zero_point, quant_min, quant_max)` returns a float tensor, differentiable in x by the
            clipped straight-through estimator.
        quantize_per_channel: `(x, scales, zero_points, axis, quant_min, quant_max)`; scales is a float32 tensor and
            zero_points an int32 or int64 tensor, both of shape `(channels,)`.
        dequantize_per_channel: `(codes, scales, zero_points, axis)`; the inverse of `quantize_per_channel`.
        quant_min: Smallest code to test.
        quant_max: Largest code to test.
        rounding: How exact ties are rounded: "half_even", "half_away" or "half_up".
        nan: What `quantize` does with NaN: "quant_min", "quant_max" or "zero_point" if NaN gets that code, "raises" if
            it raises, or None if it may do anything.

    Raises:
        InvalidCase: a field has a value that the laws cannot work with.
    """

    name: str
    quantize: Callable[..., Tensor]
    dequantize: Callable[..., Tensor]
    fake_quantize: Callable[..., Tensor] | None = None
    quantize_per_channel: Callable[..., Tensor] | None = None
    dequantize_per_channel: Callable[..., Tensor] | None = None
    quant_min: int = -128
    quant_max: int = 127
    rounding: str = "half_even"
    nan: str | None = None

    def __post_init__(self) -> None:
        _check_name(self)
        for field in ("quantize", "dequantize"):
            _check_callable(self, field)
        for field in ("fake_quantize", "quantize_per_channel", "dequantize_per_channel"):
            if getattr(self, field) is not None:
                _check_callable(self, field)
        if (self.quantize_per_channel is None) != (self.dequantize_per_channel is None):
            raise InvalidCase(f"QuantOps {self.name!r} has only one of quantize_per_channel and "
                              "dequantize_per_channel, expected both or neither.", hint="Give the other one too.")
        _check_codes(self)
        if self.rounding not in ROUNDINGS:
            raise InvalidCase(f"QuantOps {self.name!r} has rounding {self.rounding!r}, expected one of "
                              f"{', '.join(ROUNDINGS)}.", hint="PyTorch rounds half_even.")
        if self.nan is not None and self.nan not in NAN_PROMISES:
            raise InvalidCase(f"QuantOps {self.name!r} has nan {self.nan!r}, expected one of "
                              f"{', '.join(NAN_PROMISES)}, or None.", hint="Remove nan if any result is acceptable.")


@dataclass(frozen=True, kw_only=True)
class ObserverOps:
    """One kind of observer.

    Attributes:
        name: Name of the implementation in reports.
        make: Returns a new observer. Calling it with a float tensor records and returns the tensor, and its
            `calculate_qparams()` returns the tensors (scale, zero_point).
        kind: "minmax" (all data), "moving_average" or "histogram".
        quant_min: Smallest code.
        quant_max: Largest code.
        symmetric: Whether the zero point is fixed in the middle of the codes.
        eps: Smallest scale that the observer returns.
        averaging_constant: Weight of the newest batch; only for moving averages.
        per_slice: Returns a new observer of a single channel. If it is given, the observers of `make` have channels
            along axis 0.
        reduced: Returns a new observer with half as many codes (`reduce_range=True`).
    """

    name: str
    make: Callable[[], Any]
    kind: str = "minmax"
    quant_min: int = 0
    quant_max: int = 255
    symmetric: bool = False
    eps: float = 2.0**-23
    averaging_constant: float = 0.01
    per_slice: Callable[[], Any] | None = None
    reduced: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        _check_name(self)
        _check_callable(self, "make")
        _check_codes(self)
        if self.kind not in ("minmax", "moving_average", "histogram"):
            raise InvalidCase(f"ObserverOps {self.name!r} has kind {self.kind!r}, expected minmax, moving_average or "
                              "histogram.", hint="Use the kind that describes how it combines batches.")


@dataclass(frozen=True, kw_only=True)
class IntegerOps:
    """Operations on codes: unsigned 8-bit activations, signed 8-bit weights, int32 accumulators.

    Attributes:
        name: Name of the implementation in reports.
        linear: `(x, x_scale, x_zero_point, weight, weight_scales, bias, scale, zero_point)` with x uint8 `(n, k)`,
            weight int8 `(m, k)`, weight_scales float32 `(m,)` and bias float32 `(m,)`; returns uint8 codes `(n, m)`.
        conv2d: `(x, x_scale, x_zero_point, weight, weight_scales, bias, padding, scale, zero_point)` with x
            `(n, c, h, w)` and weight `(m, c, kh, kw)`, stride 1.
        add: `(a, a_scale, a_zero_point, b, b_scale, b_zero_point, scale, zero_point)` returns codes.
        mul: Returns the codes of the product, with the same arguments.
        cat: Returns the codes of both tensors, concatenated along axis 0, with the same arguments.
        relu: `(x, scale, zero_point)` returns codes with the same qparams.
        tolerance: By how many codes a result may differ from the exact one. With 0, a result must be exact, but next
            to a tie both neighbors are accepted.
        activation_max: The largest activation code for which `linear` and `conv2d` are exact: 255, or 127 if the
            activations are meant to leave one bit free (PyTorch's `reduce_range`).
    """

    name: str
    linear: Callable[..., Tensor]
    conv2d: Callable[..., Tensor] | None = None
    add: Callable[..., Tensor] | None = None
    mul: Callable[..., Tensor] | None = None
    cat: Callable[..., Tensor] | None = None
    relu: Callable[..., Tensor] | None = None
    tolerance: int = 0
    activation_max: int = 255

    def __post_init__(self) -> None:
        _check_name(self)
        _check_callable(self, "linear")
        if not 1 <= self.activation_max <= 255:
            raise InvalidCase(f"activation_max of {self.name!r} is {self.activation_max}, expected 1 to 255.",
                              hint="Leave it out for activations that use all 8 bits.")


@dataclass(frozen=True, kw_only=True)
class LearnableOps:
    """A fake-quantize whose scale and zero point are trained (LSQ).

    Attributes:
        name: Name of the implementation in reports.
        fake_quantize: `(x, scale, zero_point, quant_min, quant_max, grad_factor)`; scale and zero_point are float32
            tensors of shape `(1,)`, and gradients flow into all three.
        quant_min: Smallest code.
        quant_max: Largest code.
    """

    name: str
    fake_quantize: Callable[..., Tensor]
    quant_min: int = -128
    quant_max: int = 127

    def __post_init__(self) -> None:
        _check_name(self)
        _check_callable(self, "fake_quantize")
        _check_codes(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeQuantizeConfig:
    """The configuration of a fake-quantize module.

    Attributes:
        quant_min: Smallest code.
        quant_max: Largest code.
        symmetric: Whether the scheme is `torch.per_tensor_symmetric`.
        averaging_constant: Weight of the newest batch in its observer.
    """

    quant_min: int = 0
    quant_max: int = 255
    symmetric: bool = False
    averaging_constant: float = 0.01


@dataclass(frozen=True, kw_only=True)
class FakeQuantizeModules:
    """Fake-quantize modules with an observer inside.

    Attributes:
        name: Name of the implementation in reports.
        make: Returns a new module for a config. The module has torch's methods `disable_observer`, `enable_fake_quant`
            and so on.
        observer: Returns the observer for a config that the module must agree with; only for modules that fuse
            observing and fake-quantizing.
    """

    name: str
    make: Callable[[FakeQuantizeConfig], Any]
    observer: Callable[[FakeQuantizeConfig], Any] | None = None

    def __post_init__(self) -> None:
        _check_name(self)
        _check_callable(self, "make")


@dataclass(frozen=True, kw_only=True)
class QuantizedTensors:
    """torch's quantized tensors, of which there is only one implementation.

    Attributes:
        name: Name of the implementation in reports.
    """

    name: str = "quantized tensors"

    def __post_init__(self) -> None:
        _check_name(self)


@dataclass(frozen=True, kw_only=True)
class FlowOps:
    """A workflow from a float network to a quantized one.

    Attributes:
        name: Name of the implementation in reports.
        recipe: The recipe whose workflow prepares and converts.
        layers: Kinds of layers that the tested networks may have.
    """

    name: str
    recipe: str
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_name(self)


def _check_name(ops: Any) -> None:
    if not isinstance(ops.name, str) or not ops.name.strip() or "::" in ops.name:
        raise InvalidCase(f"{type(ops).__name__} has the name {ops.name!r}, expected text without '::'.",
                          hint='Give it a name such as name="my kernel".')


def _check_callable(ops: Any, field: str) -> None:
    value = getattr(ops, field)
    if not callable(value):
        raise InvalidCase(f"{type(ops).__name__} {ops.name!r} has {field}={value!r:.60}, expected a function.",
                          hint=f"Give the function itself: {field}=my_{field}.")


def _check_codes(ops: Any) -> None:
    low, high = ops.quant_min, ops.quant_max
    whole = all(isinstance(code, int) and not isinstance(code, bool) for code in (low, high))
    if not whole or not low < high or max(abs(low), math.fabs(high)) > _WIDEST:
        raise InvalidCase(f"{type(ops).__name__} {ops.name!r} has codes from {low!r} to {high!r}, expected "
                          "integers of at most 32 bits, the smaller one first.", hint="For int8, use -128 and 127.")
