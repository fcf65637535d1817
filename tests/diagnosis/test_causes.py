"""Checks that are explained: findings reach the result and the record, and never change a verdict."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import CheckResult, ModelChecks
from pytest_qat.diagnosis import causes
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

EASY = Tolerances(min_size_reduction=0.01, min_speedup=0.0)


@pytest.fixture
def checks() -> Iterator[Any]:
    opened: list[ModelRun] = []

    def make(case: QATCase, **settings: Any) -> ModelChecks:
        opened.append(ModelRun(case, get_recipe("fx-x86"), RunSettings(tolerances=EASY, **settings),
                               lock=MachineLock()))
        return ModelChecks(opened[-1], reference="models:net")

    yield make
    for run in opened:
        run.close()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def case(**changes: Any) -> QATCase:
    torch.manual_seed(1)
    return QATCase(**{"model": net(), "example_inputs": (torch.randn(32, 16),), **changes})


def codes(found: CheckResult) -> list[str]:
    return [finding.code for finding in found.findings]


class Elementwise(nn.Module):
    """Has weights, and nothing that int8 kernels compute."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * self.scale)


def swapped_weights() -> QATCase:
    """A converted model whose last kernel has the weights of another network."""
    given = case()
    prepared = prepare_qat_fx(net().train(), get_default_qat_qconfig_mapping("x86"), given.example_inputs)
    prepared(given.example_inputs[0])
    prepared.eval()
    converted, other = convert_fx(copy.deepcopy(prepared)), copy.deepcopy(prepared)
    last: Any = other.get_submodule("2")
    last.weight.data = -last.weight.data
    converted.add_module("2", convert_fx(other).get_submodule("2"))
    return case(prepared=prepared, converted=converted)


def test_a_kernel_that_disagrees_is_named_in_result_and_record(checks: Any) -> None:
    made = checks(swapped_weights())
    plain = made.check("parity")
    assert (plain.verdict.outcome.value, plain.findings) == ("failed", ())
    found = with_causes(made, plain)
    assert found.verdict == plain.verdict
    [finding] = found.findings
    assert (finding.code, finding.module) == ("kernels-disagree", "2")
    assert made.record()["findings"] == [finding.as_dict()]


def test_a_module_that_cannot_be_looked_for_does_not_hide_that_kernels_disagree(
        checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(causes, "first_divergence", refuse)
    made = checks(swapped_weights())
    [finding] = with_causes(made, made.check("parity")).findings
    assert (finding.code, finding.module) == ("kernels-disagree", None)
    assert finding.evidence["module_unknown_because"] == "RuntimeError: no hooks here"


def test_an_explanation_that_breaks_leaves_the_verdict_and_says_so(checks: Any,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(causes, "causes_of_scores", refuse)
    made = checks(case())
    plain = made.check("accuracy")
    found = with_causes(made, plain)
    assert found.verdict == plain.verdict
    assert [(finding.code, finding.severity) for finding in found.findings] == [("diagnosis-failed", "warning")]
    assert "ZeroDivisionError" in found.findings[0].message


def test_a_check_that_was_blocked_has_no_causes_of_its_own(checks: Any) -> None:
    made = checks(case(model=Elementwise().eval()))
    blocked = with_causes(made, made.check("size"))
    assert (blocked.verdict.outcome.value, blocked.findings) == ("blocked", ())


def test_a_check_without_the_one_that_is_to_blame_tells_the_cause_itself(checks: Any) -> None:
    made = checks(case(model=Elementwise().eval()))
    found = with_causes(made, made.check("size", selected=()))
    assert found.verdict.outcome.value == "failed"
    assert codes(found)[0] == "nothing-quantized"


def test_a_healthy_model_gets_no_finding_that_is_more_than_a_note(checks: Any) -> None:
    made = checks(case())
    found = [with_causes(made, made.check(check)) for check in ("prepare", "convert", "coverage", "parity", "size")]
    assert {result.verdict.outcome.value for result in found} == {"passed"}
    assert [finding for result in found for finding in result.findings if finding.severity != "note"] == []


def test_a_finding_that_two_checks_give_is_recorded_once(checks: Any) -> None:
    given = case()
    given.model.train()
    made = checks(given)
    for _ in range(2):
        with_causes(made, made.check("prepare"))
    assert [finding["code"] for finding in made.record()["findings"]] == ["model-in-train-mode"]
