"""Graphs that quantizers and runtimes get wrong, and what is done to them first."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.errors import MissingPackage
from pytest_qat.exported.fixes import (
    complete_batchnorms,
    read_weights_apart,
    shield,
    unfoldable,
    unshield,
    with_own_biases,
)
from pytest_qat.exported.program import export_program, module_of
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import DeploySettings, load_runtime
from pytest_qat.runtimes.graph_kernels import bias_place, kernels_of, products
from pytest_qat.workflows import pt2e
from pytest_qat.workflows.observers import fake_quantizers
from tests.answers import answer, quietly
from tests.workflows.pt2e_models import INDUCTOR, RECIPES, XNNPACK, made, ops, prepared_for

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TIES_DB = 28.0
"""Rounding ties travel; folded wrongly, a model is under 14 dB."""
GRID = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))


class Shared(nn.Module):
    """A detection head over two levels of different range, a decoder, and a linear layer for both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 3)
        nn.init.uniform_(self.head.bias, 1.0, 2.0)  # type: ignore[arg-type]
        nn.init.uniform_(self.last.bias, 1.0, 2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        near = torch.relu(self.stem(x))
        far = torch.relu(self.up(near)) * 0.05
        return self.last(self.head(near).mean((2, 3))), self.last(self.head(far).mean((2, 3)) * 0.1)


class Normed(nn.Module):
    """A convolution before a BatchNorm, called so many times."""

    def __init__(self, conv: nn.Module | None = None, *, calls: int = 1, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1) if conv is None else conv
        self.norm = nn.BatchNorm2d(4, **options)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = torch.relu(self.norm(self.conv(x)))
        return x


def exported(model: nn.Module, inputs: Tensor = GRID) -> Any:
    with quietly():
        return export_program(model.eval(), (inputs,), any_batch=False).module()


@RECIPES
def test_every_call_of_a_shared_layer_is_quantized_and_its_weight_stays_one(recipe: Any) -> None:
    prepared = prepared_for(made(Shared(), IMAGES), recipe)
    weights = [node.args[1] for name in ("conv2d", "linear") for node in ops(prepared.module, name)]
    assert len(weights) == 5
    assert all(weight.op == "call_module" for weight in weights if isinstance(weight, torch.fx.Node))
    names = [name for name, _ in prepared.module.named_parameters()]
    assert sum("head" in name for name in names) == 2
    assert sum("last" in name for name in names) == 2


def test_weights_of_transposed_convolutions_are_quantized_per_output_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3))
    prepared = prepared_for(made(model, GRID), XNNPACK)
    per_channel = {tuple(fake.scale.shape): fake.ch_axis for _, fake in fake_quantizers(prepared.module)
                   if fake.is_per_channel}
    assert per_channel[(6,)] == 1
    assert set(per_channel.values()) == {1}, "torchao's copy of the quantizer leaves the last one in float"
    converted = pt2e.convert(prepared, XNNPACK).module
    assert sqnr_db(prepared.module(GRID), converted(GRID)) > 60


@pytest.mark.slow
def test_what_the_shared_model_ships_agrees_with_what_was_simulated(tmp_path: Path) -> None:
    recipe = get_recipe("pt2e-executorch")
    try:
        recipe.require_packages()
    except MissingPackage as missing:
        pytest.skip(missing.message)
    model = Shared().eval()
    prepared = prepared_for(made(model, IMAGES), recipe)
    with quietly():
        shipped = load_runtime("executorch").deploy(
            model, pt2e.convert(prepared, recipe).module, (IMAGES,), tmp_path,
            DeploySettings(engine=None, threads=1, timeout_s=300)).int8["contiguous"]
    assert [kernel.module for kernel in shipped.kernels or () if not kernel.int8] == []
    for simulated, found in zip(answer(prepared.module, (IMAGES,)), shipped.run(shipped.adapt((IMAGES,))), strict=True):
        assert sqnr_db(simulated, found) > 30


# -- BatchNorm ------------------------------------------------------------------------------------------------------


def test_a_batchnorm_without_weight_and_bias_gets_ones_and_zeros_that_do_not_learn() -> None:
    model = Normed(affine=False).eval()
    nn.init.uniform_(model.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    graph_module = exported(model)
    parameters = len(list(graph_module.parameters()))
    complete_batchnorms(graph_module)
    (norm,) = [node for node in graph_module.graph.nodes if "batch_norm" in str(node.target)]
    assert all(isinstance(norm.args[place], torch.fx.Node) for place in (1, 2))
    assert len(list(graph_module.parameters())) == parameters
    assert torch.equal(graph_module(GRID), model(GRID))


@pytest.mark.slow
def test_a_batchnorm_without_weight_and_bias_is_prepared_and_converted() -> None:
    prepared = prepared_for(made(Normed(affine=False), GRID), INDUCTOR)
    converted = pt2e.convert(prepared, INDUCTOR).module
    assert sqnr_db(answer(prepared.module, (GRID,)), answer(converted, (GRID,))) > TIES_DB


@pytest.mark.parametrize(("model", "unfit"), [
    (Normed(), 0), (Normed(calls=2), 2), (Normed(track_running_stats=False), 1),
    (Normed(nn.ConvTranspose2d(4, 4, 3)), 0), (Normed(nn.ConvTranspose2d(4, 4, 3, groups=2)), 1),
    (nn.Sequential(nn.Conv2d(4, 4, 3)), 0),
], ids=["plain", "twice", "no statistics", "transposed", "transposed in groups", "no norm"])
def test_convolutions_that_torchao_folds_wrongly_are_told(model: nn.Module, unfit: int) -> None:
    assert len(unfoldable(exported(model))) == unfit


@pytest.mark.slow
def test_a_convolution_and_batchnorm_called_twice_compute_what_was_simulated() -> None:
    prepared = prepared_for(made(Normed(calls=2), GRID), XNNPACK)
    converted = pt2e.convert(prepared, XNNPACK).module
    assert sqnr_db(answer(prepared.module, (GRID,)), answer(converted, (GRID,))) > TIES_DB


# -- each step leaves the function as it is -------------------------------------------------------------------------


@pytest.mark.parametrize("step", [
    read_weights_apart, complete_batchnorms, lambda graph_module: with_own_biases(graph_module, bias_place),
    lambda graph_module: (shield(graph_module, lambda _: True), unshield(graph_module)),
])
@pytest.mark.parametrize("model", [Shared(), Normed(affine=False, calls=2)], ids=["shared", "normed"])
def test_a_step_changes_nothing_that_the_model_computes(step: Any, model: nn.Module) -> None:
    inputs = IMAGES if isinstance(model, Shared) else GRID
    graph_module = exported(copy.deepcopy(model), inputs)
    step(graph_module)
    expected, found = answer(model.eval(), (inputs,)), graph_module(inputs)
    pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    assert all(torch.equal(*pair) for pair in pairs)
    assert [module_of(node) for node in products(graph_module.graph)] == [
        kernel.module for kernel in kernels_of(exported(copy.deepcopy(model), inputs))]


def test_each_reader_of_a_bias_gets_its_own() -> None:
    graph_module = exported(Shared(), IMAGES)
    with_own_biases(graph_module, bias_place)
    biases = [str(node.args[2].target) for node in products(graph_module.graph)]
    assert len(set(biases)) == len(biases) == 6
