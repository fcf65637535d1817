"""Runtimes that run torch's ops tell what each takes, for both sides; the others are tested where they are built."""

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
from tests.answers import assert_op_is_timed


@pytest.mark.parametrize(("recipe", "int8_op"), [
    ("fx-x86", "quantized::conv2d"), ("fx-torchscript", "quantized::conv2d"),
    pytest.param("pt2e-inductor", "onednn::qconv", marks=pytest.mark.slow)])
def test_convolutions_are_timed_by_name(recipe: str, int8_op: str, tmp_path: Path,
                                        capfd: pytest.CaptureFixture[str]) -> None:
    pair, inputs = deployed(recipe, tmp_path)
    assert_op_is_timed(pair.fp32["contiguous"], inputs, "aten::mkldnn_convolution", capfd)
    assert_op_is_timed(pair.int8["contiguous"], inputs, int8_op, capfd)


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
