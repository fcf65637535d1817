"""Bad options and references: one sentence each, the right exit code, no INTERNALERROR, other models unaffected."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
from conftest import Project

from tests.plugin.inner_runs import everything

USAGE, INTERRUPTED = pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize(("option", "expected"), [
    ("--qat-min-speedup=nan", "--qat-min-speedup is nan, which is not a finite number"),
    ("--qat-min-speedup=inf", "--qat-min-speedup is inf, which is not a finite number"),
    ("--qat-min-speedup=-1", "--qat-min-speedup is -1, which is negative"),
    ("--qat-min-speedup=fast", "--qat-min-speedup is 'fast', which is not a number"),
    ("--qat-min-size-reduction=-0.5", "--qat-min-size-reduction is -0.5, which is negative"),
    ("--qat-accuracy-drop=5", "If you meant 5 percent, write --qat-accuracy-drop as 5%"),
    ("--qat-accuracy-drop=nan", "--qat-accuracy-drop is nan"),
    ("--qat-accuracy-drop=-1%", "--qat-accuracy-drop is -1%, which is negative"),
    ("--qat-min-accuracy=90", "write --qat-min-accuracy as 90%"),
    ("--qat-recipe=fx-x87", "no recipe is named 'fx-x87'"),
    ("--qat-recipe=fx-x87", "Did you mean fx-x86?"),
    ("--qat-threads=0", "--qat-threads is 0, expected a whole number of at least 1"),
    ("--qat-threads=many", "--qat-threads is many, expected a whole number"),
    ("--qat-max-time=0", "--qat-max-time is 0, expected a number of seconds above 0"),
    ("--qat-max-time=inf", "--qat-max-time is inf, expected a number of seconds above 0"),
    ("--qat-seed=-1", "--qat-seed is -1, expected a whole number of at least 0"),
    ("--qat-inputs=3x0x5", "--qat-inputs is '3x0x5', expected whole numbers of at least 1"),
    ("--qat-model=", "--qat-model is empty"),
    ("--qat-batches=0", "--qat-batches is 0, expected batch sizes separated by commas"),
    ("--qat-batches=-8", "--qat-batches is -8, expected batch sizes separated by commas"),
    ("--qat-batches=1,,8", "--qat-batches is 1,,8, expected batch sizes separated by commas"),
    ("--qat-batches=1;8", "--qat-batches is 1;8, expected batch sizes separated by commas"),
    ("--qat-batches=1.5", "--qat-batches is 1.5, expected batch sizes separated by commas"),
    ("--qat-batches=²", "--qat-batches is ², expected batch sizes separated by commas"),
    ("--qat-batches=", "expected batch sizes separated by commas. remedy: Write --qat-batches=1,8,32."),
    ("--qat-batches tests", "is tests, expected batch sizes separated by commas. remedy: Write --qat-batches=1,8,32."),
    ("--qat-memory=much", "--qat-memory is much, expected on or off. remedy: Write --qat-memory=on."),
    ("--qat-memory=", "--qat-memory is , expected on or off"),
    ("--qat-json=nowhere/qat.json", "there is no folder"),
    ("--qat-json=.", "which is a folder, expected a file"),
])
def test_a_bad_option_is_a_usage_error_before_any_model_is_loaded(
        project: Project, option: str, expected: str) -> None:
    project.add("open('loaded', 'w')")
    result = project.run("--qat-model=models:good", *option.split())
    assert result.ret == USAGE
    assert expected in everything(result)
    assert not (project.path / "loaded").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys/kernel").is_dir(), reason="needs a read-only folder")
def test_a_json_path_in_a_read_only_folder_is_a_usage_error(project: Project) -> None:
    folder = Path("/proc/sys/kernel")  # read-only even for root
    result = project.run("--qat-model=models:good", f"--qat-json={folder}/qat.json")
    assert result.ret == USAGE
    assert "cannot be written to" in everything(result)


BAD_REFERENCES = [
    ("modles:good", "no module is named 'modles'"),
    ("modles:good", "Did you mean models?"),
    ("models:god", "models has no attribute 'god'"),
    ("models:god", "Did you mean good"),
    ("nothere.py:good", "there is no file nothere.py"),
    ("models", "has no ':' between module and function"),
    ("torchvision:resnet19", "torchvision has no model named 'resnet19'"),
    ("models:raises", "models:raises raised ZeroDivisionError: division by zero (models.py:"),
    ("models:none", "models:none gave None, expected a QATCase, an nn.Module or a (model, example_inputs) pair"),
    ("models:a_class", "models:a_class gave the class Net"),
    ("models:a_class", "Return an instance: Net(...)"),
    ("models:a_string", "models:a_string gave str 'resnet18'"),
    ("models:a_bare_model", "Give --qat-inputs=1x3x224x224"),
    ("models:no_parameters", "Flatten has no parameters"),
    ("models:already_quantized", "the model is already quantized: 0 is "),
    ("models:on_meta", "the model has tensors on meta, expected the CPU"),
    ("models:on_cuda", "models:on_cuda raised "),
    ("models:bad_tolerance", "accuracy_drop is 5, but it is a fraction between 0 and 1"),
    ("models:bad_recipe", "no recipe is named 'pt3e'"),
    ("models:no_loss", "train_data is given without loss_fn"),
]


def test_bad_references_are_collection_errors_and_others_still_run(project: Project) -> None:
    references = dict(BAD_REFERENCES)
    if importlib.util.find_spec("torchvision") is None:
        del references["torchvision:resnet19"]
    project.add('''
        import torch.ao.quantization as tq

        def raises():
            return 1 / 0

        def none():
            return None

        def a_class():
            return Net

        def a_string():
            return "resnet18"

        def a_bare_model():
            return Net()

        def no_parameters():
            return nn.Flatten(), (torch.randn(2, 3),)

        def already_quantized():
            model = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), dtype=torch.qint8)
            return model, (torch.randn(2, 4),)

        def on_meta():
            return nn.Linear(4, 4, device="meta"), (torch.randn(2, 4),)

        def on_cuda():
            assert not torch.cuda.is_available()
            return nn.Linear(4, 4).cuda(), (torch.randn(2, 4),)

        def bad_tolerance():
            return case(tolerances=Tolerances(accuracy_drop=5))

        def bad_recipe():
            return case(recipes=("pt3e",))

        def no_loss():
            return case(loss_fn=None)
    ''')
    asked = [f"--qat-model={reference}" for reference in references]
    assert project.run(asked[0], "--qat-model=models:good", "-k", "prepare").ret == INTERRUPTED
    result = project.run(*asked, "--qat-model=models:good", "-k", "prepare", "--qat-json=qat.json",
                         "--continue-on-collection-errors")
    result.assert_outcomes(passed=1, errors=len(asked), deselected=7)
    text = everything(result)
    assert "Traceback" not in text
    document = json.loads((project.path / "qat.json").read_text())
    said = {error["model"]: " ".join(error["message"].split()) for error in document["errors"]}
    assert said.keys() == references.keys()
    for reference, expected in BAD_REFERENCES:
        if reference in references:
            assert expected in said[reference]
            assert expected in text
