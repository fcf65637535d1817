"""Wrong int8 kernels are found by trying them, and their layers run in float between int8 ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.finetune import calibrate
from pytest_qat.measure.coverage import measure_coverage
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.pipeline.first_call import with_right_kernels
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import ConvertedModel, fx
from pytest_qat.workflows.kernels import InFloat, replace_wrong_kernels

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own, in copies of PReLU
RECIPE = get_recipe("fx-x86")


def converted(model: nn.Module, *inputs: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    with preserved_torch_state(seed=0), quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model.eval(), example_inputs=inputs), RECIPE)
        calibrate(prepared.module, [inputs])
        return prepared.module.eval(), fx.convert(prepared, RECIPE).module


def prelu() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(288, 4))


def test_prelu_whose_slopes_cannot_hold_one_is_computed_in_float() -> None:
    x = torch.randn(4, 3, 8, 8)
    prepared, int8 = converted(prelu(), x)
    with quantized_engine("x86"), torch.no_grad():
        assert sqnr_db(prepared(x), int8(x)) < 10, "torch's kernel is right now: this test needs another wrong one"
        found = replace_wrong_kernels(int8, (x,))
        assert list(found) == ["1"]
        assert sqnr_db(prepared(x), int8(x)) > 25
        assert sqnr_db(int8(x), copy.deepcopy(int8)(x)) == float("inf")
    assert isinstance(int8.get_submodule("1"), InFloat)


def test_the_note_and_the_coverage_name_the_layer() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = prelu()
    case = QATCase(model=model, example_inputs=(x,))
    _, int8 = converted(model, x)
    with quantized_engine("x86"):
        made = with_right_kernels(ConvertedModel(module=int8), case, engine="x86")
        coverage = measure_coverage(model, made.module, (x,), reasons=made.float_modules)
    (note,) = made.findings
    assert (note.code, note.severity, note.module) == ("wrong-int8-kernel", "note", "1")
    assert note.evidence["sqnr_db"] < 10
    assert coverage.int8_modules == 2


def test_a_transposed_convolution_that_the_engine_gets_wrong_counts_as_float() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ConvTranspose3d(16, 8, 2, 2), nn.Conv3d(8, 2, 1)).eval()
    x = torch.randn(2, 1, 8, 8, 8)
    prepared, int8 = converted(model, x)
    with quantized_engine("x86"), torch.no_grad():
        wrong = sqnr_db(prepared(x), int8(x)) < 10
        found = replace_wrong_kernels(int8, (x,))
        assert list(found) == (["1"] if wrong else [])
        assert sqnr_db(prepared(x), int8(x)) > 20
        assert "1" in {left.module for left in measure_coverage(model, int8, (x,), reasons={}).leftovers} or not wrong


@pytest.mark.parametrize("layers", [
    (nn.Conv1d(3, 8, 3, groups=1, dilation=2), nn.ReLU(), nn.Conv1d(8, 4, 3, stride=2, padding=1)),
    (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.Hardswish(),
     nn.Conv2d(8, 8, 3, groups=8)),
    (nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.ELU(), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Conv2d(8, 4, 1)),
    (nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4)),
], ids=["1d", "2d", "norms", "linear"])
def test_right_kernels_are_not_called_wrong(layers: tuple[nn.Module, ...]) -> None:
    first = layers[0]
    shape = {nn.Conv1d: (4, 3, 20), nn.Conv2d: (4, 3, 12, 12), nn.Linear: (4, 8)}[type(first)]
    x = torch.randn(shape)
    _, int8 = converted(nn.Sequential(*layers), x)
    with quantized_engine("x86"):
        assert replace_wrong_kernels(int8, (x,)) == {}
