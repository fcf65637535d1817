"""How much of a model runs in int8, on small converted models."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.nn import functional

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.measure.coverage import Coverage, Idle, Leftover, measure_coverage
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import load_workflow

WORKFLOWS = ["fx", "eager"]


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


def covered(model: nn.Module, *inputs: Tensor, workflow: str = "fx", **options: Any) -> Coverage:
    """Quantize a model by one of the package's workflows and measure the result."""
    case = QATCase(model=model.eval(), example_inputs=inputs, **options)
    stages, recipe = load_workflow(workflow), get_recipe(f"{workflow}-x86")
    prepared = stages.prepare(case, recipe)
    prepared.module(*inputs)
    converted = stages.convert(prepared, recipe)
    return measure_coverage(model, converted.module, inputs, reasons=prepared.float_modules)


class Convolutional(nn.Module):
    """A conv of 8*8*4*3*9 = 6912 MACs and a linear layer of 4*5 = 20 for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.pool(self.relu(self.bn(self.conv(x))))))


IMAGES = torch.randn(2, 3, 8, 8)
ROWS = torch.randn(2, 4)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_model_of_convolution_and_linear_runs_in_int8_entirely(workflow: str) -> None:
    found = covered(Convolutional(), IMAGES, workflow=workflow)
    assert (found.macs, found.int8_macs, found.mac_share) == (2 * 6932, 2 * 6932, 1.0)
    assert (found.weights, found.int8_weights, found.weight_share) == (128, 128, 1.0)
    assert found.leftovers == ()


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_int8_module_is_counted_once(workflow: str) -> None:
    assert covered(Convolutional(), IMAGES, workflow=workflow).int8_modules == 2


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_skipped_module_is_left_over_with_its_reason(workflow: str) -> None:
    found = covered(Convolutional(), IMAGES, workflow=workflow, skip=("head",))
    assert found.leftovers == (
        Leftover(module="head", kind="Linear", weights=20, macs=40, reason="left in float on purpose (skip)"),)
    assert found.mac_share == pytest.approx(6912 / 6932)
    assert found.weight_share == pytest.approx(108 / 128)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_leftovers_below_a_skipped_parent_have_the_parent_s_reason(workflow: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    found = covered(model, ROWS, workflow=workflow, skip=("1",))
    assert [(left.module, left.reason) for left in found.leftovers] == [
        ("1.0", "left in float on purpose (skip)"), ("1.2", "left in float on purpose (skip)")]


def test_leftovers_come_with_most_multiply_accumulates_first() -> None:
    found = covered(Convolutional(), IMAGES, skip=("head", "conv", "bn", "relu"))
    assert [left.module for left in found.leftovers] == ["conv", "head"]
    assert found.int8_modules == 0
    assert found.mac_share == 0


class Matching(nn.Module):
    """A linear layer of 4*4*3 MACs, and a product of 3*4*3 outside of any module, for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.fc(x), x.transpose(-1, -2))


def test_a_functional_product_in_float_is_left_over_under_its_owner() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Matching())
    mapping = tq.get_default_qat_qconfig_mapping("x86").set_object_type(torch.matmul, None)
    found = covered(model, torch.randn(2, 3, 4), qconfig_mapping=mapping)
    assert [(left.module, left.kind, left.weights, left.macs) for left in found.leftovers] == [("1", "Matching", 0, 72)]
    assert found.mac_share == pytest.approx(192 / 264)


def test_torch_s_product_of_int8_tensors_is_a_leftover_because_it_computes_in_float() -> None:
    found = covered(nn.Sequential(nn.Linear(4, 4), Matching()), torch.randn(2, 3, 4))
    assert [(left.module, left.macs) for left in found.leftovers] == [("1", 72)]
    assert "quantized::matmul dequantizes" in found.leftovers[0].reason
    assert found.mac_share == pytest.approx(192 / 264)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.words(x))


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_an_embedding_is_left_over_for_its_weights_alone(workflow: str) -> None:
    found = covered(Words(), torch.tensor([[1, 2], [3, 4]]), workflow=workflow)
    assert [(left.module, left.kind, left.weights, left.macs) for left in found.leftovers] == [
        ("words", "Embedding", 40, 0)]
    assert "weight-only qconfig" in found.leftovers[0].reason
    assert found.mac_share == 1
    assert found.weight_share == pytest.approx(8 / 48)


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_module_that_is_never_called_is_no_part_of_the_account() -> None:
    found = covered(Spare(), ROWS)
    assert (found.mac_share, found.weight_share, found.weights, found.leftovers) == (1.0, 1.0, 16, ())
    assert found.idle == (Idle(module="spare", weights=12, called=False, names=("spare.weight",)),)


def test_an_int8_module_that_is_never_called_does_not_count() -> None:
    found = covered(Spare(), ROWS, workflow="eager", skip=("fc",))
    assert (found.int8_modules, found.int8_macs) == (0, 0)


def test_the_float_model_itself_is_covered_by_nothing() -> None:
    found = measure_coverage(Convolutional().eval(), Convolutional().eval(), (IMAGES,), reasons={})
    assert (found.int8_modules, found.int8_macs, found.int8_weights) == (0, 0, 0)
    assert {left.module for left in found.leftovers} == {"conv", "head"}
    assert all("no int8 tensor reaches this" in left.reason for left in found.leftovers)


def test_a_prepared_model_is_not_yet_in_int8() -> None:
    prepared = quantize_fx.prepare_qat_fx(
        Convolutional().train(), tq.get_default_qat_qconfig_mapping("x86"), (IMAGES,))
    assert measure_coverage(Convolutional().eval(), prepared, (IMAGES,), reasons={}).int8_modules == 0


def test_the_reference_form_of_a_converted_model_computes_in_float() -> None:
    prepared = quantize_fx.prepare_qat_fx(
        Convolutional().train(), tq.get_default_qat_qconfig_mapping("x86"), (IMAGES,))
    prepared(IMAGES)
    reference = quantize_fx.convert_to_reference_fx(prepared.eval())
    assert measure_coverage(Convolutional().eval(), reference, (IMAGES,), reasons={}).int8_modules == 0


class Listed(nn.Module):
    """Layers in a ModuleList, which itself is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_layers_in_a_list_are_counted_once(workflow: str) -> None:
    found = covered(Listed(), ROWS, workflow=workflow)
    assert (found.macs, found.mac_share, found.leftovers) == (2 * 3 * 16, 1.0, ())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x))


def test_a_layer_that_is_called_twice_counts_its_work_twice_and_its_weights_once() -> None:
    found = covered(Twice(), ROWS)
    assert (found.macs, found.weights) == (2 * 2 * 16, 16)


class Positioned(nn.Module):
    """A parameter of its own that is added, without any product."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(3, 4))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.position)


def test_a_parameter_that_is_added_is_neither_a_weight_nor_idle() -> None:
    found = covered(nn.Sequential(Positioned(), nn.Linear(4, 2)), torch.randn(2, 3, 4))
    assert (found.weights, found.weight_share, found.leftovers, found.idle) == (24, 1.0, (), ())


class Wrapped(nn.Module):
    """A user's own child that happens to be called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_child_that_is_called_module_is_found_again(workflow: str) -> None:
    found = covered(Wrapped(), ROWS, workflow=workflow)
    assert (found.mac_share, found.weight_share, found.leftovers) == (1.0, 1.0, ())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0])


def test_a_recurrent_layer_that_is_called_is_not_said_to_be_uncalled() -> None:
    model = Recurrent().eval()
    found = measure_coverage(model, model, (torch.randn(2, 3, 4),), reasons={})
    left = {left.module: left for left in found.leftovers}
    assert left["lstm"].weights == 2 * 16 * 4
    assert left["lstm"].reason != "not called on the example inputs"


def test_measuring_changes_neither_model() -> None:
    model = Convolutional().eval()
    before = copy.deepcopy(model.state_dict())
    measure_coverage(model, model, (IMAGES,), reasons={})
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("total", "part", "share"), [(0, 0, 0.0), (8, 2, 0.25), (8, 8, 1.0)])
def test_shares_of_nothing_are_nothing(total: int, part: int, share: float) -> None:
    found = Coverage(weights=total, int8_weights=part, macs=total, int8_macs=part, int8_modules=1, leftovers=())
    assert (found.mac_share, found.weight_share) == (share, share)


def test_float16_in_a_dynamic_layer_is_no_int8() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    for dtype, share in ((torch.float16, 0.0), (torch.qint8, 1.0)):
        converted = tq.quantize_dynamic(model, {nn.Linear}, dtype=dtype)
        found = measure_coverage(model, converted, (ROWS,), reasons={})
        assert (found.mac_share, found.int8_modules) == (share, 2 * share)


def test_a_dynamic_lstm_holds_int8_weights() -> None:
    model = nn.Sequential(nn.LSTM(4, 3)).eval()
    for dtype, modules in ((torch.float16, 0), (torch.qint8, 1)):
        converted = tq.quantize_dynamic(model, {nn.LSTM}, dtype=dtype)
        assert measure_coverage(model, converted, (ROWS[None],), reasons={}).int8_modules == modules


class Product(nn.Module):
    """Two linear layers and a product of what they give; torch's quantized matmul computes in float."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.left(x), self.right(x).transpose(0, 1))


def test_a_product_between_int8_tensors_is_a_leftover() -> None:
    found = covered(Product(), torch.randn(16, 4))
    assert (found.macs, found.int8_macs) == (2 * 256 + 1024, 2 * 256)
    assert [(each.module, each.macs) for each in found.leftovers] == [("", 1024)]


class Attending(nn.Module):
    """A linear layer of 4*4 MACs a row by its own weights, and two float products of 16*4 a row of 16 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight)
        return torch.matmul(torch.softmax(torch.matmul(y, y.transpose(0, 1)), -1), y)


@pytest.mark.parametrize("quantized_products", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_float_products_beside_a_functional_int8_layer_are_left_over(quantized_products: bool, inside: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Attending()) if inside else Attending()
    mapping = tq.get_default_qat_qconfig_mapping("x86")
    if not quantized_products:
        mapping = mapping.set_object_type(torch.matmul, None)
    found = covered(model, torch.randn(16, 4), qconfig_mapping=mapping)
    owner, others = ("1", 256) if inside else ("", 0)
    assert (found.macs, found.int8_macs) == (others + 256 + 2 * 1024, others + 256)
    assert [(left.module, left.weights, left.macs) for left in found.leftovers] == [(owner, 0, 2048)]
    assert ("quantized::matmul" in found.leftovers[0].reason) is quantized_products


@pytest.mark.parametrize("between", [
    lambda x: functional.interpolate(x, size=(16, 16), mode="nearest"),
    lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"), lambda x: functional.max_pool2d(x, 2),
    lambda x: x.flatten(2).unsqueeze(2)])
def test_ops_between_int8_layers_are_counted_whatever_torch_has_registered_for_them(between: Callable) -> None:
    """torch's compiler registers decompositions in Python, which know no quantized dtype."""
    importlib.import_module("torch._decomp")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(between(self.first(x)))

    found = covered(Net(), torch.randn(1, 3, 8, 8))
    assert (found.mac_share, found.int8_modules) == (1.0, 2)
