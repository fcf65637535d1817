"""Recipes beyond torch's own kernels, as a user sees them: missing packages, the ranking, a model nothing lowered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project

HIDE = '''
import importlib.util

real = importlib.util.find_spec

def find_spec(name, package=None):
    return None if name in {hidden!r} else real(name, package)

def pytest_configure():
    importlib.util.find_spec = find_spec

def pytest_unconfigure():
    importlib.util.find_spec = real
'''
RUNTIMES = ("executorch", "litert_torch", "onnxruntime", "torchao")


def hide(project: Project, *packages: str) -> None:
    """Let the session believe that packages are not installed."""
    (project.path / "conftest.py").write_text(HIDE.format(hidden=packages))


def document(project: Project) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((project.path / "qat.json").read_text())
    return record


@pytest.mark.parametrize(("recipe", "package", "extra"), [
    ("pt2e-executorch", "executorch", "executorch"), ("pt2e-litert", "litert_torch", "litert"),
    ("pt2e-onnxruntime", "onnxruntime", "onnx")])
def test_a_recipe_whose_package_is_missing_is_skipped_with_the_line_that_installs_it(
        project: Project, recipe: str, package: str, extra: str) -> None:
    hide(project, *RUNTIMES[:3])
    result = project.run("--qat-model=models:good", f"--qat-recipe={recipe}", "-rs", "--qat-json=qat.json")
    result.assert_outcomes(skipped=8)
    result.stdout.fnmatch_lines([f"*{recipe} needs *{package}*not installed here.*"])
    assert f"pip install 'pytest-qat[{extra}]'" in " ".join(result.stdout.str().split())
    (run,) = document(project)["runs"]
    assert {entry["outcome"] for entry in run["checks"].values()} == {"inconclusive"}


def test_under_strict_a_recipe_whose_package_is_missing_fails(project: Project) -> None:
    hide(project, "executorch")
    result = project.run("--qat-model=models:good", "--qat-recipe=pt2e-executorch", "--qat-strict")
    result.assert_outcomes(failed=8)
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.slow
def test_auto_ranks_what_is_installed_fastest_first(project: Project) -> None:
    hide(project, *RUNTIMES)
    result = project.run("--qat-model=models:good", "--qat-recipe=auto", "--qat-json=qat.json",
                         "--qat-min-speedup=0", "--qat-min-size-reduction=0.1", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*models:good[[]auto[]]::ranking PASSED*", "recipes for models:good, fastest*"])
    written = document(project)
    (ranking,) = written["rankings"]
    entries = ranking["entries"]
    held = [entry for entry in entries if entry["holds"]]
    assert {entry["recipe"].partition("-")[0] for entry in held} == {"fx", "eager"}
    assert [entry["latency_s"] for entry in held] == sorted(entry["latency_s"] for entry in held)
    assert [entry["holds"] for entry in entries] == sorted((entry["holds"] for entry in entries), reverse=True)
    by_name = {entry["recipe"]: entry for entry in entries}
    assert "pip install" in by_name["pt2e-executorch"]["note"]
    engines = [name for name in by_name if by_name[name]["note"].startswith("untrained; slower than")]
    assert {name for name in by_name if not by_name[name]["judged"]} >= {*engines, "pt2e-executorch"}
    assert all(entry["judged"] for entry in held)
    assert len({run["recipe"] for run in written["runs"]} & set(engines)) == 0
    assert {run["recipe"] for run in written["runs"]} >= {entry["recipe"] for entry in held}


@pytest.mark.slow
def test_auto_fails_if_no_recipe_holds(project: Project) -> None:
    hide(project, *RUNTIMES)
    result = project.run("--qat-model=models:good", "--qat-recipe=auto", "--qat-min-size-reduction=1000")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no recipe holds the tolerances.*", "*size: *artifact shrinks*"])


def test_auto_says_once_that_the_model_does_not_take_its_inputs(project: Project) -> None:
    hide(project, *RUNTIMES)
    project.add("def narrow():\n    return nn.Linear(3, 2), (torch.randn(2, 4),)")
    result = project.run("--qat-model=models:narrow", "--qat-recipe=auto")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "on example_inputs of shape [(2, 4)]" in text
    assert "Traceback" not in text
    assert "no recipe holds" not in text


@pytest.mark.slow
def test_auto_is_the_same_under_xdist(project: Project) -> None:
    hide(project, *RUNTIMES)
    result = project.run("--qat-model=models:good", "--qat-recipe=auto", "--qat-json=qat.json", "-n", "2",
                         "--qat-min-speedup=0", "--qat-min-size-reduction=0.1")
    result.assert_outcomes(passed=1)
    assert len(document(project)["rankings"]) == 1


def test_torchscript_ships_a_file_that_runs_without_python(project: Project) -> None:
    result = project.run("--qat-model=models:good", "--qat-recipe=fx-torchscript", "--qat-json=qat.json",
                         "--qat-min-speedup=0", "--qat-min-size-reduction=0.1")
    result.assert_outcomes(passed=8)
    (run,) = document(project)["runs"]
    assert (run["runtime"], run["engine"]) == ("torchscript", "x86")
    result.stdout.fnmatch_lines(["*runtime torchscript, engine x86*"])


def test_a_converted_model_that_nothing_lowered_fails_coverage_as_that(project: Project) -> None:
    pytest.importorskip("torchao")
    project.add('''
        def reference():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
            from pytest_qat.workflows.quantizers import make_quantizer

            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
            images = (torch.randn(4, 3, 12, 12),)
            exported = torch.export.export(model, images, strict=False).module()
            prepared = prepare_qat_pt2e(exported, make_quantizer("xnnpack"))
            prepared(*images)
            return QATCase(model=model, example_inputs=images, recipes=("pt2e-torch",),
                           converted=convert_pt2e(prepared, fold_quantize=False),
                           tolerances=Tolerances(accuracy_drop="100%", min_speedup=0, min_size_reduction=0.1))
    ''')
    result = project.run("--qat-model=models:reference", "--qat-json=qat.json")
    outcomes = {check: entry["outcome"] for check, entry in document(project)["runs"][0]["checks"].items()}
    assert outcomes["coverage"] == "failed"
    assert outcomes["accuracy"] == outcomes["size"] == outcomes["speedup"] == "passed", "they are measured all the same"
    text = " ".join(result.stdout.str().split())
    [unlowered] = [found for found in document(project)["runs"][0]["findings"]
                   if found["code"] == "converted-not-lowered"]
    assert not unlowered["remedy"], "the case brings its own stages, so that nothing was tried"
    assert f"cause: {unlowered['message']}" in text


def test_recipes_that_differ_in_the_runtime_only_share_their_training(project: Project) -> None:
    project.add('''
        def counted():
            def train(model):
                with open("trained.txt", "a") as file:
                    file.write("once ")
                (images, target), *_ = batches()
                nn.functional.cross_entropy(model(images), target).backward()
                torch.optim.SGD(model.parameters(), 1e-4).step()
            return case(train=train, train_data=None, loss_fn=None)
    ''')
    result = project.run("--qat-model=models:counted", "--qat-recipe=fx-x86", "--qat-recipe=fx-torchscript")
    assert result.parseoutcomes().get("passed", 0) >= 14
    assert (project.path / "trained.txt").read_text() == "once "
