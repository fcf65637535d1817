"""Errors of load_state_dict between stages and workflows of quantization."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization import quantize_fx
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from pytest_qat.core.torch_state import preserved_torch_state
from tests.workflows.provoked import IMAGES, Net, by_fx, check, explained

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


def eager(*, qat: bool) -> nn.Module:
    model = Net().train(qat)
    model.qconfig = (tq.get_default_qat_qconfig if qat else tq.get_default_qconfig)("x86")
    prepared = (tq.prepare_qat if qat else tq.prepare)(model)
    prepared(IMAGES)
    return prepared


def pt2e() -> nn.Module:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    graph = prepare_pt2e(torch.export.export(Net(stubs=False).eval(), (IMAGES,)).module(), quantizer)
    graph(IMAGES)
    return graph


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "float": ("float", Net),
    "eager prepared": ("prepared", lambda: eager(qat=False)),
    "eager prepared for QAT": ("prepared", lambda: eager(qat=True)),
    "eager converted": ("int8", lambda: tq.convert(eager(qat=True).eval())),
    "fx prepared": ("prepared", lambda: by_fx(Net(stubs=False), IMAGES, qat=True)),
    "fx converted": ("int8", lambda: quantize_fx.convert_fx(by_fx(Net(stubs=False), IMAGES))),
    "pt2e prepared": ("prepared", pt2e),
    "pt2e converted": ("int8", lambda: convert_pt2e(pt2e())),
}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    with preserved_torch_state(seed=0):
        return {name: make() for name, (_, make) in MODELS.items()}


@pytest.mark.parametrize("own", MODELS)
@pytest.mark.parametrize("saved", MODELS)
def test_stages_that_do_not_match_are_told(models: dict[str, nn.Module], saved: str, own: str) -> None:
    if saved == own:
        return
    model, state = copy.deepcopy(models[own]), models[saved].state_dict()
    finding = check(explained(model, lambda: model.load_state_dict(state)), "state-dict-of-another-stage")
    stages = MODELS[saved][0], MODELS[own][0]
    if stages[0] == stages[1]:
        assert "same workflow" in finding.remedy
    else:
        assert f"of a model that is {stages[0]}, and the model that it is loaded into is {stages[1]}" in finding.message


def test_the_first_module_that_differs_is_named(models: dict[str, nn.Module]) -> None:
    model, state = Net(), models["eager converted"].state_dict()
    check(explained(model, lambda: model.load_state_dict(state)), "state-dict-of-another-stage", module="quant")


def test_leaving_strictness_out_does_not_help(models: dict[str, nn.Module]) -> None:
    model, state = Net(), models["eager converted"].state_dict()
    check(explained(model, lambda: model.load_state_dict(state, strict=False)), "state-dict-of-another-stage",
         "int8", "float", module="conv")


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
@pytest.mark.parametrize("saved_int8", [False, True])
def test_torchao_s_weights_are_told(config: type, *, saved_int8: bool) -> None:
    plain, int8 = nn.Sequential(nn.Linear(64, 8)), nn.Sequential(nn.Linear(64, 8))
    quantize_(int8, config())
    saved, own = (int8, plain) if saved_int8 else (plain, int8)
    finding = check(explained(own, lambda: own.load_state_dict(saved.state_dict())), "state-dict-of-another-stage",
                   module="0")
    assert f"is {'int8' if saved_int8 else 'float'}, and" in finding.message


class Scaled(nn.Module):
    """A float model with parameters that are named as those of int8 modules."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(4)))


@pytest.mark.parametrize(("saved", "own"), [
    (Scaled(), Scaled("scale")), (Scaled("scale"), Scaled()), (Scaled("gamma"), Scaled()), (Scaled("zero_point"),
                                                                                            Scaled()),
    (nn.Sequential(Scaled("scale")), nn.Sequential(Scaled())), (nn.Linear(4, 4), nn.Linear(4, 5)),
    (nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))])
def test_float_models_that_differ_are_left_alone(saved: nn.Module, own: nn.Module) -> None:
    assert explained(own, lambda: own.load_state_dict(saved.state_dict())) is None


def test_a_key_error_of_the_user_s_is_left_alone() -> None:
    state = Net().state_dict()
    assert explained(Net(), lambda: state["conv.scale"]) is None
