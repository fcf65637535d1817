"""Each runtime that can tell what its ops take does, for both sides, and prints nothing about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.errors import MissingPackage
from pytest_qat.finetune import calibrate
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import DeploySettings, load_runtime
from pytest_qat.workflows import load_workflow


@pytest.mark.parametrize(("recipe", "fp32_op", "int8_op"), [
    ("fx-x86", "aten::mkldnn_convolution", "quantized::conv2d"),
    ("fx-torchscript", "aten::mkldnn_convolution", "quantized::conv2d"),
    pytest.param("pt2e-inductor", "aten::mkldnn_convolution", "onednn::qconv",
                 marks=pytest.mark.slow),
    pytest.param("pt2e-onnxruntime", "Conv", "QLinearConv", marks=pytest.mark.slow),
    pytest.param("pt2e-executorch", "Convolution", "Convolution", marks=pytest.mark.slow),
])
def test_convolutions_are_timed_by_name(recipe: str, fp32_op: str, int8_op: str, tmp_path: Path,
                                        capfd: pytest.CaptureFixture[str]) -> None:
    pair, inputs = deployed(recipe, tmp_path)
    capfd.readouterr()
    for form, op in ((pair.fp32["contiguous"], fp32_op), (pair.int8["contiguous"], int8_op)):
        with form.session(), torch.no_grad():
            form.run(form.adapt(inputs))
            found = form.op_times(form.adapt(inputs))
        assert [each.seconds for each in found] == sorted((each.seconds for each in found), reverse=True)
        assert sum(each.seconds for each in found if op in each.op) > 0, [each.op for each in found]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_runtime_that_does_not_tell_says_so_by_nothing(tmp_path: Path) -> None:
    pair, inputs = deployed("pt2e-litert", tmp_path)
    form = pair.int8["contiguous"]
    assert form.op_times(form.adapt(inputs)) == ()


def deployed(recipe_name: str, folder: Path):
    recipe = get_recipe(recipe_name)
    try:
        recipe.require_packages()
    except MissingPackage as missing:
        pytest.skip(missing.message)
    with preserved_torch_state(seed=0), quantized_engine(recipe.engine):
        inputs = (torch.randn(2, 3, 16, 16),)
        case = QATCase(model=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval(),
                       example_inputs=inputs)
        workflow = load_workflow(recipe.workflow)
        prepared = workflow.prepare(case, recipe)
        calibrate(prepared.module, [inputs])
        int8 = workflow.convert(prepared, recipe)
        settings = DeploySettings(engine=recipe.engine, threads=1, timeout_s=300)
        return load_runtime(recipe.runtime).deploy(workflow.float_twin(case).eval(), int8.module, inputs, folder,
                                                   settings), inputs
