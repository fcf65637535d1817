"""The round-trip law: torch's kernels keep it, planted bugs break it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, threads
from pytest_qat.measure.roundtrip import QuantizedTensor, check_roundtrip, quantized_tensors, torch_quantize
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import load_workflow

SCALES = st.floats(2.0**-20, 1e4, width=32)
Codes = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with preserved_torch_state(seed=0), threads(1):
        yield


@pytest.fixture
def _no_shrinking() -> Iterator[None]:
    """Whether a bug is found does not depend on making the example small, which takes most of the time."""
    before = settings.get_current_profile_name()
    settings.register_profile("no-shrinking", phases=[Phase.generate])
    settings.load_profile("no-shrinking")
    yield
    settings.load_profile(before)


def tensor(scale: float | list[float] = 0.1, zero_point: int | list[int] = 3, *, dtype: torch.dtype = torch.quint8,
           per_channel: bool = False, name: str = "fc.weight") -> QuantizedTensor:
    return QuantizedTensor(
        name=name, module=name.rpartition(".")[0], scale=torch.tensor(scale).reshape(-1).float(),
        zero_point=torch.tensor(zero_point).reshape(-1).long(), per_channel=per_channel, dtype=dtype)


PER_CHANNEL = tensor([0.1, 0.02, 3.0], [0, 0, 0], dtype=torch.qint8, per_channel=True)
BOTH_KINDS = [tensor(), PER_CHANNEL]


@st.composite
def qparams(draw: st.DrawFn) -> QuantizedTensor:
    dtype = draw(st.sampled_from([torch.quint8, torch.qint8]))
    low, high = (0, 255) if dtype == torch.quint8 else (-128, 127)
    per_channel = draw(st.booleans())
    channels = draw(st.integers(1, 5)) if per_channel else 1
    zero_points = st.sampled_from([low, high, 0]) | st.integers(low, high)
    return tensor([draw(SCALES) for _ in range(channels)], [draw(zero_points) for _ in range(channels)], dtype=dtype,
                  per_channel=per_channel)


# -- the law and torch's kernels ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.nested_given])
@given(qparams(), st.integers(0, 5))
def test_torch_s_kernels_keep_the_law_on_any_qparams(made: QuantizedTensor, seed: int) -> None:
    assert check_roundtrip([made], seed=seed, examples=10) == []


@pytest.mark.parametrize("scale", [1.2e-38, 2.0**-23, 1 / 15, 0.00214854861, 1.0, 1e30])
@pytest.mark.parametrize("zero_point", [0, 113, 255])
def test_torch_s_kernels_keep_the_law_on_awkward_qparams(scale: float, zero_point: int) -> None:
    assert check_roundtrip([tensor(scale, zero_point)], seed=0) == []


def test_no_tensors_break_no_law() -> None:
    assert check_roundtrip([], seed=0) == []


@pytest.mark.parametrize(("dtype", "bounds"), [
    (torch.quint8, (0, 255)), (torch.qint8, (-128, 127)), (torch.qint32, (-(2**31), 2**31 - 1)),
])
def test_the_bounds_are_those_of_the_dtype(dtype: torch.dtype, bounds: tuple[int, int]) -> None:
    assert tensor(dtype=dtype).bounds == bounds


# -- planted bugs ---------------------------------------------------------------------------------------------------


def kernel(codes: Codes) -> Callable[[QuantizedTensor, Tensor], Tensor]:
    """A quantize kernel made of a formula for the codes: (values, scale, zero_point, low, high) -> codes."""
    def quantize(made: QuantizedTensor, values: Tensor) -> Tensor:
        scale, zero = made.scale.double()[:, None], made.zero_point.double()[:, None]
        storage = torch.int8 if made.dtype == torch.qint8 else torch.uint8
        found = codes(values.double(), scale, zero, *made.bounds).long().to(storage)  # wraps around, as a cast in C
        if made.per_channel:
            return torch._make_per_channel_quantized_tensor(found, made.scale.double(), made.zero_point, 0)
        return torch._make_per_tensor_quantized_tensor(found, float(made.scale), int(made.zero_point))
    return quantize


def half_away(values: Tensor) -> Tensor:
    return torch.sign(values) * torch.floor(values.abs() + 0.5)


def tail_of(found: Tensor, broken: Tensor) -> Tensor:
    return torch.cat([found[:, :-1], broken[:, -1:]], dim=1)


def good(x: Tensor, s: Tensor, z: Tensor, low: int, high: int) -> Tensor:
    return torch.clamp(torch.round(x / s) + z, low, high)


ALLOWED: dict[str, Codes] = {
    "half to even": good,
    "half away from zero": lambda x, s, z, low, high: torch.clamp(half_away(x / s) + z, low, high),
    "zero point before rounding": lambda x, s, z, low, high: torch.clamp(torch.round(x / s + z), low, high),
    "by the inverse scale": lambda x, s, z, low, high: torch.clamp(torch.round(x * (1 / s)) + z, low, high),
}
MUTANTS: dict[str, Codes] = {
    "truncation": lambda x, s, z, low, high: torch.clamp(torch.trunc(x / s) + z, low, high),
    "floor": lambda x, s, z, low, high: torch.clamp(torch.floor(x / s) + z, low, high),
    "ceiling": lambda x, s, z, low, high: torch.clamp(torch.ceil(x / s) + z, low, high),
    "no clamp": lambda x, s, z, low, high: torch.round(x / s) + z,
    "no upper clamp": lambda x, s, z, low, high: torch.clamp(torch.round(x / s) + z, min=low),
    "no lower clamp": lambda x, s, z, low, high: torch.clamp(torch.round(x / s) + z, max=high),
    "largest code one too small": lambda x, s, z, low, high: torch.clamp(torch.round(x / s) + z, low, high - 1),
    "smallest code one too large": lambda x, s, z, low, high: torch.clamp(torch.round(x / s) + z, low + 1, high),
    "clamp before the zero point": lambda x, s, z, low, high: torch.clamp(torch.round(x / s), low, high) + z + 1,
    "zero point forgotten and one off": lambda x, s, z, low, high: good(x, s, z + 1, low, high),
    "scale of channel 0 for all": lambda x, s, z, low, high: good(x, s[:1], z, low, high),
    "scale off by a percent": lambda x, s, z, low, high: good(x, s * 1.01, z, low, high),
    "last lane not written": lambda x, s, z, low, high: tail_of(good(x, s, z, low, high), z.expand_as(x)),
    "last lane truncated": lambda x, s, z, low, high: tail_of(
        good(x, s, z, low, high), torch.clamp(torch.trunc(x / s) + z, low, high)),
    "everything zero": lambda x, s, z, low, high: z.expand_as(x),
}


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("made", BOTH_KINDS, ids=["per tensor", "per channel"])
@pytest.mark.parametrize("zero_point", [0, 1, 7])
def test_ties_may_go_either_way(name: str, made: QuantizedTensor, zero_point: int) -> None:
    odd = tensor(made.scale.tolist(), [zero_point] * len(made.scale), dtype=made.dtype, per_channel=made.per_channel)
    assert check_roundtrip([odd], seed=0, quantize=kernel(ALLOWED[name])) == []


@pytest.mark.usefixtures("_no_shrinking")
@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_bug_is_found_on_a_model_with_both_kinds_of_qparams(name: str, seed: int) -> None:
    found = check_roundtrip(BOTH_KINDS, seed=seed, quantize=kernel(MUTANTS[name]))
    assert [finding.code for finding in found] == ["roundtrip-broken"]
    assert found[0].module == "fc"
    assert found[0].severity == "error"


@pytest.mark.usefixtures("_no_shrinking")
@pytest.mark.parametrize("name", sorted(set(MUTANTS) - {"scale of channel 0 for all"}))
@pytest.mark.parametrize("made", BOTH_KINDS, ids=["per tensor", "per channel"])
def test_a_planted_bug_is_found_in_either_kind_of_qparams(name: str, made: QuantizedTensor) -> None:
    assert check_roundtrip([made], seed=0, quantize=kernel(MUTANTS[name]))


def test_a_bug_in_one_tensor_of_many_is_found_and_named() -> None:
    def quantize(made: QuantizedTensor, values: Tensor) -> Tensor:
        return (kernel(MUTANTS["truncation"]) if made.module == "guilty" else torch_quantize)(made, values)

    tensors = [tensor(name="innocent.weight"), tensor(name="guilty.weight"), tensor(name="other.weight")]
    assert [finding.module for finding in check_roundtrip(tensors, seed=0, quantize=quantize)] == ["guilty"]


def test_a_bug_in_the_last_channel_is_found_and_the_channel_is_told() -> None:
    def last_channel(x: Tensor, s: Tensor, z: Tensor, low: int, high: int) -> Tensor:
        found = good(x, s, z, low, high)
        found[-1] = MUTANTS["truncation"](x[-1:], s[-1:], z[-1:], low, high)[0]
        return found

    found = check_roundtrip([PER_CHANNEL], seed=0, quantize=kernel(last_channel))
    assert found[0].evidence["channel"] == 2


def test_the_evidence_shows_a_value_that_breaks_the_law() -> None:
    found = check_roundtrip([tensor(0.5, 4)], seed=0, quantize=kernel(MUTANTS["truncation"]))[0].evidence
    assert (found["scale"], found["zero_point"]) == (0.5, 4)
    assert found["dequantized"] == (found["code"] - 4) * 0.5
    assert abs(found["value"] - found["dequantized"]) > 0.25


def test_the_same_seed_finds_the_same_example() -> None:
    first, second = (check_roundtrip(BOTH_KINDS, seed=3, quantize=kernel(MUTANTS["floor"])) for _ in range(2))
    assert first == second


def test_an_error_of_the_kernel_itself_is_not_swallowed() -> None:
    def broken(made: QuantizedTensor, values: Tensor) -> Tensor:
        raise NotImplementedError("no kernel")

    with pytest.raises(NotImplementedError, match="no kernel"):
        check_roundtrip([tensor()], seed=0, quantize=broken)


# -- bad qparams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "zero_point", "dtype"), [
    (0.0, 0, torch.quint8), (-1.0, 0, torch.quint8), (math.nan, 0, torch.quint8), (math.inf, 0, torch.quint8),
    (1e-40, 0, torch.quint8), (1.0, -1, torch.quint8), (1.0, 256, torch.quint8), (1.0, 128, torch.qint8),
    (1.0, -129, torch.qint8),
])
def test_qparams_that_make_no_sense_are_named_with_their_module(scale: float, zero_point: int,
                                                                dtype: torch.dtype) -> None:
    bad = tensor(scale, zero_point, dtype=dtype, name="head.output")
    found = check_roundtrip([tensor(), bad], seed=0)
    assert [(finding.code, finding.module) for finding in found] == [("bad-qparams", "head")]
    assert f"zero_point {zero_point}" in found[0].message
    assert found[0].remedy


def test_the_first_bad_channel_is_told() -> None:
    bad = tensor([0.1, 0.1, 0.0], [0, 0, 0], dtype=torch.qint8, per_channel=True)
    assert check_roundtrip([bad], seed=0)[0].evidence["channel"] == 2


def test_every_tensor_with_bad_qparams_is_named() -> None:
    bad = [tensor(0.0, name=f"layer{index}.weight") for index in range(3)]
    assert [finding.module for finding in check_roundtrip(bad, seed=0)] == ["layer0", "layer1", "layer2"]


# -- the tensors of a model -----------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.relu(self.conv(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


IMAGES, ROWS = torch.randn(2, 3, 4, 4), torch.randn(2, 4)


def converted(model: nn.Module, inputs: Tensor, *, workflow: str) -> nn.Module:
    case = QATCase(model=model.eval(), example_inputs=(inputs,))
    stages, recipe = load_workflow(workflow), get_recipe(f"{workflow}-x86")
    prepared = stages.prepare(case, recipe)
    prepared.module(inputs)
    return stages.convert(prepared, recipe).module


@pytest.mark.parametrize("workflow", ["fx", "eager"])
def test_weights_and_outputs_of_a_converted_model_are_found(workflow: str) -> None:
    found = {made.name: made for made in quantized_tensors(converted(Net(), IMAGES, workflow=workflow))}
    assert {"conv.weight", "conv.output", "body.1.weight", "body.1.output"} <= set(found)
    weight, output = found["conv.weight"], found["conv.output"]
    assert (weight.per_channel, weight.dtype, tuple(weight.scale.shape)) == (True, torch.qint8, (4,))
    assert (output.per_channel, output.dtype, tuple(output.scale.shape)) == (False, torch.quint8, (1,))
    assert {weight.module, output.module} == {"conv"}


@pytest.mark.parametrize("workflow", ["fx", "eager"])
def test_the_quantized_input_of_a_converted_model_is_found(workflow: str) -> None:
    model = converted(Net(), IMAGES, workflow=workflow)
    low, high = float(IMAGES.min()), float(IMAGES.max())
    scales = [float(made.scale) for made in quantized_tensors(model) if not made.per_channel]
    bits_7_or_8 = (high - low) / 255, (high - low) / 120
    assert any(bits_7_or_8[0] <= scale <= bits_7_or_8[1] for scale in scales), "the range of the input"


def test_every_activation_that_fx_quantizes_outside_of_modules_is_found() -> None:
    model = converted(Residual(), ROWS, workflow="fx")
    known = {float(scale) for name, scale in model.named_buffers() if "_scale_" in name}
    assert len(known) == 2, "the input's and the sum's"
    assert known <= {float(made.scale[0]) for made in quantized_tensors(model)}


@pytest.mark.parametrize("workflow", ["fx", "eager"])
def test_every_quantized_tensor_belongs_to_a_module_of_the_user_s(workflow: str) -> None:
    model = Net()
    found = quantized_tensors(converted(model, IMAGES, workflow=workflow))
    assert {made.module for made in found} <= {name for name, _ in model.named_modules()}, "'' is the model itself"


@pytest.mark.parametrize("workflow", ["fx", "eager"])
def test_a_healthy_model_keeps_the_law(workflow: str) -> None:
    assert check_roundtrip(quantized_tensors(converted(Net(), IMAGES, workflow=workflow)), seed=0) == []


def test_per_tensor_weights_are_found_too() -> None:
    mapping: Any = tq.QConfigMapping().set_global(tq.get_default_qat_qconfig("qnnpack"))
    case = QATCase(model=Residual().eval(), example_inputs=(ROWS,), qconfig_mapping=mapping)
    stages, recipe = load_workflow("fx"), get_recipe("fx-x86")
    prepared = stages.prepare(case, recipe)
    prepared.module(ROWS)
    found = {made.name: made for made in quantized_tensors(stages.convert(prepared, recipe).module)}
    assert not found["fc.weight"].per_channel
    assert found["fc.weight"].dtype == torch.qint8


def test_a_float_model_has_no_quantized_tensors() -> None:
    assert quantized_tensors(Net()) == []
