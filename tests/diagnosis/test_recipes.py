"""What is recommended after a failure: only what a trial has shown to do, and never more than it has shown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import ModelChecks
from pytest_qat.core import torch_state
from pytest_qat.diagnosis import causes, recipes
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.diagnosis.recipes import need_of, recipes_that_take
from pytest_qat.findings import Finding
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.probe import Probe, Trial
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

COMMAND = "pytest --qat-model=models:net"
BOUNDS = Tolerances(min_coverage=0.5, min_size_reduction=2.0, min_speedup=1.2)


@pytest.fixture
def opened() -> Iterator[list[ModelRun]]:
    runs: list[ModelRun] = []
    yield runs
    for run in runs:
        run.close()


def run_of(opened: list[ModelRun], recipe: str = "fx-x86", *, model: nn.Module | None = None,
           tolerances: Tolerances = BOUNDS, diagnose_s: float = 60.0, **changes: Any) -> ModelRun:
    torch.manual_seed(0)
    case = QATCase(model=model or nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval(),
                   example_inputs=(torch.randn(32, 16),), **changes)
    opened.append(ModelRun(case, get_recipe(recipe), RunSettings(tolerances=tolerances, diagnose_s=diagnose_s),
                           lock=MachineLock()))
    return opened[-1]


def scripted(monkeypatch: pytest.MonkeyPatch, **answers: dict[str, Any]) -> list[Trial]:
    """Let trials answer as told, others refuse; return what was tried."""
    made: list[Trial] = []

    def try_all(case: QATCase, trials: Sequence[Trial], **settings: Any) -> list[Probe]:
        made.extend(trials)
        found = []
        for trial in trials:
            key = f"{trial.recipe.replace('-', '_')}{'_skip' if trial.skip else ''}"
            found.append(Probe(**{"recipe": trial.recipe, "skip": trial.skip, "takes": key in answers,
                                  "reason": "" if key in answers else "no.", **answers.get(key, {})}))
        return found

    monkeypatch.setattr(recipes, "try_all", try_all)
    return made


def told(run: ModelRun, check: str, *, blamed: Sequence[str] = (), command: str = COMMAND) -> Finding:
    need = need_of(check, run.settings.tolerances, float_db=10.0)
    return recipes_that_take(run, need, command=command, check=check, blamed=blamed)


@pytest.mark.parametrize(("check", "short", "enough"), [
    ("prepare", {"mac_share": 0.4}, {"mac_share": 0.6}), ("convert", {"mac_share": 0.4}, {"mac_share": None}),
    ("coverage", {"mac_share": 0.4}, {"mac_share": 0.5}), ("coverage", {"mac_share": None}, {"mac_share": 0.9}),
    ("size", {"mac_share": 1.0, "size_reduction": 1.9}, {"mac_share": 1.0, "size_reduction": 2.0}),
    ("size", {"mac_share": 0.4, "size_reduction": 3.0}, {"mac_share": 0.6, "size_reduction": 2.5}),
    ("parity", {"mac_share": 1.0, "agrees": False}, {"mac_share": 1.0, "agrees": True}),
    ("parity", {"mac_share": 1.0, "agrees": None}, {"mac_share": 0.8, "agrees": True}),
    ("accuracy", {"mac_share": 1.0, "agrees": True, "float_db": 15.9},
     {"mac_share": 1.0, "agrees": True, "float_db": 16.0}),
    ("accuracy", {"mac_share": 1.0, "agrees": False, "float_db": 30.0},
     {"mac_share": 1.0, "agrees": True, "float_db": None}),
    ("speedup", {"mac_share": 1.0}, {"mac_share": 0.6, "speedup": 1.3, "speedup_ci": (1.2, 1.4)}),
    ("speedup", {"mac_share": 1.0, "speedup": 1.3, "speedup_ci": None},
     {"mac_share": None, "speedup": 1.3, "speedup_ci": (1.2, 1.4)}),
    ("speedup", {"mac_share": 1.0, "speedup": 1.3, "speedup_ci": (1.19, 1.4)},
     {"mac_share": 1.0, "speedup": 1.21, "speedup_ci": (1.2, 1.22)}),
    ("speedup", {"mac_share": 0.4, "speedup": 2.0, "speedup_ci": (1.9, 2.1)},
     {"mac_share": 1.0, "speedup": 1.3, "speedup_ci": (1.25, 1.4)}),
])
def test_a_recipe_is_recommended_only_if_its_trial_shows_what_the_check_needs(
        check: str, short: dict, enough: dict, opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, pt2e_litert=short)
    nothing = told(run_of(opened), check)
    assert (nothing.code, nothing.remedy) == ("no-recipe-takes-it", "")
    assert "pt2e-litert takes it" in nothing.message
    scripted(monkeypatch, pt2e_litert=short, pt2e_executorch=enough)
    found = told(run_of(opened), check)
    assert (found.code, found.remedy) == ("recipe-takes-it", f"run: {COMMAND} --qat-recipe=pt2e-executorch")
    assert "faster" not in found.message


def test_numbers_are_compared_only_where_they_are_what_failed(opened: list[ModelRun],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("prepare", "convert", "coverage", "parity", "accuracy", "size", "speedup"):
        made = scripted(monkeypatch)
        told(run_of(opened), check)
        assert made
        assert {trial.numbers for trial in made} == {check in ("parity", "accuracy")}


def test_only_a_failed_speedup_is_timed_one_recipe_at_a_time_until_one_does(
        opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"mac_share": 1.0, "speedup": 2.0, "speedup_ci": (1.9, 2.1)}
    made = scripted(monkeypatch, pt2e_executorch=quick, pt2e_inductor=quick)
    found = told(run_of(opened), "speedup")
    assert [trial.recipe for trial in made] == [
        "fx-onednn", "fx-fbgemm", "fx-torchscript", "pt2e-onnxruntime", "pt2e-litert", "pt2e-executorch"]
    assert {trial.floor for trial in made} == {1.2}
    assert "2.00x as fast as float [1.90, 2.10]" in found.message
    for check in ("prepare", "convert", "coverage", "parity", "accuracy", "size"):
        made = scripted(monkeypatch)
        told(run_of(opened), check)
        assert {trial.floor for trial in made} == {None}


@pytest.mark.parametrize(("recipe", "first", "left_out"), [
    ("fx-x86", "fx-onednn", {"fx-x86", "fx-qnnpack"}), ("fx-onednn", "fx-x86", {"fx-onednn"}),
    ("fx-qnnpack", "fx-x86", {"fx-qnnpack"}), ("eager-qnnpack", "eager-x86", {"fx-onednn"}),
    ("fx-torchscript", "pt2e-onnxruntime", {"fx-torchscript"}),
    ("pt2e-inductor", "fx-torchscript", {"pt2e-inductor", "torchao-int8"}), ("torchao-int8", "fx-torchscript", set()),
    ("pt2e-executorch", "fx-torchscript", {"pt2e-executorch"})])
def test_after_a_failed_speedup_other_runtimes_are_timed(
        recipe: str, first: str, left_out: set[str], opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    told(run_of(opened, recipe), "speedup")
    tried = [trial.recipe for trial in made]
    assert tried[0] == first
    assert not left_out & set(tried)
    assert {"pt2e-onnxruntime", "pt2e-litert"} <= set(tried)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="recipes are tried in forked processes")
def test_what_is_recommended_after_a_failed_speedup_was_timed(opened: list[ModelRun]) -> None:
    """Forty small layers, by a bound that every recipe holds: the first that is tried is recommended, and timed."""
    layers = [layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(16, 64), *layers).eval()
    run = run_of(opened, model=model, tolerances=Tolerances(min_speedup=0.01))
    found = recipes_that_take(run, need_of("speedup", run.settings.tolerances), command=COMMAND, check="speedup")
    assert (found.code, found.remedy) == ("recipe-takes-it", f"run: {COMMAND} --qat-recipe=fx-onednn")
    assert "x as fast as float [" in found.message


@pytest.mark.parametrize(("recipe", "left_out"), [
    ("pt2e-executorch", {"pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert"}),
    ("pt2e-litert", {"pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert"}), ("pt2e-inductor", {"pt2e-inductor"})])
def test_after_a_failed_prepare_no_recipe_that_prepares_alike_is_tried(
        recipe: str, left_out: set[str], opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    told(run_of(opened, recipe), "prepare")
    tried = {trial.recipe for trial in made}
    assert not tried & left_out
    assert {"pt2e-inductor", "pt2e-executorch"} - left_out <= tried


@pytest.mark.parametrize(("recipe", "tried"), [
    ("fx-x86", ["torchao-int8", "fx-onednn", "pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert", "eager-onednn",
                "pt2e-inductor"]),
    ("fx-torchscript", ["torchao-int8", "fx-onednn", "pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert",
                        "eager-onednn", "pt2e-inductor"]),
    ("eager-fbgemm", ["torchao-int8", "fx-onednn", "pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert",
                      "eager-onednn", "pt2e-inductor"]),
    ("fx-onednn", ["torchao-int8", "pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert", "pt2e-inductor", "fx-x86"]),
    ("pt2e-litert", ["torchao-int8", "fx-onednn", "eager-onednn", "pt2e-inductor", "fx-x86"]),
    ("torchao-int8", ["fx-onednn", "pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert", "eager-onednn",
                      "pt2e-inductor", "fx-x86"])])
def test_after_a_failed_accuracy_nothing_is_tried_that_rounds_alike_and_first_what_rounds_least(
        recipe: str, tried: list[str], opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    told(run_of(opened, recipe), "accuracy")
    assert [trial.recipe for trial in made] == tried


@pytest.mark.parametrize(("also", "text"), [
    ((), ""), (("eager_x86",), "; eager-x86 does, too"),
    (("eager_x86", "torchao_int8"), "; eager-x86 and torchao-int8 do, too")])
def test_what_else_would_do_is_said_in_a_sentence(also: tuple[str, ...], text: str, opened: list[ModelRun],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, pt2e_inductor={"mac_share": 1.0}, **{name: {"mac_share": 0.6} for name in also})
    assert told(run_of(opened), "coverage").message.endswith(f"{text}.")


def test_the_recipe_that_failed_is_not_tried_again_as_it_was(opened: list[ModelRun],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    told(run_of(opened), "parity")
    assert "fx-x86" not in [trial.recipe for trial in made]
    assert {"fx-fbgemm", "fx-qnnpack", "eager-x86"} <= {trial.recipe for trial in made}


@pytest.mark.parametrize(("blamed", "skip"), [
    (("0",), ("0",)), (("0", "2", "0"), ("0", "2")), (("",), None), (("nowhere",), None), ((), None)])
def test_modules_to_blame_are_left_in_float_for_a_trial_of_the_same_recipe(
        blamed: tuple[str, ...], skip: tuple[str, ...] | None, opened: list[ModelRun],
        monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch, fx_x86_skip={"mac_share": 0.7})
    found = told(run_of(opened), "convert", blamed=blamed)
    assert [trial.skip for trial in made if trial.recipe == "fx-x86"] == ([] if skip is None else [skip])
    assert found.remedy == ("" if skip is None else f"give the QATCase skip={skip!r}.")


def test_a_quantizer_of_the_user_s_own_decides_by_itself_what_to_skip(opened: list[ModelRun],
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    told(run_of(opened, "pt2e-executorch", quantizer=object()), "prepare", blamed=("0",))
    assert [trial for trial in made if trial.skip] == []


def test_a_model_that_only_a_marker_holds_has_no_command(opened: list[ModelRun],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, eager_x86={"mac_share": 1.0})
    assert told(run_of(opened), "convert", command="").remedy == 'give the marker recipe="eager-x86".'


@pytest.mark.parametrize(("given", "leave"), [
    (("converted",), "leave converted= out"), (("prepared",), "leave prepared= out"),
    (("prepared", "converted"), "leave prepared= and converted= out")])
def test_stages_of_the_user_s_own_are_left_out_for_a_trial(given: tuple[str, ...], leave: str, opened: list[ModelRun],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(16, 4)).eval()
    made = scripted(monkeypatch, fx_x86={"mac_share": 1.0})
    found = told(run_of(opened, model=net, **dict.fromkeys(given, net)), "coverage", blamed=("0",))
    assert made[0] == Trial(recipe="fx-x86"), "the case's own recipe, which makes its own stages here"
    assert [trial for trial in made if trial.skip] == []
    assert found.remedy == f"{leave} of the QATCase and run: {COMMAND} --qat-recipe=fx-x86"


def with_outliers() -> tuple[nn.Module, torch.Tensor]:
    """Return a model whose outputs do not depend on its largest input, whose range leaves no codes for the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    inputs = torch.randn(256, 16)
    with torch.no_grad():
        net[0].weight *= 5
        net[0].weight[:, 0] = 0
        net[2].weight *= 5
        inputs[:, 0] *= 100
    return net, inputs


def test_after_accuracy_a_recipe_must_come_closer_to_float(opened: list[ModelRun],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch, torchao_int8={"mac_share": 0.9, "agrees": True, "float_db": 40.0},
                    pt2e_onnxruntime={"mac_share": 1.0, "agrees": True, "float_db": 39.0},
                    pt2e_inductor={"mac_share": 1.0, "agrees": True, "float_db": 3.0})
    net, inputs = with_outliers()
    run = run_of(opened, model=net, tolerances=Tolerances(), calibration_data=[inputs],
                 eval_data=[(inputs, net(inputs).argmax(1))])
    checks = ModelChecks(run, reference="models:net", command=COMMAND)
    found = with_causes(checks, checks.check("accuracy"))
    assert found.verdict.outcome.value == "failed"
    assert made
    assert found.findings[-1].remedy == f"run: {COMMAND} --qat-recipe=torchao-int8"
    assert "40.0 dB of float" in found.findings[-1].message


@pytest.mark.parametrize("code", ["qat-below-ptq", "lost-in-conversion", "flat-output"])
def test_after_accuracy_nothing_is_tried_where_quantization_is_not_the_cause(code: str,
                                                                             opened: list[ModelRun]) -> None:
    net, inputs = with_outliers()
    run = run_of(opened, model=net, tolerances=Tolerances(), calibration_data=[inputs],
                 eval_data=[(inputs, net(inputs).argmax(1))])
    result = ModelChecks(run, reference="models:net").check("accuracy")
    known = Finding(code=code, severity="warning", message="known.")
    assert causes._need(run, result, [known]) is None
    assert causes._need(run, result, []) is not None


def test_all_trials_of_a_model_share_the_time(opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[float] = []

    def try_all(case: QATCase, trials: Sequence[Trial], *, settings: Any) -> list[Probe]:
        budgets.append(settings.budget_s)
        return [Probe(recipe=trial.recipe, takes=False) for trial in trials]

    monkeypatch.setattr(recipes, "try_all", try_all)
    run = run_of(opened, diagnose_s=60.0)
    run.shared.probing_s = 45.0
    told(run, "convert")
    told(run, "coverage")  # the same trials, whose answers are known
    told(run, "parity")
    assert len(budgets) == 2
    assert budgets[0] == pytest.approx(15.0)
    assert budgets[1] <= 15.0


def test_an_engine_that_this_machine_lacks_sends_to_one_that_it_has(opened: list[ModelRun],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch, fx_x86={"mac_share": 1.0})
    monkeypatch.setattr(torch_state.torch.backends.quantized.__class__, "supported_engines",
                        property(lambda self: ["x86", "none"]))
    checks = ModelChecks(run_of(opened, "fx-qnnpack"), reference="models:net", command=COMMAND)
    found = with_causes(checks, checks.check("prepare"))
    assert found.verdict.outcome.value == "failed"
    assert "fx-x86" in [trial.recipe for trial in made]
    assert found.findings[-1].remedy == f"run: {COMMAND} --qat-recipe=fx-x86"


class Reference(nn.Module):
    """Adds, so that eager mode refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y + y


@pytest.mark.parametrize(("check", "selected", "tolerances", "expected"), [
    ("prepare", None, BOUNDS, True), ("accuracy", (), BOUNDS, True), ("accuracy", ("prepare",), BOUNDS, False)])
def test_whichever_check_shows_a_refusal_first_tells_what_would_do(
        check: str, selected: tuple[str, ...] | None, tolerances: Tolerances, expected: bool,
        opened: list[ModelRun], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, fx_x86={"mac_share": 1.0})
    checks = ModelChecks(run_of(opened, "eager-x86", model=Reference().eval()), reference="models:net", command=COMMAND)
    found = with_causes(checks, checks.check(check, **({} if selected is None else {"selected": selected})))
    assert any(finding.code == "recipe-takes-it" for finding in found.findings) is expected


@pytest.mark.parametrize(("check", "bounds", "tried"), [
    ("size", Tolerances(min_size_reduction=8.0, min_coverage=0.0), True),
    ("size", Tolerances(min_size_reduction=8.1, min_coverage=0.0), False),  # which no recipe reaches
    ("size", Tolerances(min_size_reduction=0.1, min_coverage=0.0), False),
    ("coverage", Tolerances(min_coverage=0.5), False), ("parity", Tolerances(), False),
    ("speedup", Tolerances(min_speedup=8.0), True), ("speedup", Tolerances(min_speedup=8.1), False),
    ("speedup", Tolerances(min_speedup=1e-6), False),
])
def test_only_a_failed_check_tries_anything(check: str, bounds: Tolerances, tried: bool, opened: list[ModelRun],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    checks = ModelChecks(run_of(opened, tolerances=bounds), reference="models:net", command=COMMAND)
    with_causes(checks, checks.check(check))
    assert bool(made) is tried


def test_nothing_is_tried_where_other_recipes_are_judged_anyway(opened: list[ModelRun],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    checks = ModelChecks(run_of(opened, tolerances=Tolerances(min_speedup=8.0)), reference="models:net",
                         command=COMMAND)
    result = checks.check("speedup")
    with_causes(checks, result, others=False)
    assert made == []
    with_causes(checks, result)
    assert made


def test_a_trial_has_one_thread_so_nothing_is_timed_for_a_run_of_more(opened: list[ModelRun],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch)
    run = run_of(opened, tolerances=Tolerances(min_speedup=8.0))
    run.settings = replace(run.settings, threads=2)
    checks = ModelChecks(run, reference="models:net", command=COMMAND)
    with_causes(checks, checks.check("speedup"))
    assert made == []
