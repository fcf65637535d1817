"""The shipped models: the healthy ones pass, and each broken one fails where it is broken, for its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project


def outcomes(project: Project, reference: str, *arguments: str) -> tuple[dict[str, str], dict[str, Any], str]:
    result = project.run(f"--qat-model=fixtures.{reference}", "--qat-json=qat.json", *arguments)
    (run,) = json.loads((project.path / "qat.json").read_text())["runs"]
    text = " ".join(result.stdout.str().split())
    assert "INTERNALERROR" not in text
    return {check: entry["outcome"] for check, entry in run["checks"].items()}, run, text


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86"])
def test_edge_model_passes_everything_on_real_digits(project: Project, recipe: str) -> None:
    # A speed floor of 0: the real one is for quiet machines, and the README's command has it.
    checks, run, _ = outcomes(project, "edge_model:digits", f"--qat-recipe={recipe}", "--qat-min-speedup=0")
    assert set(checks.values()) == {"passed"}
    assert run["metrics"]["accuracy"]["fp32"] > 0.97
    assert run["metrics"]["accuracy"]["int8"] > 0.97
    assert run["metrics"]["coverage"]["mac_share"] == 1.0
    assert run["fine_tuning"]["kind"] == "data"


@pytest.mark.slow
def test_vgg_passes_without_stubs_of_its_own(project: Project) -> None:
    checks, run, _ = outcomes(project, "vgg:digits", "--qat-recipe=eager-x86", "--qat-min-speedup=0")
    assert set(checks.values()) == {"passed"}
    assert run["metrics"]["size_reduction"] > 3


def test_mobilenet_in_eager_mode_names_every_residual_plus_before_training(project: Project) -> None:
    pytest.importorskip("torchvision")
    checks, run, text = outcomes(project, "mobilenet:digits", "--qat-recipe=eager-x86")
    assert checks.pop("prepare") == "failed"
    assert set(checks.values()) == {"blocked"}
    plus = [finding["module"] for finding in run["findings"] if finding["code"] == "eager-op-without-int8-kernel"]
    assert plus == [f"features.{index}" for index in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert "FloatFunctional" in text
    assert run["fine_tuning"] is None


def test_an_untrained_model_fails_on_its_own_accuracy(project: Project) -> None:
    checks, run, text = outcomes(project, "edge_model:untrained", "--qat-min-speedup=0")
    assert checks["accuracy"] == "failed"
    assert "the float model itself scores" in text
    assert run["metrics"]["accuracy"]["drop"] < 0.05


@pytest.mark.slow
def test_an_untrained_model_without_a_floor_cannot_pass_either(project: Project) -> None:
    checks, _, text = outcomes(project, "edge_model:untrained", "--qat-min-speedup=0", "--qat-min-accuracy=0",
                               "-k", "accuracy")
    assert checks["accuracy"] == "inconclusive"
    assert "most frequent class" in text


@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86"])
def test_a_model_without_int8_layers_fails_on_coverage_however_good_it_is(project: Project, recipe: str) -> None:
    checks, _, text = outcomes(project, "edge_model:unquantizable", f"--qat-recipe={recipe}")
    assert checks["coverage"] == "failed"
    assert [check for check, outcome in checks.items() if outcome == "passed"] == ["prepare", "convert"]
    assert [check for check, outcome in checks.items() if outcome == "blocked"] == [
        "parity", "accuracy", "size", "speedup", "roundtrip"]
    assert "nothing was quantized" in text


def test_nan_outputs_fail_before_any_training(project: Project) -> None:
    checks, _, text = outcomes(project, "edge_model:nan_output")
    assert checks["prepare"] == "failed"
    assert "returns NaN or infinity" in text


def test_a_function_that_raises_is_a_collection_error(project: Project) -> None:
    result = project.run("--qat-model=fixtures.edge_model:raises")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "raised RuntimeError: the checkpoint is gone" in result.stdout.str()


@pytest.mark.slow
def test_torchvision_models_run_by_name(project: Project) -> None:
    pytest.importorskip("torchvision")
    result = project.run("--qat-model=torchvision:shufflenet_v2_x0_5", "--qat-inputs=4x3x64x64",
                         "--qat-min-speedup=0", "--qat-json=qat.json")
    text = " ".join(result.stdout.str().split())
    assert "shufflenet_v2_x0_5 (random weights)" in text
    (run,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert run["checks"]["coverage"]["outcome"] == "passed"
    assert run["metrics"]["accuracy"]["kind"] == "agreement"
    assert run["metrics"]["accuracy"]["samples"] == 64
