"""FX mode: what it cannot trace has a name, and training flags are not baked in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import quantized_engine
from pytest_qat.finetune import calibrate
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import eager, fx
from pytest_qat.workflows.qconfigs import qconfig_mapping

RECIPE = get_recipe("fx-x86")
INPUTS = (torch.randn(4, 6),)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_data_dependent_control_flow_runs_in_python_and_is_named_with_its_line() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(Branching())).eval()
    with quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model, example_inputs=INPUTS), RECIPE)
    (finding,) = prepared.findings
    assert (finding.code, finding.severity) == ("runs-partly-in-python", "note")
    assert finding.evidence["parts"] == ["0"]
    assert "test_fx.py:" in finding.message


def test_functional_dropout_is_off_in_the_prepared_model_in_eval_mode() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.fc(x), 0.9, self.training)

    with quantized_engine("x86"):
        module = fx.prepare(QATCase(model=Dropping().train(), example_inputs=INPUTS), RECIPE).module.eval()
    assert torch.equal(module(*INPUTS), module(*INPUTS))


def test_skipped_modules_stay_float() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU())).eval()
    with quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model, example_inputs=INPUTS, skip=("1",)), RECIPE)
        calibrate(prepared.module, [INPUTS])
        converted = fx.convert(prepared, RECIPE).module
    assert prepared.float_modules == {"1": "left in float on purpose (skip)"}
    assert "quantized" not in type(converted.get_submodule("1.0")).__module__
    assert "quantized" in type(converted.get_submodule("0")).__module__


def test_an_embedding_beside_int8_layers_does_not_break_the_default_mapping() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 6)).eval()
    with quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model, example_inputs=(torch.arange(4),)), RECIPE)
    assert list(prepared.float_modules) == ["0"]


class Optional(nn.Module):
    """Arguments that are left out when it is served, as models bring them from training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor, targets: Tensor | None = None, mask: Tensor | None = None, flag: bool = False,
                **others: Tensor) -> Tensor:
        found = self.fc(x)
        if flag or others:
            raise ValueError
        if mask is not None:
            found = found * mask
        return found if targets is None else nn.functional.cross_entropy(found, targets)


@pytest.mark.parametrize("given", [(), (None,), (None, None, False)])
def test_arguments_that_the_example_leaves_out_are_not_traced(given: tuple[bool | None, ...]) -> None:
    model = Optional().eval()
    case = QATCase(model=model, example_inputs=(*INPUTS, *given))
    with quantized_engine("x86"):
        prepared = fx.prepare(case, RECIPE)
        calibrate(prepared.module, [case.example_inputs])
        assert fx.convert(prepared, RECIPE).module(*case.example_inputs).shape == (4, 6)
        assert torch.allclose(fx.float_twin(case)(*case.example_inputs), model(*INPUTS), atol=1e-6)
    assert type(model) is Optional


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(len(x), 6)


def test_a_length_is_left_to_python() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Counting()).eval()
    with quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model, example_inputs=INPUTS), RECIPE)
    assert prepared.findings[0].evidence["parts"] == ["0"]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.encoder(self.words(ids)))


@pytest.mark.parametrize("workflow", [fx, eager])
def test_torch_s_own_transformer_stays_float_as_a_whole_with_the_reason(workflow: Any) -> None:
    """FX takes it for one op, so its layers would be fake-quantized for ever."""
    inputs = (torch.arange(12).reshape(2, 6),)
    case = QATCase(model=Encoder().eval(), example_inputs=inputs)
    with quantized_engine("x86"):
        prepared = workflow.prepare(case, RECIPE)
        calibrate(prepared.module, [inputs])
        converted = workflow.convert(prepared, RECIPE).module
        assert converted(*inputs).shape == (2, 6, 4)
    assert prepared.float_modules["encoder"] == (
        "fx and eager mode take nn.TransformerEncoder for one operation, which has no int8 kernel")
    kinds = {type(module).__name__ for module in converted.modules()}
    assert "FusedMovingAvgObsFakeQuantize" not in kinds
    assert any("quantized" in type(module).__module__ for name, module in converted.named_modules()
               if name.endswith("fc"))


def test_a_qconfig_that_the_user_gives_such_a_module_by_name_is_his_own() -> None:
    mapping = tq.get_default_qat_qconfig_mapping("x86").set_object_type(nn.Embedding, None)
    mapping.set_module_name("encoder", mapping.global_qconfig)
    found = qconfig_mapping(QATCase(model=Encoder().eval(), example_inputs=(torch.zeros(1, 1, dtype=torch.int64),),
                                    qconfig_mapping=mapping), engine="x86")
    assert found.module_name_qconfigs["encoder"] is not None
