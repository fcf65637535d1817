"""Real errors of PyTorch, provoked on small models as users quantize them by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx

from pytest_qat.findings import Finding
from pytest_qat.workflows.known_errors import explain

IMAGES, ROWS, WORDS = torch.randn(1, 3, 8, 8), torch.randn(1, 4), torch.tensor([[1, 2]])
SIGNALS, VOLUMES = torch.randn(1, 3, 8), torch.randn(1, 3, 4, 4, 4)


def explained(model: nn.Module, action: Callable[[], Any], *, stage: str = "convert") -> Finding | None:
    """Provoke an error and explain it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is torch's business
        action()
    return explain(caught.value, model=model, stage=stage)


def converted(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Quantize eagerly, as a user does by hand."""
    model.qconfig = tq.get_default_qat_qconfig("x86")
    prepared = tq.prepare_qat(model.train())
    prepared(*inputs)
    return tq.convert(prepared.eval())


class Stubbed(nn.Module):
    """A body between a QuantStub and, if asked for, a DeQuantStub."""

    def __init__(self, body: nn.Module, *, head: nn.Module | None = None, quantize: bool = True) -> None:
        super().__init__()
        self.quant = tq.QuantStub() if quantize else nn.Identity()
        self.body = body
        self.dequant = tq.DeQuantStub() if head is None else nn.Identity()
        self.head = head or nn.Identity()
        self.head.qconfig = None  # stays in float

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dequant(self.body(self.quant(x))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Gated(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x)


class Net(nn.Module):
    """Convolution, batch norm, ReLU, mean and a linear layer between stubs."""

    def __init__(self, *, stubs: bool = True) -> None:
        super().__init__()
        self.quant = tq.QuantStub() if stubs else nn.Identity()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(4, 4)
        self.dequant = tq.DeQuantStub() if stubs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc(self.act(self.norm(self.conv(self.quant(x)))).mean((2, 3))))


class Then(nn.Module):
    """A function of the int8 tensor that a layer returns, in the user's own forward."""

    def __init__(self, function: Callable[[Tensor], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.function = layer or nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


def static(model: nn.Module, *inputs: Tensor, qconfig: Any = None, engine: str = "x86",
           before: Callable[[nn.Module], nn.Module] = lambda model: model) -> nn.Module:
    """Quantize eagerly after training, for an engine."""
    model = before(model.eval())
    model.qconfig = qconfig or tq.get_default_qconfig(engine)
    prepared = tq.prepare(model)
    prepared(*inputs)
    return tq.convert(prepared)


def by_fx(model: nn.Module, *inputs: Tensor, mapping: Any = None, qat: bool = False, custom: Any = None) -> nn.Module:
    """Prepare with torch.fx and calibrate."""
    prepare = quantize_fx.prepare_qat_fx if qat else quantize_fx.prepare_fx
    default = tq.get_default_qat_qconfig_mapping if qat else tq.get_default_qconfig_mapping
    prepared = prepare(model.train(qat), mapping or default("x86"), inputs, prepare_custom_config=custom)
    prepared(*inputs)
    return prepared


def check(finding: Finding | None, code: str, *words: str, module: str | None = None) -> Finding:
    """Check a finding: code, module if given, and words of message or remedy."""
    assert finding is not None, f"{code} was expected"
    assert finding.code == code, finding
    assert module in (None, finding.module), finding
    text = f"{finding.message} {finding.remedy}"
    assert [word for word in words if word not in text] == [], text
    assert "{" not in finding.message, finding.message
    assert finding.remedy, "every finding says what helps"
    return finding
