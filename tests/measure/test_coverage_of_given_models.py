"""How much runs in int8 of models that users have converted themselves: wrapped, renamed, or by torchao."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx

from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.measure.coverage import Coverage, measure_coverage

IMAGES = torch.randn(2, 3, 8, 8)
ROWS = torch.randn(3, 16)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


class Net(nn.Module):
    """A conv of 6*6*4*3*9 MACs and a linear layer of 4*5 for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


class Scaled(Net):
    """The same with a product of int8 tensors at the end, which torch computes in float."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.matmul(y, y.transpose(0, 1))


def eagerly(model: nn.Module) -> nn.Module:
    """Quantize by QuantWrapper, which puts the model under the name `module`."""
    wrapped = tq.QuantWrapper(copy.deepcopy(model)).train()
    wrapped.qconfig = tq.get_default_qat_qconfig("x86")
    prepared = tq.prepare_qat(wrapped)
    prepared(IMAGES)
    return tq.convert(prepared.eval())


def by_fx(model: nn.Module) -> nn.Module:
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model).eval(), tq.get_default_qconfig_mapping("x86"), (IMAGES,))
    prepared(IMAGES)
    return quantize_fx.convert_fx(prepared)


class Inside(nn.Module):
    """Holds a model under a name and does something of its own with what it gives."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, model)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x) * 2


def covered(model: nn.Module, converted: nn.Module, inputs: Tensor = IMAGES) -> Coverage:
    return measure_coverage(model.eval(), converted, (inputs,), reasons={})


@pytest.mark.parametrize("wrap", [
    eagerly, lambda model: Inside("inner", by_fx(model)), lambda model: Inside("a", Inside("b", by_fx(model)))],
    ids=["QuantWrapper", "one wrapper", "two wrappers"])
def test_layers_of_a_wrapped_model_are_found_under_the_names_of_the_float_model(
        wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Net().eval()
    found = covered(model, wrap(model))
    assert (found.mac_share, found.weight_share, found.int8_modules, found.leftovers) == (1.0, 1.0, 2, ())


def test_a_wrapped_model_that_is_one_layer_is_found_too() -> None:
    model = nn.Linear(16, 4).eval()
    found = covered(model, Inside("inner", tq.quantize_dynamic(nn.Sequential(model))[0]), ROWS)
    assert (found.mac_share, found.leftovers) == (1.0, ())


def test_a_layer_left_in_float_inside_a_wrapper_is_still_a_leftover() -> None:
    model = Net().eval()
    mapping = tq.get_default_qconfig_mapping("x86").set_module_name("head", None)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), mapping, (IMAGES,))
    prepared(IMAGES)
    found = covered(model, Inside("inner", quantize_fx.convert_fx(prepared)))
    assert [left.module for left in found.leftovers] == ["head"]
    assert found.int8_macs == found.macs - 2 * 20


def test_a_product_of_int8_tensors_inside_a_wrapper_is_still_said_to_compute_in_float() -> None:
    model = Scaled().eval()
    found = covered(model, Inside("inner", by_fx(model)))
    assert [left.module for left in found.leftovers] == [""]
    assert "quantized::matmul dequantizes" in found.leftovers[0].reason


def test_names_that_match_as_they_are_are_not_taken_for_a_wrapper() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16)), nn.Linear(16, 16)).eval()
    converted = tq.quantize_dynamic(model, {"0.0"})
    found = covered(model, converted, ROWS)
    assert [left.module for left in found.leftovers] == ["1"]
    assert found.mac_share == 0.5


class Renamed(nn.Module):
    """Other names for the same two layers."""

    def __init__(self, model: Net) -> None:
        super().__init__()
        self.stem, self.relu, self.classifier = model.conv, model.relu, model.head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.relu(self.stem(x)).mean((2, 3)))


def test_int8_layers_under_other_names_are_known_by_their_size() -> None:
    model = Net().eval()
    found = covered(model, by_fx(Renamed(model)))
    assert (found.mac_share, found.weight_share, found.int8_modules, found.leftovers) == (1.0, 1.0, 2, ())


def torchao_linear(config: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    converted = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(converted, getattr(quantization, config)(**options))
    return model, converted


def test_torchao_s_linear_layers_count_as_int8_where_they_multiply_integers() -> None:
    model, converted = torchao_linear("Int8DynamicActivationInt8WeightConfig")
    found = covered(model, converted, ROWS)
    assert (found.mac_share, found.weight_share, found.int8_modules, found.leftovers) == (1.0, 1.0, 2, ())


def test_torchao_s_linear_layers_inside_a_wrapper_count_too() -> None:
    model, converted = torchao_linear("Int8DynamicActivationInt8WeightConfig")
    found = covered(model, Inside("inner", converted), ROWS)
    assert (found.mac_share, found.int8_modules, found.leftovers) == (1.0, 2, ())


def test_torchao_s_weight_only_layers_are_leftovers_because_they_multiply_in_float() -> None:
    model, converted = torchao_linear("Int8WeightOnlyConfig")
    found = covered(model, converted, ROWS)
    assert (found.int8_macs, found.int8_modules) == (0, 0)
    reason = (f"torchao stores its weight as {type(converted[0].weight).__name__}, but multiplies in float, as "
              "weight-only quantization does")
    assert [(left.module, left.reason) for left in found.leftovers] == [("0", reason), ("2", reason)]


def test_a_layer_that_torchao_left_out_is_a_leftover_among_int8_ones() -> None:
    model, converted = torchao_linear("Int8DynamicActivationInt8WeightConfig")
    converted[2] = copy.deepcopy(model[2])
    found = covered(model, converted, ROWS)
    assert [left.module for left in found.leftovers] == ["2"]
    assert "torchao" not in found.leftovers[0].reason
    assert (found.int8_modules, found.int8_macs) == (1, 3 * 16 * 32)


def test_a_layer_of_torchao_s_that_is_not_called_counts_for_nothing() -> None:
    _, converted = torchao_linear("Int8WeightOnlyConfig")
    model = nn.ModuleDict({"spare": nn.Linear(16, 32), "used": nn.Linear(16, 4)}).eval()
    given = copy.deepcopy(model)
    given["spare"] = converted[0]
    for each in (model, given):
        each.forward = each["used"].forward
    found = covered(model, given, ROWS)
    assert ([left.module for left in found.leftovers], [idle.module for idle in found.idle]) == ([""], ["spare"])
