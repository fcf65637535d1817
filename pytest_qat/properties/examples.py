"""Examples of laws as plain data, with their conversion to tensors, their simplification and their form in JSON.

Floats are saved as hexadecimal text, so a saved example is exactly the same number on every machine.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pytest_qat.errors import DataError
from pytest_qat.properties.ops import ChannelQParams, FakeQuantizeConfig, QParams

__all__ = ["FLOAT32_MAX", "LAYOUTS", "TAILS", "AffineExample", "ChannelExample", "IntegerExample", "ModuleExample",
           "NetExample", "StreamExample", "decode", "encode", "laid_out", "simpler"]

LAYOUTS = ("contiguous", "strided", "offset", "transposed", "channels_last")
"""Memory layouts; "strided" uses every second element of its storage, and "offset" starts at the second element."""
TAILS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Numbers of elements at and next to multiples of the lengths of vector registers."""
_MOST_ELEMENTS = 10**6
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
_Example = TypeVar("_Example")


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineExample:
    """Values for one tensor with one scale and zero point.

    Attributes:
        qparams: The qparams.
        values: float32 numbers; they are repeated if `size` is larger than their number.
        size: Number of elements; 0 stands for the number of values.
        layout: One of `LAYOUTS`.
    """

    qparams: QParams
    values: tuple[float, ...]
    size: int = 0
    layout: str = "contiguous"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or not 0 <= self.size <= _MOST_ELEMENTS or not (self.values or not self.size):
            raise ValueError(f"layout {self.layout!r}, {len(self.values)} values, size {self.size}")
        if any(abs(value) > FLOAT32_MAX and not math.isinf(value) for value in self.values):
            raise ValueError("a value is not a float32 number")

    @property
    def lanes(self) -> tuple[float, ...]:
        """The values of the elements in their logical order."""
        count = max(self.size, len(self.values))
        return (self.values * (count // max(1, len(self.values)) + 1))[:count]

    def tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the elements as a tensor whose flattened order is that of `lanes`."""
        return laid_out(torch.tensor(self.lanes, dtype=dtype), self.layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelExample:
    """Values for one tensor with a scale and a zero point per channel.

    Attributes:
        qparams: The qparams.
        rows: The values of each channel; all channels have the same number of values.
        ndim: Number of axes of the tensor.
    """

    qparams: ChannelQParams
    rows: tuple[tuple[float, ...], ...]
    ndim: int = 2

    @property
    def axis(self) -> int:
        """The axis of the channels as a nonnegative number."""
        return self.qparams.axis % self.ndim

    def tensor(self) -> Tensor:
        """Return the values as a tensor with channels along `axis`."""
        return self.spread(torch.tensor(self.rows, dtype=torch.float32))

    def spread(self, rows: Tensor) -> Tensor:
        """Reshape a tensor of shape `(channels, n)` to `ndim` axes, with channels along `axis`."""
        if self.ndim == 1:
            return rows[:, 0]
        channels, count = rows.shape
        part = next((factor for factor in (3, 2) if count % factor == 0), 1)
        rest = {2: (count,), 3: (part, count // part), 4: (part, 1, count // part)}[self.ndim]
        return rows.reshape(channels, *rest).movedim(0, self.axis)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Reshape a tensor that `spread` has made back to `(channels, n)`."""
        return tensor.movedim(self.axis, 0).reshape(tensor.shape[self.axis], -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamExample:
    """Batches that an observer receives one after the other.

    Attributes:
        batches: The values of each batch.
        exponent: Exponent of the power of two that laws about scaling use.
    """

    batches: tuple[tuple[float, ...], ...]
    exponent: int = 1

    @property
    def values(self) -> tuple[float, ...]:
        """The values of all batches, in order."""
        return tuple(value for batch in self.batches for value in batch)

    def tensors(self) -> list[Tensor]:
        """Return the batches, each of shape `(n,)`."""
        return [torch.tensor(batch, dtype=torch.float32) for batch in self.batches]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerExample:
    """Codes and qparams of a small linear layer; laws of convolution, addition and so on use some of them.

    Attributes:
        x: Activations as uint8 codes, one tuple per sample.
        weight: int8 codes, one tuple per output channel, each as long as a sample.
        bias: One float32 number per output channel; empty if there is no bias.
        x_scale: Scale of the activations.
        x_zero_point: Zero point of the activations.
        weight_scales: One per output channel.
        scale: Scale of the output.
        zero_point: Zero point of the output.
    """

    x: tuple[tuple[int, ...], ...]
    weight: tuple[tuple[int, ...], ...]
    bias: tuple[float, ...] = ()
    x_scale: float = 1.0
    x_zero_point: int = 0
    weight_scales: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleExample:
    """The configuration of a fake-quantize module and the batches that it receives.

    Attributes:
        batches: The values of each batch.
        config: How the module is made.
    """

    batches: tuple[tuple[float, ...], ...]
    config: FakeQuantizeConfig = FakeQuantizeConfig()

    def tensors(self) -> list[Tensor]:
        """Return the batches, each of shape `(n,)`."""
        return [torch.tensor(batch, dtype=torch.float32) for batch in self.batches]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetExample:
    """A small network.

    Attributes:
        layers: Kinds of layers in order, from `laws.nets.LAYERS`.
        seed: Seed of its weights and inputs.
    """

    layers: tuple[str, ...]
    seed: int = 0


def laid_out(flat: Tensor, layout: str) -> Tensor:
    """Return the elements of a 1-D tensor in a memory layout, in the same logical order."""
    count = flat.numel()
    if layout == "strided":
        base = torch.zeros(2 * count, dtype=flat.dtype)
        base[::2] = flat
        return base[::2]
    if layout == "offset":
        base = torch.zeros(count + 1, dtype=flat.dtype)
        base[1:] = flat
        return base[1:]
    rows = next((factor for factor in (4, 3, 2) if count and count % factor == 0), 1)
    if layout == "transposed":
        return flat.reshape(rows, -1).t().contiguous().t() if count else flat.reshape(0, 2).t()
    if layout == "channels_last":
        image = flat.reshape(1, rows, 1, -1) if count else flat.reshape(1, 0, 1, 1)
        return image.contiguous(memory_format=torch.channels_last)
    return flat.clone()


def simpler(example: Any) -> Iterator[Any]:
    """Yield smaller forms of an example; only AffineExample has any, because Hypothesis shrinks the others."""
    if not isinstance(example, AffineExample):
        return
    values = example.values
    if example.layout != "contiguous":
        yield dataclasses.replace(example, layout="contiguous")
    if example.size > len(values):
        yield dataclasses.replace(example, size=0)
    part = len(values) // 2
    while part:
        for start in range(0, len(values), part):
            rest = values[:start] + values[start + part:]
            if rest:
                yield dataclasses.replace(example, values=rest)
        part //= 2


def encode(value: Any) -> Any:
    """Return an example as values that JSON can represent."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[_Example], data: Any) -> _Example:
    """Return the example that `encode` wrote.

    Raises:
        DataError: the data do not describe an example of this kind.
    """
    try:
        return typing.cast("_Example", _decode(kind, data))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"a saved example is not a valid {getattr(kind, '__name__', kind)}: {error}.",
                        hint="The file is damaged or from another version; run --qat-ops again.") from error


def _decode(kind: Any, data: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(data) - set(hints)
        if unknown:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        return kind(**{name: _decode(hints[name], item) for name, item in data.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], item) for item in data)
        return tuple(_decode(part, item) for part, item in zip(arguments, data, strict=True))
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        return None if data is None else _decode(options[0], data)
    if kind is float:
        return float.fromhex(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise ValueError(f"{data!r:.40} is not of type {kind.__name__}")
    return data
