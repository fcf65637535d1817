"""A batch norm's weight of 0, by which QAT with batch norm folded in divides, is no obstacle in any workflow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import ModelChecks
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.plain_model import with_plain_model
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe

X = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A block whose branch begins at 0, as `zero_init_residual` makes it."""

    def __init__(self, zeros: slice = slice(None)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head, self.add = nn.Conv2d(8, 4, 1), nn.quantized.FloatFunctional()
        with torch.no_grad():
            self.norm.weight[zeros] = 0
            self.norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.add.add(x, self.norm(self.conv(x))))


@pytest.mark.parametrize("zeros", [slice(None), slice(1, 3)], ids=["all channels", "two channels"])
@pytest.mark.parametrize("recipe", ["fx-x86", "fx-qnnpack", "eager-x86", "pt2e-torch"])
def test_models_with_zero_gammas_train_and_convert(recipe: str, zeros: slice) -> None:
    torch.manual_seed(0)
    model = Residual(zeros).eval()
    run = ModelRun(QATCase(model=model, example_inputs=(X,)), get_recipe(recipe), RunSettings(tolerances=Tolerances()),
                   lock=MachineLock())
    try:
        checks = ModelChecks(run, reference="models:net")
        for check in ("prepare", "convert", "parity"):
            result = checks.check(check)
            assert result.verdict.outcome.value == "passed", result.verdict.reasons
    finally:
        run.close()
    assert not model.norm.weight[zeros].any(), "the user's own model is as it was"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_copy_computes_the_same_and_its_note_counts_the_channels(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)).eval().to(dtype)
    with torch.no_grad():
        model[1].weight[2:5] = 0
    made, (note,) = with_plain_model(QATCase(model=model, example_inputs=(X.to(dtype),)))
    assert (note.code, note.module, note.evidence) == ("zero-gamma", "1", {"channels": {"1": 3}})
    assert (made.model[1].weight != 0).all()
    with torch.no_grad():
        assert torch.allclose(made.model(X.to(dtype)), model(X.to(dtype)), atol=torch.finfo(dtype).eps)
