"""Eager mode does by itself what users otherwise do by hand, and says what nobody can."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn.intrinsic import qat as nniqat
from torch.ao.nn.quantized import FloatFunctional

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.errors import CheckFailed
from pytest_qat.finetune import calibrate, untrained_copy
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import PreparedModel, eager, load_workflow

RECIPE = get_recipe("eager-x86")
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class ConvBnRelu(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside),
                         nn.ReLU(inplace=True))


class Block(nn.Module):
    """A user's container: names that no fuser knows, an inplace ReLU, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = ConvBnRelu(3, 8)
        self.body = nn.ModuleDict({"norm": nn.BatchNorm2d(8), "conv": nn.Conv2d(8, 8, 1)})
        self.head = nn.Linear(8, 5)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["norm"](self.body["conv"](self.entry(x)))
        return self.act(self.head(x.mean((2, 3))))


class Residual(nn.Module):
    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.stem = ConvBnRelu(3, 8)
        self.inner = nn.Sequential(ConvBnRelu(8, 8), nn.Conv2d(8, 8, 1))
        self.add = FloatFunctional() if functional else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.add.add(x, self.inner(x)) if self.add is not None else x + self.inner(x)


class TwoInputs(nn.Module):
    """Two inputs, one of them indices; a dict with a tuple inside comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.table = nn.Linear(6, 8), nn.Embedding(10, 8)
        self.join, self.act, self.head = FloatFunctional(), nn.SiLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Any]:
        joined = self.act(self.join.add(self.dense(x), self.table(index)))
        return {"logits": self.head(joined), "aux": (joined, index)}


def case(model: nn.Module, *inputs: Tensor, **settings: Any) -> QATCase:
    return QATCase(model=model.eval(), example_inputs=inputs or (IMAGES,), **settings)


def int8(made: QATCase, workflow: Any = eager, recipe: Any = RECIPE) -> nn.Module:
    """The calibrated and converted model, without training."""
    with preserved_torch_state(seed=0), quantized_engine(recipe.engine):
        prepared = workflow.prepare(made, recipe)
        calibrate(prepared.module, [made.example_inputs])
        twin = PreparedModel(module=untrained_copy(prepared.module), float_modules={})
        return workflow.convert(twin, recipe).module


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def test_chains_inside_a_users_containers_are_fused() -> None:
    with quantized_engine("x86"):
        module = eager.prepare(case(Block()), RECIPE).module
    assert isinstance(module.get_submodule("module.entry.0"), nniqat.ConvBnReLU2d)
    assert isinstance(module.get_submodule("module.body.conv"), nniqat.ConvBn2d)
    assert isinstance(module.get_submodule("module.head"), nniqat.LinearReLU)


def test_a_chain_is_not_fused_when_a_value_inside_goes_elsewhere_too() -> None:
    class Tapped(Block):
        def forward(self, x: Tensor) -> Any:
            between = self.entry[1](self.entry[0](x))
            return self.entry[2](between.clone()), between

    with quantized_engine("x86"):
        module = eager.prepare(case(Tapped()), RECIPE).module
    assert isinstance(module.get_submodule("module.entry.0"), nniqat.ConvBn2d)
    assert isinstance(module.get_submodule("module.entry.2"), nn.ReLU)


def test_a_relu_that_is_called_twice_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.relu = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.two(self.relu(self.one(x))))

    converted = int8(case(Shared()))
    assert kinds(converted)["module.one"] == "Conv2d"
    assert kinds(converted)["module.relu"] == "ReLU"


def test_explicit_groups_take_the_place_of_found_ones() -> None:
    with quantized_engine("x86"):
        module = eager.prepare(case(Block(), fuse=[["entry.0", "entry.1"]]), RECIPE).module
    assert isinstance(module.get_submodule("module.entry.0"), nniqat.ConvBn2d)
    assert type(module.get_submodule("module.head")).__name__ == "Linear"


def test_stubs_are_added_only_where_the_model_has_none() -> None:
    class Stubbed(Block):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(super().forward(self.quant(x)))

    assert "module" in dict(int8(case(Block())).named_children())
    assert "module" not in dict(int8(case(Stubbed())).named_children())


def test_a_plus_between_int8_tensors_is_reported_by_module_before_any_training() -> None:
    with quantized_engine("x86"), pytest.raises(CheckFailed) as caught:
        eager.prepare(case(nn.Sequential(Residual(functional=False))), RECIPE)
    (finding,) = caught.value.findings
    assert finding.module == "0"
    assert "`+`" in finding.message
    assert "FloatFunctional" in finding.message


def test_a_float_functional_is_no_such_plus() -> None:
    model = Residual(functional=True)
    assert kinds(int8(case(model)))["module.add"] == "QFunctional"


def test_a_plus_outside_the_stubs_is_none_of_our_business() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv, self.dequant = tq.QuantStub(), nn.Conv2d(3, 8, 1), tq.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.conv(self.quant(x))) + 1.0

    assert kinds(int8(case(Outside())))["conv"] == "Conv2d"


@pytest.mark.parametrize("skipped", ["head", "entry", "entry.0", "body.conv"])
def test_skipped_modules_run_in_float_between_int8_ones(skipped: str) -> None:
    model = Block()
    converted = int8(case(model, skip=(skipped,)))
    inner = converted.get_submodule(f"module.{skipped}.module")
    assert all(parameter.dtype == torch.float32 for parameter in inner.parameters())
    assert sqnr_db(model(IMAGES), converted(IMAGES)) > 15


def test_the_output_of_a_float_head_is_not_quantized_again() -> None:
    converted = int8(case(Block(), skip=("head", "act")))
    assert isinstance(converted.get_submodule("module.head").quant, nn.Identity)


def test_a_qconfig_mapping_works_by_type_and_by_name() -> None:
    mapping = (tq.get_default_qat_qconfig_mapping("x86").set_object_type(nn.Linear, None)
               .set_module_name("body.conv", None))
    converted = int8(case(Block(), qconfig_mapping=mapping))
    names = kinds(converted)
    assert names["module.head.module"] == "Linear"
    assert isinstance(converted.get_submodule("module.head.module"), nn.Linear)
    assert isinstance(converted.get_submodule("module.body.conv.module"), nn.Conv2d)
    assert "quantized" in type(converted.get_submodule("module.entry.0")).__module__


def test_a_type_qconfig_reaches_its_fused_form() -> None:
    per_tensor = tq.QConfig(activation=tq.default_fake_quant, weight=tq.default_weight_fake_quant)
    mapping = tq.get_default_qat_qconfig_mapping("x86").set_object_type(nn.Conv2d, per_tensor)
    converted = int8(case(Block(), qconfig_mapping=mapping))
    assert converted.get_submodule("module.entry.0").weight().qscheme() == torch.per_tensor_affine
    assert converted.get_submodule("module.head").weight().qscheme() == torch.per_channel_affine


@pytest.mark.parametrize("workflow", ["eager", "fx"])
def test_several_inputs_and_nested_outputs_are_ordinary(workflow: str) -> None:
    model = TwoInputs().eval()
    inputs = (torch.randn(4, 6), torch.arange(4))
    converted = int8(case(model, *inputs), load_workflow(workflow), get_recipe(f"{workflow}-x86"))
    seen, expected = converted(*inputs), model(*inputs)
    assert sqnr_db(expected["logits"], seen["logits"]) > 15
    assert torch.equal(seen["aux"][1], inputs[1])
    assert not seen["aux"][0].is_quantized


@pytest.mark.parametrize("workflow", ["eager", "fx"])
@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn", "qnnpack"])
def test_every_engine_quantizes_and_is_restored(workflow: str, engine: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"no {engine} on this machine")
    before = torch.backends.quantized.engine
    model = Block()
    converted = int8(case(model), load_workflow(workflow), get_recipe(f"{workflow}-{engine}"))
    assert torch.backends.quantized.engine == before
    with quantized_engine(engine):
        assert sqnr_db(model(IMAGES), converted(IMAGES)) > 15


@pytest.mark.parametrize("workflow", ["eager", "fx"])
def test_the_users_model_is_never_changed(workflow: str) -> None:
    model = Residual(functional=True).eval()
    before, keys = copy.deepcopy(model.state_dict()), [(name, type(part)) for name, part in model.named_modules()]
    made = case(model)
    int8(made, load_workflow(workflow), get_recipe(f"{workflow}-x86"))
    load_workflow(workflow).float_twin(made)
    assert [(name, type(part)) for name, part in model.named_modules()] == keys
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks or hasattr(part, "qconfig")
                   for part in model.modules())


@pytest.mark.parametrize(("workflow", "options"), [("eager", {}), ("fx", {}), ("eager", {"fuse": []})])
def test_the_float_twin_computes_the_same_with_batchnorm_folded(workflow: str, options: dict[str, Any]) -> None:
    model = Residual(functional=True)
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.randn(16, 3, 8, 8))
    model.eval()
    twin = load_workflow(workflow).float_twin(case(model, **options))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    assert sqnr_db(model(IMAGES), twin(IMAGES)) > 80


def test_an_activation_under_two_names_stays_in_float_under_both() -> None:
    """Two names of one module: eager mode replaces modules by name."""
    shared = nn.SiLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 8, 3), shared, nn.Conv2d(8, 4, 3))
    converted = int8(case(model))
    assert sqnr_db(model(IMAGES), converted(IMAGES)) > 15


def test_a_model_that_stays_in_float_as_a_whole_is_prepared_as_it_is() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    words = torch.randn(2, 5, 8)
    converted = int8(case(model, words, words, words))
    with torch.no_grad():
        assert sqnr_db(model(words, words, words)[0], converted(words, words, words)[0]) > 25
