"""What `diagnose` takes, what it leaves alone, and how runs of a case with its own stages use it."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import digits, edge_model
from fixtures.cases import CASES
from pytest_qat import diagnose
from pytest_qat.case import QATCase
from pytest_qat.checks import ModelChecks
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.diagnosis.diagnose import diagnosed
from pytest_qat.diagnosis.given import received, stages_of
from pytest_qat.errors import InvalidCase
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own, in copies


def stages(name: str, *, broken: bool) -> dict[str, Any]:
    case = next(case for case in CASES if case.name == name)
    return case.build(broken=broken).arguments()


@pytest.mark.parametrize("name", ["far_outlier_fx", "tiny_batches_eager", "other_weights_in_the_kernel_pt2e"])
def test_nothing_that_was_given_is_changed(name: str) -> None:
    given = stages(name, broken=True)
    modules = {stage: given[stage] for stage in ("float_model", "prepared", "converted") if given[stage] is not None}
    before = {stage: (copy.deepcopy(module.state_dict()), module.training) for stage, module in modules.items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    diagnose(**given)
    for stage, module in modules.items():
        state, training = before[stage]
        assert module.training == training
        for key, value in module.state_dict().items():
            same = value is state[key] or not isinstance(value, torch.Tensor) or bool(
                torch.equal(value, state[key])) or bool((value.isnan() & state[key].isnan()).all())
            assert same, (stage, key)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads


def test_the_same_is_said_each_time() -> None:
    given = stages("far_outlier_fx", broken=True)
    first, second = diagnose(**given), diagnose(**given)
    assert first.findings == second.findings
    assert first.stages == second.stages


def test_stages_are_compared_in_their_order() -> None:
    found = diagnose(**stages("far_outlier_fx", broken=False))
    assert found.healthy
    assert [stage.after for stage in found.stages] == ["unrounded", "fake-quantize", "int8"]
    assert found.stages[0].agreement.sqnr_db > 80
    assert "unrounded -> fake-quantize: " in str(found)


def test_layers_are_listed_where_rounding_loses() -> None:
    found = diagnose(**stages("one_adder_for_two_places", broken=True))
    assert not found.healthy
    assert found.findings[0].severity == "error"
    assert found.findings[0].remedy
    assert str(found).startswith("error: one-range-for-all-calls in plus: ")


@pytest.mark.parametrize(("arguments", "said"), [
    ({"converted": {}}, "converted is dict, expected an nn.Module"),
    ({"optimizer": []}, "optimizer is list, expected a torch.optim.Optimizer")])
def test_what_is_no_stage_is_refused(arguments: dict[str, Any], said: str) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(InvalidCase, match=said):
        diagnose(model, (torch.randn(2, 2),), **arguments)


def test_an_int8_model_is_no_float_model() -> None:
    given = stages("far_outlier_eager", broken=False)
    with pytest.raises(InvalidCase, match="already quantized"):
        diagnose(given["converted"], given["example_inputs"])


def test_an_audit_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_qat.diagnosis import diagnose as module

    def failing(_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "AUDITS", (("prepare", (failing,)), *module.AUDITS))
    found = diagnose(**stages("simulation_off_fx", broken=True))
    assert [finding.code for finding in found.findings] == ["fake-quantize-off", "diagnosis-failed"]
    assert "no such luck" in found.findings[1].message


@pytest.mark.slow
@pytest.mark.parametrize(("name", "check", "code"), [
    ("filters_rounded", "coverage", "rounded-but-float"), ("dynamic_convolutions", "coverage", "nothing-quantized"),
    ("conversion_forgotten_fx", "coverage", "still-simulated"), ("tiny_batches_fx", "accuracy", "batch-norm-drifted")])
def test_a_run_tells_what_is_wrong_with_the_stages_of_its_case(name: str, check: str, code: str,
                                                               tmp_path: Path) -> None:
    given = stages(name, broken=True)
    case = QATCase(model=given["float_model"], example_inputs=given["example_inputs"], prepared=given["prepared"],
                   converted=given["converted"], calibration_data=given["calibration"],
                   eval_data=given["evaluation"], metric=given["metric"])
    run = ModelRun(case, get_recipe("eager-x86" if name.endswith("eager") else "fx-x86"), RunSettings(
        tolerances=case.tolerances, diagnose_s=20.0, max_time_s=1.0), lock=MachineLock(tmp_path))
    try:
        checks = ModelChecks(run, reference="cases:case")
        found = with_causes(checks, checks.check(check)).findings
    finally:
        run.close()
    assert code in {finding.code for finding in found}, [(finding.code, finding.message) for finding in found]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86"])
def test_what_the_pipeline_makes_is_healthy(recipe: str, tmp_path: Path) -> None:
    case = replace(edge_model.digits(), train_data=None, loss_fn=None, optimizer=None, epochs=1,
                   calibration_data=[digits.example_images(count=64)])
    run = ModelRun(case, get_recipe(recipe), RunSettings(tolerances=case.tolerances), lock=MachineLock(tmp_path))
    try:
        done = run.converted()
        assert done.prepared is not None
        began = time.monotonic()
        found = diagnosed(stages_of(case, prepared=done.prepared.module, converted=done.int8.module))
        assert found.seconds <= time.monotonic() - began + 0.01
    finally:
        run.close()
    assert found.healthy, found


def test_without_stages_there_is_nothing_to_say() -> None:
    model = torch.nn.Linear(4, 4)
    assert diagnosed(received(model, (torch.randn(2, 4),))).findings == ()
    assert str(diagnose(model, (torch.randn(2, 4),))) == "nothing was found."


def test_remedies_say_what_they_mended_where_that_was_tried() -> None:
    found = diagnose(**stages("faint_calibration_fx", broken=True))
    assert [(each.code, each.mends is not None and each.mends > 0.9) for each in found.remedies] == [
        ("calibration-unlike-evaluation", True)]
    assert "\n  remedy: give calibration_data like those of the evaluation" in str(found)
    [untried] = diagnose(**stages("conversion_forgotten_fx", broken=True)).remedies
    assert untried.mends is None


class Named(torch.nn.Module):
    """Returns the largest class, which is no floating-point tensor."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).argmax(1)  # type: ignore[no-any-return]


def test_outputs_that_cannot_be_compared_are_no_fault() -> None:
    given = stages("far_outlier_fx", broken=False)
    found = diagnose(Named(given["float_model"]), given["example_inputs"], converted=Named(given["converted"]))
    assert [finding.code for finding in found.findings] == ["not-comparable"]
    assert found.healthy


def test_a_comparison_that_fails_is_told_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_qat.diagnosis import diagnose as module

    def failing(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "compare_stages", failing)
    found = diagnose(**stages("far_outlier_fx", broken=True))
    assert [finding.code for finding in found.findings] == ["diagnosis-failed"]


def _distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean(1)


def test_a_score_that_should_be_low_is_lost_where_it_rises() -> None:
    for broken in (False, True):
        given = stages("far_outlier_fx", broken=broken)
        data = [(inputs, given["float_model"](inputs).detach() + 0.1) for inputs, _ in given["evaluation"]]
        found = diagnose(**{**given, "evaluation": data, "metric": _distance}, higher_is_better=False)
        assert [finding.code for finding in found.findings if finding.severity == "error"] == (
            ["outliers-set-the-range"] if broken else [])
