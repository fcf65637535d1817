"""Observers answer to the user's module at which, or behind which, the value that they look at is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.diagnosis.effects import places_of
from pytest_qat.pipeline import stages
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows.names import observed, observed_module, user_names
from pytest_qat.workflows.observers import fake_quantizers


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Inner(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.block(x)) + x) * x


@pytest.mark.parametrize("recipe", ["fx-x86", "pt2e-executorch"])
def test_only_the_input_s_observer_looks_at_the_input(recipe: str) -> None:
    torch.manual_seed(0)
    case = QATCase(model=Net().eval(), example_inputs=(torch.randn(2, 4, 8, 8),))
    prepared = stages.prepare(case, get_recipe(recipe)).module
    own = user_names(prepared)
    places = [observed(own[name]) for name, _ in fake_quantizers(prepared)]
    assert places.count("the input") == 1
    assert {place.partition(".weight")[0] for place in places} <= {"the input", "block", "block.conv", "block.norm",
                                                                   "head"}
    assert {"block", "head"} <= {place.partition(".")[0] for place in places}


@pytest.mark.parametrize(("name", "module"), [
    ("fc.activation_post_process", "fc"), ("fc.activation_post_process.activation_post_process", "fc"),
    ("a.fc.weight_fake_quant", "a.fc"), ("a.fc.weight_fake_quant.activation_post_process", "a.fc"),
    ("fc.weight", "fc"), ("fc.parametrizations.weight.0", "fc"), ("activation_post_process", None), ("", None),
    ("weight", None), ("overweight", "overweight")])
def test_an_observer_s_name_tells_the_module(name: str, module: str | None) -> None:
    assert observed_module(name) == module
    assert observed(name) == (module or "the input")


@pytest.mark.parametrize("training", [False, True])
def test_weights_in_an_exported_graph_are_those_of_their_layers(training: bool) -> None:
    torch.manual_seed(0)
    case = QATCase(model=Net().eval(), example_inputs=(torch.randn(2, 4, 8, 8),))
    prepared = stages.prepare(case, get_recipe("pt2e-executorch")).module.train(training)
    weights = {place.module for place in places_of(prepared) if place.kind == "weight"}
    assert weights == {"block.conv", "head"}
    assert [place.kind for place in places_of(prepared)].count("input") == 1
