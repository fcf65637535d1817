"""`dequantize_model`: the int8 model's own weights and biases, in a float model."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from pytest_qat import dequantize_model
from pytest_qat.errors import InvalidCase
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.workflows.simulated import simulated

warnings.filterwarnings("ignore", module="torch")
INPUTS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolution with batch norm, one without a bias, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.stem, self.norm, self.act = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.hidden, self.act2, self.head = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.flat(self.pool(self.act(self.norm(self.stem(self.quant(x))))))
        return self.dequant(self.head(self.act2(self.hidden(x))))  # type: ignore[no-any-return]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Net().train()
    for _ in range(3):
        net(2 * INPUTS + 1)
    return net.eval()


def _eager(model: nn.Module, chains: list[list[str]]) -> tuple[nn.Module, nn.Module]:
    fused = tq.fuse_modules(copy.deepcopy(model), chains)
    fused.qconfig = tq.get_default_qconfig("x86")
    prepared = tq.prepare(fused)
    prepared(INPUTS)
    return prepared, tq.convert(copy.deepcopy(prepared))


def _off(prepared: nn.Module) -> nn.Module:
    """What fake-quantize makes of weights alone: activations are left as they are."""
    model = simulated(prepared)
    for name, module in model.named_modules():
        if name.endswith("activation_post_process") and hasattr(module, "fake_quant_enabled"):
            module.fake_quant_enabled[0] = 0
    return model


@pytest.mark.parametrize("chains", [[["stem", "norm", "act"], ["hidden", "act2"]], [["stem", "norm"]], []])
def test_an_eager_model_gives_its_weights(model: nn.Module, chains: list[list[str]]) -> None:
    prepared, converted = _eager(model, chains) if chains else _eager(model, [["stem", "norm"]])
    restored = dequantize_model(converted, model)
    with torch.no_grad():
        assert sqnr_db(_off(prepared)(INPUTS), restored(INPUTS)) > 80
        assert sqnr_db(model(INPUTS), restored(INPUTS)) > 25


def test_weights_and_biases_are_those_of_each_layer(model: nn.Module) -> None:
    _, converted = _eager(model, [["stem", "norm", "act"]])
    restored: Any = dequantize_model(converted, model)
    for name in ("stem", "hidden", "head"):
        layer: Any = converted.get_submodule(name)
        torch.testing.assert_close(restored.get_submodule(name).weight, layer.weight().dequantize(), rtol=0, atol=0)
        torch.testing.assert_close(restored.get_submodule(name).bias, layer.bias(), rtol=0, atol=0)
    assert isinstance(restored.norm, nn.Identity)
    assert isinstance(model.get_submodule("norm"), nn.BatchNorm2d)  # the user's own stays


def test_an_fx_model_gives_its_weights(model: nn.Module) -> None:
    prepared = prepare_fx(copy.deepcopy(model), tq.get_default_qconfig_mapping("x86"), (INPUTS,))
    prepared(INPUTS)
    restored = dequantize_model(convert_fx(copy.deepcopy(prepared)), model)
    with torch.no_grad():
        assert sqnr_db(model(INPUTS), restored(INPUTS)) > 25


def test_dynamic_layers_give_theirs() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    words = Words().eval()
    converted = tq.quantize_dynamic(copy.deepcopy(words), {nn.LSTM, nn.Linear})
    restored: Any = dequantize_model(converted, words)
    inputs = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert sqnr_db(words(inputs), restored(inputs)) > 25
    names = {name for name, _ in words.named_parameters()}
    assert all(not torch.equal(restored.get_parameter(name), words.get_parameter(name))
               for name in names if "weight" in name)


def test_a_batch_norm_that_was_not_folded_stays(model: nn.Module) -> None:
    unfused = copy.deepcopy(model)
    unfused.qconfig = tq.get_default_qconfig("x86")
    prepared = tq.prepare(unfused)
    prepared(INPUTS)
    restored = dequantize_model(tq.convert(prepared), model)
    assert isinstance(restored.get_submodule("norm"), nn.BatchNorm2d)
    with torch.no_grad():
        assert sqnr_db(model(INPUTS), restored(INPUTS)) > 25


def test_what_is_not_quantized_or_of_another_shape_is_refused(model: nn.Module) -> None:
    with pytest.raises(InvalidCase, match="no quantized layers"):
        dequantize_model(model, model)
    _, converted = _eager(model, [["stem", "norm"]])
    other: Any = copy.deepcopy(model)
    other.head = nn.Linear(16, 5)
    with pytest.raises(InvalidCase, match=r"head\.weight is of shape \(5, 16\)"):
        dequantize_model(converted, other)
    del other.head
    with pytest.raises(InvalidCase, match="has no head"):
        dequantize_model(converted, other)
