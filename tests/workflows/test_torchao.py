"""torchao's linear layers: which are chosen and why others are not, and that int8 and int4 are really stored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.errors import CheckFailed
from pytest_qat.finetune import calibrate, fine_tune
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.measure.size import census_of
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes.stored import stored_tensors
from pytest_qat.workflows import torchao
from pytest_qat.workflows.base import PreparedModel
from pytest_qat.workflows.observers import fake_quantizers, switch_fake_quantize

INT8, INT4 = get_recipe("torchao-int8"), get_recipe("torchao-int4")
RECIPES = pytest.mark.parametrize("recipe", [INT8, INT4], ids=["int8", "int4"])
WORDS = torch.randn(4, 5, 48, generator=torch.Generator().manual_seed(0))
SKIPPED = "left in float on purpose (skip)"


class Encoder(nn.Module):
    """Attention and two linear layers; 48 inputs are no multiple of int4's group."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 64)
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.feed = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.feed(self.norm(x + self.attention(x, x, x)[0]).mean(1))


def made(model: nn.Module | None = None, **changes: Any) -> QATCase:
    torch.manual_seed(0)
    return QATCase(model=(model or Encoder()).eval(), example_inputs=(WORDS,), **changes)


def prepared_for(case: QATCase, recipe: Any) -> PreparedModel:
    prepared = torchao.prepare(case, recipe)
    calibrate(prepared.module, [WORDS])
    prepared.module.eval()
    return prepared


def quantized(module: nn.Module) -> list[str]:
    return [name.removesuffix(".weight_fake_quantizer") for name, _ in fake_quantizers(module) if "weight" in name]


def stored(module: nn.Module) -> dict[str, str]:
    """The dtype of every weight, by its first plain tensor."""
    return {tensor.name.removesuffix(".qdata"): tensor.dtype for tensor in stored_tensors(module.state_dict())
            if tensor.name.endswith((".weight", "_weight", ".qdata")) and len(tensor.shape) > 1}


# -- prepare --------------------------------------------------------------------------------------------------------

@RECIPES
def test_preparing_and_converting_leave_the_users_model_as_it_was(recipe: Any) -> None:
    model = Encoder().train()
    before = copy.deepcopy(model.state_dict())
    prepared = torchao.prepare(QATCase(model=model, example_inputs=(WORDS,)), recipe)
    torchao.convert(prepared, recipe)
    assert model.training
    assert type(model.embed) is nn.Linear
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert prepared.module.training


def test_every_linear_layer_that_is_called_is_fake_quantized() -> None:
    prepared = torchao.prepare(made(), INT8)
    assert quantized(prepared.module) == ["embed", "feed.0", "feed.3"]
    assert sum("activation" in name for name, _ in fake_quantizers(prepared.module)) == 3


def test_layers_left_in_float_have_reasons() -> None:
    assert torchao.prepare(made(), INT8).float_modules == {
        "attention": "MultiheadAttention has no int8 form in this workflow",
        "attention.out_proj": "nn.MultiheadAttention reads its weight itself, without calling the layer",
        "norm": "LayerNorm has no int8 form in this workflow",
    }


def test_int4_needs_inputs_in_whole_groups() -> None:
    prepared = torchao.prepare(made(), INT4)
    assert prepared.float_modules["embed"] == "its 48 inputs are no multiple of the group of 32"
    assert quantized(prepared.module) == ["feed.0", "feed.3"]


def test_skipped_layers_and_what_is_beneath_them_stay_float() -> None:
    prepared = torchao.prepare(made(skip=("feed", "norm")), INT8)
    assert quantized(prepared.module) == ["embed"]
    assert {name for name, reason in prepared.float_modules.items() if reason == SKIPPED} == {
        "feed", "feed.0", "feed.1", "feed.2", "feed.3", "norm"}


def test_a_skip_does_not_reach_a_name_that_only_begins_alike() -> None:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(48, 64))
    model.add_module("fc2", nn.Linear(64, 2))
    prepared = torchao.prepare(made(model, skip=("fc",)), INT8)
    assert quantized(prepared.module) == ["fc2"]


def test_attention_at_the_root_is_refused_with_its_reasons() -> None:
    case = QATCase(model=nn.MultiheadAttention(64, 2).eval(), example_inputs=(torch.randn(2, 1, 64),) * 3)
    with pytest.raises(CheckFailed, match="no linear layer to quantize") as caught:
        torchao.prepare(case, INT8)
    assert "reads its weight itself" in caught.value.findings[0].evidence["out_proj"]


@pytest.mark.parametrize(("model", "recipe", "reason", "part"), [
    (nn.Sequential(nn.Conv1d(5, 4, 3)), INT8, "Conv1d has no int8 form in this workflow", "the model has none"),
    (nn.Sequential(nn.Linear(48, 4)), INT4, "its 48 inputs are no multiple of the group of 32", "(0: its 48 inputs"),
], ids=["no-linear", "no-whole-group"])
def test_a_model_without_a_layer_that_fits_is_refused(model: nn.Module, recipe: Any, reason: str, part: str) -> None:
    with pytest.raises(CheckFailed, match="no linear layer to quantize") as caught:
        torchao.prepare(made(model), recipe)
    (finding,) = caught.value.findings
    assert finding.code == "no-linear-layers"
    assert part in finding.message
    assert not finding.remedy, "what helps is tried, not guessed"
    assert finding.evidence == {"0": reason}


@pytest.mark.parametrize(("recipe", "least_db"), [(INT8, 30), (INT4, 12)], ids=["int8", "int4"])
def test_a_prepared_model_is_near_the_float_one(recipe: Any, least_db: float) -> None:
    case = made()
    module = prepared_for(case, recipe).module
    assert least_db < sqnr_db(case.model(WORDS), module(WORDS)) < 60
    switch_fake_quantize(module, on=False)
    assert sqnr_db(case.model(WORDS), module(WORDS)) > 100


# -- convert --------------------------------------------------------------------------------------------------------

@RECIPES
def test_the_converted_form_agrees_with_the_prepared_one(recipe: Any) -> None:
    prepared = prepared_for(made(), recipe)
    converted = torchao.convert(prepared, recipe).module
    assert sqnr_db(prepared.module(WORDS), converted(WORDS)) > 30
    assert not converted.training
    assert quantized(prepared.module)
    assert not list(fake_quantizers(converted))


@RECIPES
def test_the_form_agrees_after_training_too(recipe: Any) -> None:
    case = made(train_data=[(WORDS, torch.arange(4))] * 5, loss_fn=nn.functional.cross_entropy,
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    prepared = prepared_for(case, recipe)
    before = copy.deepcopy(prepared.module.state_dict())
    done = fine_tune(prepared.module, case)
    assert done.steps == 5
    changed = {name for name, tensor in prepared.module.state_dict().items() if not torch.equal(before[name], tensor)}
    assert {"embed.weight", "feed.0.weight", "feed.3.weight"} <= changed
    converted = torchao.convert(PreparedModel(module=copy.deepcopy(prepared.module), float_modules={}), recipe).module
    assert sqnr_db(prepared.module(WORDS), converted(WORDS)) > 30


def test_batches_of_any_size_fit() -> None:
    converted = torchao.convert(prepared_for(made(), INT8), INT8).module
    assert [tuple(converted(torch.randn(size, 5, 48)).shape) for size in (1, 3, 8)] == [(1, 4), (3, 4), (8, 4)]


def test_int8_weights_are_stored_as_int8() -> None:
    converted = torchao.convert(prepared_for(made(), INT8), INT8).module
    assert stored(converted) == {
        "embed.weight": "int8", "attention.in_proj_weight": "float32", "attention.out_proj.weight": "float32",
        "feed.0.weight": "int8", "feed.3.weight": "int8"}
    tensors = stored_tensors(converted.state_dict())
    sizes = {tensor.name: tensor.size_bytes for tensor in tensors}
    assert sizes["feed.0.weight.qdata"] == 64 * 64
    census = census_of(tensors, total_bytes=sum(tensor.size_bytes for tensor in tensors))
    assert {tensor.name for tensor in census.float_weights(least_share=0.1)} == {
        "attention.in_proj_weight", "attention.out_proj.weight"}


def test_int4_weights_have_a_scale_for_each_group() -> None:
    converted = torchao.convert(prepared_for(made(), INT4), INT4).module
    assert stored(converted)["embed.weight"] == "float32"
    parts = {tensor.name: (tensor.dtype, tensor.shape) for tensor in stored_tensors(converted.state_dict())}
    assert parts["feed.0.weight.qdata"] == ("int8", (64, 64))
    assert parts["feed.0.weight.scale"] == ("float32", (64, 64 // torchao.GROUP))
    values: Any = converted.get_parameter("feed.0.weight")
    assert int(values.qdata.min()) >= -8
    assert int(values.qdata.max()) <= 7


def test_the_float_twin_is_a_copy_in_eval_mode() -> None:
    model = Encoder().train()
    twin = torchao.float_twin(QATCase(model=model, example_inputs=(WORDS,)))
    assert not twin.training
    assert model.training
    assert twin.get_parameter("embed.weight") is not model.embed.weight


class Scaled(nn.Linear):
    """A linear layer with equalised learning rate."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 0.1, self.bias)


@RECIPES
@pytest.mark.parametrize(("layer", "reason"), [
    (Scaled(64, 64), "Scaled has a forward of its own"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), "computed anew in every call"),
], ids=["subclass", "parametrized"])
def test_linear_layers_that_are_more_than_linear_stay_in_float_and_say_why(recipe: Any, layer: nn.Module,
                                                                           reason: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), layer, nn.ReLU(), nn.Linear(64, 4)).eval()
    inputs = torch.randn(8, 64)
    case = QATCase(model=model, example_inputs=(inputs,))
    prepared = torchao.prepare(case, recipe)
    assert reason in prepared.float_modules["2"]
    assert quantized(prepared.module) == ["0", "4"]
    switch_fake_quantize(prepared.module.eval(), on=False)
    with torch.no_grad():
        assert sqnr_db(model(inputs), prepared.module(inputs)) > 80
