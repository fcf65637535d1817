"""What is trained is what ships: fake-quantize rounds with the qparams that converting reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.finetune import calibrate
from pytest_qat.pipeline import stages
from pytest_qat.recipe import RECIPES
from pytest_qat.workflows import load_workflow
from pytest_qat.workflows.observers import fake_quantizers, qparams_of, switch_observers

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
RECIPE_NAMES = ["fx-x86", "fx-onednn", "fx-qnnpack", "eager-x86", "pt2e-torch", "pt2e-inductor"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(256, 4)).eval()


def trained(recipe: str, **changes: Any) -> stages.PreparedModel:
    case, found = QATCase(model=net(), example_inputs=(IMAGES,), **changes), RECIPES[recipe]
    prepared = stages.prepare(case, found)
    calibrate(prepared.module, [IMAGES])
    prepared.module.train()
    optimizer = torch.optim.SGD(prepared.module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        prepared.module(IMAGES).pow(2).mean().backward()
        optimizer.step()
    prepared.module.eval()
    switch_observers(prepared.module, on=False)
    return prepared


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_training_rounds_with_the_qparams_that_converting_reads(recipe: str) -> None:
    with preserved_torch_state(seed=0), quantized_engine(RECIPES[recipe].engine):
        found = [(name, each) for name, each in fake_quantizers(trained(recipe).module)
                 if hasattr(each, "calculate_qparams") and each.activation_post_process.min_val.numel()]
        assert len(found) > 7
        for name, each in found:
            scale, zero_point = each.calculate_qparams()
            held = qparams_of(each)
            assert held == (scale.flatten().tolist(), zero_point.flatten().tolist()), name


@pytest.mark.parametrize("recipe", ["pt2e-torch", "pt2e-inductor"])
def test_the_reference_form_computes_what_was_trained_to_the_bit(recipe: str) -> None:
    with preserved_torch_state(seed=0), torch.no_grad():
        with torch.enable_grad():
            prepared = trained(recipe)
        converted = load_workflow("pt2e").convert(prepared, RECIPES[recipe]).module
        wanted, got = prepared.module(IMAGES), converted(IMAGES)
    assert wanted.unique().numel() > 16
    assert (wanted - got).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_prepared_model_of_the_user_s_is_rounded_alike_and_left_as_it_was() -> None:
    with preserved_torch_state(seed=0), quantized_engine("x86"):
        model = net()
        own = tq.quantize_fx.prepare_qat_fx(copy.deepcopy(model).train(), tq.get_default_qat_qconfig_mapping("x86"),
                                            (IMAGES,))
        classes = [type(each) for _, each in fake_quantizers(own)]
        prepared = trained("fx-x86", prepared=own)
        assert [type(each) for _, each in fake_quantizers(own)] == classes
        assert tq.FusedMovingAvgObsFakeQuantize in classes
        assert {type(each) for _, each in fake_quantizers(prepared.module)}.isdisjoint(
            {tq.FusedMovingAvgObsFakeQuantize})
