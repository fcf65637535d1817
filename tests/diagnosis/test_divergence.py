"""Kernels that compute something other than fake-quantize simulated, and the module where that begins."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.diagnosis.divergence import BROKEN_DB, Divergence, _modules, first_divergence, kernels_disagree
from pytest_qat.exported.model import ExportedModel
from pytest_qat.finetune import calibrate
from pytest_qat.measure.parity import Parity, sqnr_db
from pytest_qat.pipeline import stages
from pytest_qat.recipe import RECIPES
from pytest_qat.workflows import load_workflow
from pytest_qat.workflows.eager.wrappers import QuantizedBorder
from pytest_qat.workflows.observers import switch_observers

PARITY = Parity(sqnr_db=3, quantization_sqnr_db=30, finite=True)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)).eval()


class Wrong(nn.Linear):
    """A kernel with the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_the_first_module_with_another_output_is_the_culprit() -> None:
    prepared, converted = net(), net()
    converted[2] = Wrong(8, 8)
    converted[2].load_state_dict(prepared[2].state_dict())
    found = first_divergence(prepared, converted, torch.randn(4, 8))
    assert found is not None
    assert (found.module, found.kind) == ("2", "Wrong")
    assert found.sqnr_db < 0


class Noisy(nn.Linear):
    """A kernel that is exact but for noise at 26 dB, which adds up along a deep model."""

    def forward(self, x: Tensor) -> Tensor:
        exact = super().forward(x)
        noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
        return exact + 0.05 * exact.norm() / noise.norm() * noise



def exported(layers: list[nn.Module]) -> tuple[ExportedModel, ExportedModel]:
    """Return what fake-quantizes, calibrated, and what the reference of its int8 form computes."""
    case = QATCase(model=nn.Sequential(*layers).eval(), example_inputs=(torch.randn(8, 16),))
    prepared = stages.prepare(case, RECIPES["pt2e-torch"])
    calibrate(prepared.module, [case.example_inputs[0]])
    converted = load_workflow("pt2e").convert(prepared, RECIPES["pt2e-torch"]).module
    switch_observers(prepared.module.eval(), on=False)
    assert isinstance(prepared.module, ExportedModel)
    assert isinstance(converted, ExportedModel)
    return prepared.module, converted


def test_a_module_of_an_exported_graph_answers_for_its_own_error_alone() -> None:
    """Each bias is off by 26 dB, which adds up over 40 layers; then the weight of one has the wrong sign."""
    torch.manual_seed(0)
    inputs = torch.randn(8, 16)
    layers = [nn.Linear(16, 16) for _ in range(40)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    prepared, converted = exported(layers)
    assert torch.equal(prepared(inputs), converted(inputs))
    assert first_divergence(prepared, converted, inputs) is None
    with torch.no_grad():
        for name, parameter in converted.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.05 * torch.randn(16))
    assert sqnr_db(prepared(inputs), converted(inputs)) < BROKEN_DB
    assert first_divergence(prepared, converted, inputs) is None
    weights = [buffer for name, buffer in converted.named_buffers() if buffer.dtype == torch.int8]
    weights[12].neg_()
    found = first_divergence(prepared, converted, inputs)
    assert found is not None
    assert (found.module, found.kind) == ("12", "linear")


def test_a_convolution_of_an_exported_graph_answers_for_what_its_batch_norm_returns() -> None:
    """Converting makes one of the two, whose output stands at the batch norm of what was trained."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        norm = nn.BatchNorm1d(16)
        norm.running_mean, norm.running_var = torch.randn(16), torch.rand(16) + 0.5
        nn.init.normal_(norm.weight)
        layers += [nn.Linear(16, 16), norm, nn.ReLU()]
    inputs = torch.randn(8, 16)
    prepared, converted = exported([*layers, nn.Linear(16, 4)])
    assert first_divergence(prepared, converted, inputs) is None
    weights = [buffer for name, buffer in converted.named_buffers() if buffer.dtype == torch.int8]
    weights[1].neg_()
    found = first_divergence(prepared, converted, inputs)
    assert found is not None
    assert (found.module, found.kind) == ("3", "linear")


def test_what_adds_up_along_the_way_convicts_nobody() -> None:
    torch.manual_seed(0)
    prepared = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(40))).eval()
    converted = nn.Sequential(*(Noisy(16, 16, bias=False) for _ in range(40))).eval()
    converted.load_state_dict(prepared.state_dict())
    x = torch.randn(8, 16)
    assert sqnr_db(prepared(x), converted(x)) < 12
    assert first_divergence(prepared, converted, x) is None
    converted[30] = Wrong(16, 16, bias=False)
    converted[30].load_state_dict(prepared[30].state_dict())
    found = first_divergence(prepared, converted, x)
    assert found is not None
    assert found.module == "30"


class Residual(nn.Module):
    """A module called twice, a block with an addition of its own, and positional and keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x) + x)
        x = self.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("recipe", ["fx-x86", "eager-x86", "fx-qnnpack"])
def test_int8_kernels_that_are_right_are_not_blamed_and_a_wrong_one_is(recipe: str) -> None:
    """Real kernels; the wrong one has the sign of its weights turned."""
    found = RECIPES[recipe]
    torch.manual_seed(0)
    model = (nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)) if "eager" in recipe
             else Residual()).eval()
    x = torch.randn(16, 4, 8, 8)
    case = QATCase(model=model, example_inputs=(x,))
    with preserved_torch_state(seed=0), quantized_engine(found.engine):
        workflow = load_workflow(found.workflow)
        prepared = workflow.prepare(case, found)
        calibrate(prepared.module, [x])
        prepared.module.eval()
        switch_observers(prepared.module, on=False)
        converted = workflow.convert(prepared, found).module
        assert first_divergence(prepared.module, converted, x) is None
        name, linear = next((name, module) for name, module in converted.named_modules()
                            if "Linear" in type(module).__name__)
        linear.set_weight_bias(turned(linear.weight()), linear.bias())
        culprit = first_divergence(prepared.module, converted, x)
    assert culprit is not None
    assert culprit.module == name.removeprefix("module.")


def turned(weight: Tensor) -> Tensor:
    """Return a weight of the other sign, quantized alike."""
    if weight.qscheme() == torch.per_tensor_affine:
        return torch.quantize_per_tensor(-weight.dequantize(), weight.q_scale(), weight.q_zero_point(), weight.dtype)
    return torch.quantize_per_channel(-weight.dequantize(), weight.q_per_channel_scales(),
                                      weight.q_per_channel_zero_points(), weight.q_per_channel_axis(), weight.dtype)


def test_forms_that_agree_have_no_culprit() -> None:
    assert first_divergence(net(), net(), torch.randn(4, 8)) is None


@pytest.mark.parametrize(("culprit", "module", "level"), [
    (None, None, "3.0 dB"), (Divergence(module="body.3", kind="Conv2d", sqnr_db=1.5), "body.3", "1.5 dB"),
])
def test_the_finding_names_the_culprit_where_it_is_known(culprit: Divergence | None, module: str | None,
                                                         level: str) -> None:
    finding = kernels_disagree(PARITY, culprit)
    assert (finding.code, finding.severity, finding.module) == ("kernels-disagree", "error", module)
    assert level in finding.message
    assert not finding.remedy, "what helps is tried, not guessed"


def test_a_culprit_that_could_not_be_looked_for_leaves_the_reason() -> None:
    finding = kernels_disagree(PARITY, None, unknown_because="RuntimeError: hooks are not supported")
    assert finding.evidence["module_unknown_because"] == "RuntimeError: hooks are not supported"


def test_infinite_noise_is_plain_json() -> None:
    found = kernels_disagree(Parity(sqnr_db=-math.inf, quantization_sqnr_db=math.inf, finite=True), None)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()


def test_a_whole_graph_is_no_culprit_and_a_model_of_one_layer_may_be() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    assert [type(module) for _, module in _modules(nn.Sequential(graph))] == [nn.Linear]
    bordered = [type(module) for _, module in _modules(
        QuantizedBorder(nn.Linear(2, 2), inputs=(torch.zeros(1, 2),), qconfig=None))]
    assert nn.Linear in bordered
