"""The round-trip law on a model's own qparams: at most half a step of error inside the range, saturation outside.

Hypothesis draws positions in steps (codes, ties, values beyond both ends), which are mapped to every quantized tensor
of the model, so that each example covers each tensor. The slack of 2^-22 covers the three float32 roundings of
x * (1/s), of the sum, and of (q - z) * s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_qat.core.torch_state import threads
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import user_names

__all__ = ["QuantizedTensor", "check_roundtrip", "quantized_tensors", "torch_quantize"]

Quantize = Callable[["QuantizedTensor", Tensor], Tensor]
_SLACK = 2.0**-22
_EXAMPLES = 30
_LANES = 67
"""An odd number of elements, more than four vectors hold: values reach vector lanes and the scalar tail."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedTensor:
    """The qparams of one quantized tensor of a model.

    Attributes:
        name: Module and role, such as `fc.weight` or `fc.output`.
        module: Qualified module name.
        scale: float32 tensor of shape `(channels,)`, or `(1,)` if the qparams are per tensor.
        zero_point: int64 tensor of the same shape.
        per_channel: Whether the qparams are per channel.
        dtype: torch.quint8, torch.qint8 or torch.qint32.
    """

    name: str
    module: str
    scale: Tensor
    zero_point: Tensor
    per_channel: bool
    dtype: torch.dtype

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest code of the dtype."""
        info = torch.iinfo(_STORAGE[self.dtype])
        return info.min, info.max


_STORAGE = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}


def quantized_tensors(converted: nn.Module) -> list[QuantizedTensor]:
    """Return every quantized weight and activation of a model converted by torch.ao, eager or FX."""
    found: list[QuantizedTensor] = []
    own = user_names(converted)
    for name, module in converted.named_modules():
        path = own[name]
        if type(module).__module__.startswith("torch.ao.nn") and ".quantized" in type(module).__module__:
            found.extend(_of_module(path, module))
    buffers = dict(converted.named_buffers())
    flat = {name.replace(".", "_"): user for name, user in own.items()}
    for name, scale in buffers.items():
        match = re.fullmatch(r"(?P<place>.*)_scale_(?P<index>\d+)", name)
        if match is None:
            continue
        zero_point = buffers.get(f"{match['place']}_zero_point_{match['index']}")
        if zero_point is not None:
            owner = flat.get(match["place"].removesuffix("_input"), "")
            found.append(_per_tensor(f"{owner or 'input'}.activation", owner, scale, zero_point, torch.quint8))
    return found


def _of_module(path: str, module: nn.Module) -> Iterator[QuantizedTensor]:
    holder: Any = module
    weight = holder.weight() if callable(getattr(holder, "weight", None)) else None
    if isinstance(weight, Tensor) and weight.is_quantized and weight.dtype in _STORAGE:
        if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            yield QuantizedTensor(
                name=f"{path}.weight", module=path, scale=weight.q_per_channel_scales().float(),
                zero_point=weight.q_per_channel_zero_points().long(), per_channel=True, dtype=weight.dtype)
        elif weight.qscheme() == torch.per_tensor_affine:
            yield _per_tensor(f"{path}.weight", path, torch.tensor(weight.q_scale()),
                              torch.tensor(weight.q_zero_point()), weight.dtype)
    scale, zero_point = getattr(module, "scale", None), getattr(module, "zero_point", None)
    if scale is not None and zero_point is not None:
        dtype = getattr(module, "dtype", torch.quint8)
        yield _per_tensor(f"{path}.output", path, torch.as_tensor(scale), torch.as_tensor(zero_point),
                          dtype if dtype in _STORAGE else torch.quint8)


def _per_tensor(name: str, module: str, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> QuantizedTensor:
    return QuantizedTensor(name=name, module=module, scale=scale.detach().float().reshape(-1)[:1],
                           zero_point=zero_point.detach().long().reshape(-1)[:1], per_channel=False, dtype=dtype)


def torch_quantize(tensor: QuantizedTensor, values: Tensor) -> Tensor:
    """Quantize rows of values, shape `(channels, n)`, with torch's own kernels."""
    if tensor.per_channel:
        return torch.quantize_per_channel(values, tensor.scale.double(), tensor.zero_point, 0, tensor.dtype)
    return torch.quantize_per_tensor(values, float(tensor.scale), int(tensor.zero_point), tensor.dtype)


def check_roundtrip(tensors: Sequence[QuantizedTensor], *, seed: int, quantize: Quantize = torch_quantize,
                    examples: int = _EXAMPLES) -> list[Finding]:
    """Check the law on all tensors and return a finding if it is broken, or an empty list if it holds.

    Args:
        tensors: The qparams to check.
        seed: Seed of Hypothesis.
        quantize: The kernel under test.
        examples: Number of examples to draw.
    """
    broken = [finding for tensor in tensors for finding in _bad_qparams(tensor)]
    if broken or not tensors:
        return broken
    caught: dict[str, Finding] = {}

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, print_blob=False,
                         suppress_health_check=list(HealthCheck), verbosity=hypothesis.Verbosity.quiet)
    @hypothesis.seed(seed)
    @hypothesis.given(st.lists(_positions(), min_size=1, max_size=8))
    def law(positions: list[tuple[float, float]]) -> None:
        for tensor in tensors:
            finding = _violation(tensor, positions, quantize)
            if finding is not None:
                caught["last"] = finding  # Hypothesis runs the smallest example last
                raise _Broken

    try:
        with threads(1):  # for small tensors, a thread pool costs more than the work
            law()
    except _Broken:
        return [caught["last"]]
    return []


class _Broken(Exception):
    pass


def _positions() -> st.SearchStrategy[tuple[float, float]]:
    """Draw a place between the smallest code (0) and the largest (1), and an offset from it in steps."""
    place = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    offset = st.sampled_from([0.0, 0.5, -0.5]) | st.floats(-3, 3) | st.floats(-1e4, 1e4)
    return st.tuples(place, offset)


def _bad_qparams(tensor: QuantizedTensor) -> list[Finding]:
    low, high = tensor.bounds
    bad_scale = ~(torch.isfinite(tensor.scale) & (tensor.scale > torch.finfo(torch.float32).tiny))
    bad_zero = (tensor.zero_point < low) | (tensor.zero_point > high)
    if not bool((bad_scale | bad_zero).any()):
        return []
    channel = int((bad_scale | bad_zero).nonzero()[0])
    scale, zero_point = float(tensor.scale[channel]), int(tensor.zero_point[channel])
    return [Finding(
        code="bad-qparams", severity="error", module=tensor.module or None,
        message=f"{tensor.name} has scale {scale:g} and zero_point {zero_point}, expected a finite scale over 0 and "
                f"a zero_point in [{low}, {high}].",
        remedy="calibrate on finite data, and check whether the layer's weights are NaN, infinite or all zero.",
        evidence={"channel": channel, "scale": scale if math.isfinite(scale) else None, "zero_point": zero_point})]


def _violation(tensor: QuantizedTensor, positions: list[tuple[float, float]], quantize: Quantize) -> Finding | None:
    low, high = tensor.bounds
    steps = torch.tensor([round(low + place * (high - low)) + offset for place, offset in positions],
                         dtype=torch.float64)
    if not tensor.per_channel:
        steps = steps.repeat(_LANES // len(steps) + 1)[:_LANES]
    scale, zero = tensor.scale.double()[:, None], tensor.zero_point.double()[:, None]
    values = ((steps[None, :] - zero) * scale).float()
    exact = values.double()
    quantized = quantize(tensor, values)
    codes, back = quantized.int_repr().double(), quantized.dequantize().double()
    slack = _SLACK * (exact.abs() + scale)
    inside = (exact >= scale * (low - zero - 0.5)) & (exact <= scale * (high - zero + 0.5))
    too_far = inside & ((back - exact).abs() > scale / 2 + slack)
    unsaturated = ((exact >= scale * (high - zero + 0.5) + slack) & (codes != high)) | (
        (exact <= scale * (low - zero - 0.5) - slack) & (codes != low))
    if not bool((too_far | unsaturated).any()):
        return None
    channel, lane = (int(index) for index in (too_far | unsaturated).nonzero()[0])
    x, code, result = float(exact[channel, lane]), int(codes[channel, lane]), float(back[channel, lane])
    law = "is off by more than half a step" if bool(too_far[channel, lane]) else "does not saturate"
    return Finding(
        code="roundtrip-broken", severity="error", module=tensor.module or None,
        message=f"{tensor.name}: quantize-dequantize of {x:g} {law}: it gives code {code} and {result:g} with "
                f"scale {float(tensor.scale[channel]):g}, zero_point {int(tensor.zero_point[channel])}.",
        evidence={"value": x, "code": code, "dequantized": result, "channel": channel,
                  "scale": float(tensor.scale[channel]), "zero_point": int(tensor.zero_point[channel])})
