"""Training that diverges is named, whatever error it ends in, and no other recipe is recommended for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import ModelChecks
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.errors import MissingPackage
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

Train = Callable[[nn.Module], object]
BATCHES = [(torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,))) for _ in range(4)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture
def opened() -> Iterator[list[ModelRun]]:
    runs: list[ModelRun] = []
    yield runs
    for run in runs:
        run.close()


def with_rate(rate: float) -> Train:
    def train(prepared: nn.Module) -> None:
        optimizer = torch.optim.SGD(prepared.parameters(), rate)
        for inputs, target in BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(prepared(inputs), target).backward()
            optimizer.step()
    return train


def spoils_weights(prepared: nn.Module) -> None:
    with torch.no_grad():
        next(iter(prepared.parameters())).fill_(float("nan"))


def spoils_a_range(prepared: nn.Module) -> None:
    """Activations may overflow while all weights are still finite."""
    prepared(BATCHES[0][0] * float("inf"))


@pytest.mark.parametrize(("train", "code"), [
    (with_rate(1e30), None), (spoils_weights, "weights-not-finite"), (spoils_a_range, "range-not-finite")])
@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86", "pt2e-torch"])
def test_what_training_broke_is_named_and_no_recipe_recommended(recipe: str, train: Train, code: str | None,
                                                                opened: list[ModelRun]) -> None:
    checks = checks_of(recipe, opened, train=train)
    found = with_causes(checks, checks.check("convert"))
    codes = {finding.code for finding in found.findings}
    assert found.verdict.outcome.value == "failed"
    assert "diverged" in found.verdict.reasons[0]
    assert codes <= {"weights-not-finite", "range-not-finite"}
    assert codes == {code} if code else codes
    assert all(finding.module or finding.code == "range-not-finite" for finding in found.findings), "or the input"


def test_a_loop_that_fails_for_another_reason_keeps_its_own_words(opened: list[ModelRun]) -> None:
    def train(prepared: nn.Module) -> None:
        raise ValueError("no such folder")

    checks = checks_of("fx-x86", opened, train=train)
    found = with_causes(checks, checks.check("convert"))
    assert "no such folder" in found.verdict.reasons[0]
    assert [finding.code for finding in found.findings] == []


def test_a_loss_that_is_not_finite_says_at_which_step(opened: list[ModelRun]) -> None:
    checks = checks_of("fx-x86", opened, train_data=BATCHES, loss_fn=lambda output, target: output.mean() / 0)
    found = with_causes(checks, checks.check("convert"))
    assert "step 1" in found.verdict.reasons[0]
    assert not {finding.code for finding in found.findings} & {"recipe-takes-it", "no-recipe-takes-it"}


def checks_of(recipe_name: str, opened: list[ModelRun], **training: Any) -> ModelChecks:
    recipe = get_recipe(recipe_name)
    try:
        recipe.require_packages()
    except MissingPackage as missing:
        pytest.skip(missing.message)
    torch.manual_seed(0)
    case = QATCase(model=Net().eval(), example_inputs=(BATCHES[0][0],),
                   calibration_data=[inputs for inputs, _ in BATCHES], **training)
    opened.append(ModelRun(case, recipe, RunSettings(tolerances=Tolerances(), diagnose_s=60.0), lock=MachineLock()))
    return ModelChecks(opened[-1], reference="models:net", command="pytest --qat-model=models:net")
