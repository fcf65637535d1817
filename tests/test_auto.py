"""Which recipes are trained and judged, in which order, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_qat import auto
from pytest_qat.auto import rank
from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import CheckResult
from pytest_qat.pipeline.probe import Probe, best_first
from pytest_qat.recipe import COMPLETE_RECIPES, get_recipe
from pytest_qat.record.metrics import no_metrics
from pytest_qat.record.schema import CHECKS, RankingEntry
from pytest_qat.verdict import Outcome, Verdict

CASE = QATCase(model=nn.Sequential(nn.Linear(4, 2)).eval(), example_inputs=(torch.randn(2, 4),))


class Judged:
    """Checks that all pass, and cost nothing."""

    def __init__(self, recipe: str) -> None:
        self.run = SimpleNamespace(recipe=get_recipe(recipe))

    def check(self, name: str) -> CheckResult:
        return CheckResult(check=name, verdict=Verdict(outcome=Outcome.PASSED, reasons=("fine.",)),
                           tolerances=Tolerances())

    def add_findings(self, findings: object) -> None:
        pass

    def record(self) -> dict[str, Any]:
        return {"metrics": no_metrics()}


class Trial:
    """A ranking of which everything that costs time is scripted.

    Args:
        takes: The recipes that take the model, with their share in int8; all others refuse it.
        latency_s: Of the untrained int8 model by recipe.
    """

    def __init__(self, takes: dict[str, float | None], latency_s: dict[str, float] | None = None) -> None:
        self.takes, self.latency_s = takes, latency_s or {}
        self.probed: list[str] = []
        self.glanced: list[str] = []
        self.trained: list[str] = []

    def probe(self, names: Sequence[str]) -> list[Probe]:
        self.probed += names
        return sorted((Probe(recipe=name, takes=name in self.takes, mac_share=self.takes.get(name),
                             reason="" if name in self.takes else f"{name} refuses it.") for name in names),
                      key=best_first)

    def glance(self, case: QATCase, recipe: str) -> Any:
        self.glanced.append(recipe)
        found = SimpleNamespace(like_for_like=SimpleNamespace(candidate=SimpleNamespace(p50=self.latency_s[recipe])))
        return SimpleNamespace(speed=lambda floor: found, close=lambda: None)

    def checks(self, recipe: str) -> Any:
        self.trained.append(recipe)
        return Judged(recipe)

    def rank(self, case: QATCase = CASE, tolerances: Tolerances | None = None) -> dict[str, RankingEntry]:
        entries = rank(case, tolerances or Tolerances(), probe=self.probe, checks=self.checks, glance=self.glance,
                       done=lambda checks: None)
        return {entry["recipe"]: entry for entry in entries}


def test_only_recipes_that_take_the_model_are_trained_the_best_first() -> None:
    trial = Trial({"pt2e-onnxruntime": 0.5, "fx-torchscript": 0.99, "pt2e-litert": 0.8})
    entries = trial.rank()
    assert trial.probed == list(COMPLETE_RECIPES)
    assert trial.trained == ["fx-torchscript", "pt2e-litert", "pt2e-onnxruntime"]
    assert {name for name, entry in entries.items() if entry["judged"]} == set(trial.trained)
    refused = [entry for entry in entries.values() if not entry["judged"]]
    assert len(refused) == len(COMPLETE_RECIPES) - 3
    assert all(entry["note"] == f"{entry['recipe']} refuses it." and not entry["holds"] for entry in refused)


def test_no_recipe_is_tried_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(auto, "with_causes", lambda checks, result, *, others=True: (asked.append(others), result)[1])
    Trial({"fx-torchscript": 1.0}).rank()
    assert asked == [False] * len(CHECKS)


def test_where_no_recipe_takes_it_nothing_is_trained() -> None:
    trial = Trial({})
    assert not any(entry["holds"] for entry in trial.rank().values())
    assert trial.trained == []


def test_a_recipe_that_leaves_too_little_in_int8_is_not_trained() -> None:
    trial = Trial({"torchao-int8": 0.0999, "pt2e-inductor": 0.1, "pt2e-litert": None})
    entries = trial.rank()
    assert sorted(trial.trained) == ["pt2e-inductor", "pt2e-litert"]
    assert "9.99%" in entries["torchao-int8"]["note"]
    assert "10.0%" in entries["torchao-int8"]["note"]
    assert Trial({"pt2e-inductor": 0.4}).rank(tolerances=Tolerances(min_coverage=0.5))["pt2e-inductor"][
        "judged"] is False


def test_of_the_engines_that_take_it_the_fastest_is_trained() -> None:
    trial = Trial({"fx-x86": 1.0, "fx-onednn": 1.0, "fx-qnnpack": 1.0, "eager-fbgemm": 1.0},
                  {"fx-x86": 0.003, "fx-onednn": 0.002, "fx-qnnpack": 0.009})
    entries = trial.rank()
    assert sorted(trial.glanced) == ["fx-onednn", "fx-qnnpack", "fx-x86"], "the only engine of eager has no rival"
    assert sorted(trial.trained) == ["eager-fbgemm", "fx-onednn"]
    assert entries["fx-qnnpack"]["latency_s"] == 0.009
    assert "slower than fx-onednn" in entries["fx-qnnpack"]["note"]


@pytest.mark.parametrize("why", ["no fork", "own stages"])
def test_where_nothing_can_be_tried_what_is_installed_is_judged(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    case = CASE
    if why == "no fork":
        monkeypatch.setattr(auto, "can_fork", lambda: False)
    else:
        case = QATCase(model=CASE.model, example_inputs=CASE.example_inputs, converted=nn.Sequential(nn.Linear(4, 2)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    trial = Trial({}, dict.fromkeys(COMPLETE_RECIPES, 1.0))
    entries = trial.rank(case)
    assert trial.probed == []
    assert {"pt2e-executorch", "pt2e-litert", "fx-torchscript"} <= set(trial.trained)
    assert "pytest-qat[onnx]" in entries["pt2e-onnxruntime"]["note"]
    assert "pt2e-onnxruntime" not in trial.trained
