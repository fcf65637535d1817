"""Models, data and training as users give them: what a run refuses, what its checks conclude, and the causes named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import CheckResult, ModelChecks
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.errors import CheckFailed, InvalidCase
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.preflight import hold_to_model
from pytest_qat.pipeline.run import ModelRun, NotApplicable, RunSettings, StageFailed
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows.observers import switch_fake_quantize

EASY = Tolerances(min_size_reduction=0.01, min_speedup=0.0)


def net(outputs: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, outputs)).eval()


def case(model: nn.Module, **changes: Any) -> QATCase:
    torch.manual_seed(1)
    return QATCase(**{"model": model.eval(), "example_inputs": (torch.randn(32, 16),), "tolerances": EASY,
                      "calibration_data": [torch.randn(32, 16) for _ in range(2)], **changes})


@pytest.fixture
def runs() -> Iterator[Any]:
    opened: list[ModelRun] = []

    def run(given: QATCase, recipe: str = "fx-x86", **settings: Any) -> ModelRun:
        opened.append(ModelRun(given, get_recipe(recipe), RunSettings(tolerances=EASY, **settings), lock=MachineLock()))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def made(run: ModelRun, check: str, tolerances: Tolerances | None = None) -> CheckResult:
    """What a check of a run concludes, explained."""
    checks = ModelChecks(run, reference="models:net")
    return with_causes(checks, checks.check(check, tolerances=tolerances))


class Remembers(nn.Module):
    """A recurrent cell that keeps its state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.state = nn.Linear(16, 16), None

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x) if self.state is None else self.state
        made: Tensor = torch.relu(self.cell(x + 0.5 * state))
        self.state = made.detach()
        return made


class Draws(nn.Module):
    """Dropout that stays on in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), 0.5)


def patched() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model.forward = model[0].forward  # type: ignore[method-assign]
    return model


def hooked() -> nn.Module:
    model = net()
    model.register_forward_hook(lambda module, inputs, output: -output)
    return model


@pytest.mark.parametrize(("model", "reason"), [
    pytest.param(Remembers(), "two calls of the float model", id="state"),
    pytest.param(Draws(), "two calls of the float model", id="random"),
])
def test_a_model_that_tracing_changes_fails_before_anything_is_measured(runs: Any, model: nn.Module,
                                                                        reason: str) -> None:
    run = runs(case(model))
    found = {check: made(run, check) for check in ("prepare", "convert", "accuracy", "size", "speedup")}
    assert found["convert"].verdict.outcome.value == "failed"
    [finding] = found["convert"].findings
    assert finding.code == "baseline-differs"
    assert re.search(reason, found["convert"].verdict.reasons[0])
    assert {found[check].verdict.outcome.value for check in ("accuracy", "size", "speedup")} == {"blocked"}


@pytest.mark.parametrize("model", [pytest.param(patched(), id="patched"), pytest.param(hooked(), id="hook")])
def test_what_tracing_would_lose_is_run_by_python_and_stays(runs: Any, model: nn.Module) -> None:
    assert made(runs(case(model)), "convert").verdict.outcome.value == "passed", "float ships as the user's model"


@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86", "fx-torchscript"])
def test_a_model_with_batch_norm_is_the_same_once_folded(runs: Any, recipe: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    model(torch.randn(256, 16) * 3)
    assert runs(case(model), recipe).deployed().fp32


# -- outputs that no metric looks at ---------------------------------------------------------------------------------


class Detector(nn.Module):
    """Class scores, and boxes in pixels far from zero."""

    def __init__(self, *, center: float, boxes_only: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.scores, self.boxes = nn.Linear(16, 32), nn.Linear(32, 10), nn.Linear(32, 4)
        self.boxes.bias = nn.Parameter(torch.tensor([0.0, 0.0, 0.0, center]))
        self.boxes_only = boxes_only

    def forward(self, x: Tensor) -> Any:
        features = torch.relu(self.trunk(x))
        return self.boxes(features) if self.boxes_only else {
            "logits": self.scores(features), "boxes": self.boxes(features)}


def labels(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Batches that a model gets right."""
    torch.manual_seed(2)
    batches = [torch.randn(64, 16) for _ in range(4)]
    with torch.no_grad():
        return [(images, model(images)["logits"].argmax(dim=1)) for images in batches]


@pytest.mark.parametrize(("center", "outcome"), [(600.0, "failed"), (0.0, "passed")])
def test_boxes_beside_scores_are_looked_at_without_a_metric_of_theirs(runs: Any, center: float, outcome: str) -> None:
    model = Detector(center=center).eval()
    found = made(runs(case(model, eval_data=labels(model))), "accuracy", Tolerances(accuracy_drop="10%"))
    assert found.verdict.outcome.value == outcome
    assert [finding.code for finding in found.findings if finding.severity == "error"] == (
        ["flat-output"] if outcome == "failed" else [])


@pytest.mark.parametrize(("scale", "outcome"), [(1.0, "inconclusive"), (1.5, "failed")])
def test_random_weights_fail_no_agreement(runs: Any, scale: float, outcome: str) -> None:
    model = nn.Sequential(nn.LayerNorm(16), Detector(center=600.0, boxes_only=True)).eval()
    nn.init.constant_(model[0].weight[0], scale)
    found = made(runs(case(model)), "accuracy", Tolerances())
    assert found.verdict.outcome.value == outcome
    assert ("random weights" in found.verdict.reasons[0]) is (outcome == "inconclusive")
    assert [finding.severity for finding in found.findings if finding.code == "flat-output"] == (
        ["note"] if outcome == "inconclusive" else ["error"])


def test_a_metric_of_the_users_decides_what_counts(runs: Any) -> None:
    model = Detector(center=600.0).eval()
    given = case(model, eval_data=labels(model), metric=lambda output, target: (
        output["logits"].argmax(dim=1) == target).float())
    assert runs(given).accuracy().flat == ()


@pytest.mark.parametrize(("center", "outcome"), [(600.0, "failed"), (0.0, "passed")])
def test_boxes_alone_are_held_to_more_than_which_is_the_largest(runs: Any, center: float, outcome: str) -> None:
    found = made(runs(case(Detector(center=center, boxes_only=True))), "accuracy", Tolerances(accuracy_drop="25%"))
    assert found.verdict.outcome.value == outcome


# -- what training left switched off ---------------------------------------------------------------------------------


def test_fake_quantize_that_training_left_off_is_said_and_not_blamed_on_kernels(runs: Any) -> None:
    def train(model: nn.Module) -> None:
        switch_fake_quantize(model, on=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)

    model = net()
    torch.manual_seed(2)
    images = torch.randn(256, 16)
    data = [(images, model(images).argmax(dim=1))]
    run = runs(case(model, train=train, eval_data=data))
    convert, parity = (made(run, check) for check in ("convert", "parity"))
    assert convert.verdict.outcome.value == "passed"
    assert [finding.code for finding in convert.findings] == ["fake-quantize-off"]
    assert parity.verdict.outcome.value == "passed"
    assert run.parity().quantization_sqnr_db < 60, "fake-quantize is on for the comparison"


def test_a_prepared_model_without_fake_quantize_cannot_be_compared_with(runs: Any) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = net()
    given = case(model)
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), given.example_inputs)
    prepared(given.example_inputs[0])
    run = runs(dataclasses.replace(given, prepared=prepared), strict=True)
    with pytest.raises(NotApplicable, match="no fake-quantize modules"):
        run.parity()
    outcome = made(run, "parity").verdict.outcome
    assert outcome.value == "inconclusive", "strict mode counts missing evidence, not what there is none of"


class Careless(nn.Module):
    """Its train forgets to return the module, as some frameworks' do, so that eval() returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 10)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Pops(nn.Module):
    """Takes its image out of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 10)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.linear(batch.pop("image"))


def test_a_train_that_returns_nothing_and_an_example_with_a_history_do_no_harm(runs: Any) -> None:
    model = Careless()
    torch.nn.Module.train(model, mode=False)
    images = nn.Linear(16, 16)(torch.randn(4, 16))
    assert images.requires_grad
    given = QATCase(model=model, example_inputs=(images,), calibration_data=[images.detach()])
    assert runs(given).inputs() is not None


def test_a_model_that_takes_its_input_apart_is_told_so(runs: Any) -> None:
    given = QATCase(model=Pops().eval(), example_inputs=({"image": torch.randn(4, 16)},))
    with pytest.raises(StageFailed) as caught:
        runs(given).inputs()
    assert "changes its inputs in place" in str(caught.value.error)


def test_calibration_data_with_targets_are_told_so(runs: Any) -> None:
    given = case(net(), calibration_data=[(torch.randn(4, 16), torch.zeros(4))])
    with pytest.raises(StageFailed) as caught:
        runs(given).converted()
    assert "batch 0 of the calibration data does not fit the model" in str(caught.value.error)
    assert "without targets" in str(getattr(caught.value.error, "hint", ""))


def test_what_no_table_knows_is_told_with_stage_and_place(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*args: object, **kwargs: object) -> None:
        raise RuntimeError("something odd")

    monkeypatch.setattr("pytest_qat.pipeline.stages.calibrate", odd)
    found = made(runs(case(net())), "convert")
    assert found.verdict.outcome.value == "failed"
    [finding] = found.findings
    assert finding.code == "quantization-raised"
    assert "convert raised RuntimeError: something odd" in finding.message


def test_training_without_fake_quantize_is_no_qat(runs: Any) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping

    data = [(torch.randn(8, 16), torch.zeros(8, dtype=torch.long))]
    given = case(net(), qconfig_mapping=get_default_qconfig_mapping("x86"), train_data=data,
                 loss_fn=nn.CrossEntropyLoss())
    found = made(runs(given), "prepare")
    assert [finding.code for finding in found.findings] == ["no-fake-quantize"]


# -- names ----------------------------------------------------------------------------------------------------------


class Dies(nn.Module):
    """A layer whose signal dies, by default nearly."""

    def __init__(self, weight: float = 1e-12) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        nn.init.constant_(self.first.weight, weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86"])
def test_observers_are_told_by_what_they_look_at(runs: Any, recipe: str) -> None:
    found = made(runs(case(Dies()), recipe), "convert")
    [collapsed] = [finding for finding in found.findings if finding.code == "range-collapsed"]
    assert (collapsed.module, collapsed.severity) == ("first", "warning")
    assert collapsed.evidence["modules"][0] == "first"


def test_a_model_with_random_weights_is_not_warned_of_what_only_training_mends(runs: Any) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[2].weight.mul_(1e-12)
        model[2].bias.zero_()
    found = made(runs(case(model)), "convert")
    assert [(each.code, each.severity) for each in found.findings if each.code == "range-collapsed"] == [
        ("range-collapsed", "note")]


@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86"])
def test_what_is_zero_in_float_has_lost_nothing(runs: Any, recipe: str) -> None:
    """As behind a factor that begins at zero, which many residual branches have."""
    found = made(runs(case(Dies(0.0)), recipe), "convert")
    assert "range-collapsed" not in [finding.code for finding in found.findings]


@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86"])
def test_calibration_data_that_are_no_numbers_are_told_by_where_they_show(runs: Any, recipe: str) -> None:
    data = [torch.randn(4, 16), torch.full((4, 16), torch.nan)]
    with pytest.raises(StageFailed) as caught:
        runs(case(net(), calibration_data=data), recipe).converted()
    assert "batch 1 of the calibration data makes values from nan to nan at the input" in str(caught.value.error)


# -- prepared models of another workflow -----------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "told"), [
    ("pt2e-executorch", "but pt2e-executorch converts a graph that torch.export made."),
    ("eager-x86", "prepared= is a graph that torch.fx traced, but eager-x86 converts a plain module."),
    ("torchao-int8", "prepared= is a graph that torch.fx traced, but torchao-int8 converts"),
])
def test_a_prepared_model_of_another_workflow_is_refused_in_a_sentence(runs: Any, recipe: str, told: str) -> None:
    pytest.importorskip("torchao")
    images = torch.randn(8, 16)
    prepared = prepare_qat_fx(net().train(), get_default_qat_qconfig_mapping("x86"), (images,))
    run = runs(dataclasses.replace(case(net()), prepared=prepared), recipe)
    with pytest.raises(StageFailed) as caught:
        run.prepared()
    assert isinstance(caught.value.error, InvalidCase)
    assert told in caught.value.error.message


@pytest.mark.parametrize(("exported", "code"), [
    (lambda net: net, "runtime-differs"), (lambda net: nn.Sequential(net, nn.Sigmoid()), "baseline-differs"),
    (None, "baseline-differs")])
def test_a_runtime_that_computes_something_else_is_told_from_a_trace_that_lost_something(
        exported: Any, code: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4)).eval()
    with pytest.raises(CheckFailed) as caught:
        hold_to_model(net, lambda inputs: net(*inputs) + 1, [(torch.randn(3, 4),)],
                      exported=None if exported is None else lambda: exported(net))
    assert [finding.code for finding in caught.value.findings] == [code]
