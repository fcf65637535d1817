"""Small models that the tests of PT2E take through its steps, and ways to look into the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantizer import Quantizer

from pytest_qat.case import QATCase
from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.program import module_of
from pytest_qat.finetune import calibrate
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import pt2e
from pytest_qat.workflows.base import PreparedModel
from pytest_qat.workflows.observers import switch_observers

XNNPACK, INDUCTOR = get_recipe("pt2e-torch"), get_recipe("pt2e-inductor")
RECIPES = pytest.mark.parametrize("recipe", [XNNPACK, INDUCTOR], ids=["xnnpack", "x86-inductor"])
EPS, MOMENTUM = 0.01, 0.3
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(16, 6, generator=GENERATOR)
IMAGES = torch.randn(8, 3, 6, 6, generator=GENERATOR)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.relu = nn.ReLU()
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


class Twice(nn.Module):
    """Calls a part twice."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.part(x)))


class Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU for both places. Variances are as small as eps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3, eps=EPS, momentum=MOMENTUM)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3, eps=EPS, momentum=MOMENTUM)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(3, 2)
        for batchnorm in (self.bn1, self.bn2):
            nn.init.constant_(batchnorm.running_var, 0.01)
        for conv in (self.conv1, self.conv2):
            nn.init.uniform_(conv.weight, -0.03, 0.03)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + x)
        return self.fc(self.drop(y.mean((2, 3))))


class Pooled(nn.Module):
    """XNNPACK's quantizer gives the values before and after the mean one range."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Refusing(Quantizer):
    """A user's quantizer with a fault."""

    def annotate(self, model: Any) -> Any:
        raise ValueError("no pattern fits.\nsecond line")

    def validate(self, model: Any) -> None:
        """Accept anything."""


def made(model: nn.Module, inputs: Any = ROWS, **changes: Any) -> QATCase:
    return QATCase(model=model.eval(), example_inputs=(inputs,), **changes)


def prepared_for(case: QATCase, recipe: Any, batches: Sequence[Any] | None = None) -> PreparedModel:
    """Prepare and calibrate."""
    prepared = pt2e.prepare(case, recipe)
    calibrate(prepared.module, [case.example_inputs] if batches is None else batches)
    prepared.module.eval()
    switch_observers(prepared.module, on=False)
    return prepared


def graph_of(module: nn.Module) -> torch.fx.Graph:
    assert isinstance(module, ExportedModel)
    return module.graph_module.graph


def ops(module: nn.Module, name: str) -> list[torch.fx.Node]:
    return [node for node in graph_of(module).nodes if f".{name}." in f".{node.target}."]


def quantized_modules(module: nn.Module) -> list[str]:
    """The user's modules whose weight passes a fake-quantizer."""
    return [module_of(node) for node in ops(module, "linear")
            if isinstance(node.args[1], torch.fx.Node) and node.args[1].op == "call_module"]
