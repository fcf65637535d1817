"""Observers and fake-quantizers are switched alike, whichever package they come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn
from torchao.quantization.pt2e import fake_quantize as pt2e
from torchao.quantization.qat import IntxFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

from pytest_qat.workflows.observers import fake_quantizers, switch_fake_quantize, switch_observers

VALUES = torch.linspace(-1, 1, 7)[None]


def dynamic() -> nn.Module:
    return IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, "per_channel", is_symmetric=True))


KINDS: dict[str, Any] = {
    "torch.ao": lambda: tq.FakeQuantize(tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=15),
    "torch.ao-fused": lambda: tq.FusedMovingAvgObsFakeQuantize(quant_min=0, quant_max=15),
    "pt2e": lambda: pt2e.FakeQuantize(quant_min=0, quant_max=15),
    "pt2e-fused": lambda: pt2e.FusedMovingAvgObsFakeQuantize(quant_min=0, quant_max=15),
    "torchao": dynamic,
}
OBSERVING = [name for name in KINDS if name != "torchao"]


class Enabled(nn.Module):
    """The user's own module, with a flag of the same name."""

    enabled = True


@pytest.mark.parametrize("kind", KINDS)
def test_fake_quantize_is_switched_off_and_on(kind: str) -> None:
    model = nn.Sequential(nn.Identity(), KINDS[kind]())
    model(VALUES)
    switch_fake_quantize(model, on=False)
    assert torch.equal(model(VALUES), VALUES)
    switch_fake_quantize(model, on=True)
    assert not torch.equal(model(VALUES), VALUES)


@pytest.mark.parametrize("kind", OBSERVING)
def test_observers_are_switched_off_and_on(kind: str) -> None:
    fake = KINDS[kind]()
    model = nn.Sequential(fake)
    switch_observers(model, on=False)
    model(VALUES)
    assert torch.isinf(fake.activation_post_process.max_val)
    switch_observers(model, on=True)
    model(VALUES)
    assert float(fake.activation_post_process.max_val) == 1.0


@pytest.mark.parametrize("kind", OBSERVING)
def test_one_switch_leaves_the_other_alone(kind: str) -> None:
    fake = KINDS[kind]()
    switch_observers(fake, on=False)
    assert (int(fake.observer_enabled), int(fake.fake_quant_enabled)) == (0, 1)
    switch_observers(fake, on=True)
    switch_fake_quantize(fake, on=False)
    assert (int(fake.observer_enabled), int(fake.fake_quant_enabled)) == (1, 0)


def test_dynamic_fake_quantizers_have_nothing_to_observe_with() -> None:
    fake: Any = dynamic()
    switch_observers(fake, on=False)
    assert fake.enabled is True
    assert not torch.equal(fake(VALUES), VALUES)


def test_every_kind_is_found_by_name_and_nothing_else() -> None:
    model = nn.ModuleDict({name.replace(".", "-"): make() for name, make in KINDS.items()})
    model["own"] = Enabled()
    model["layer"] = nn.Linear(2, 2)
    assert [name for name, _ in fake_quantizers(model)] == [name.replace(".", "-") for name in KINDS]
    switch_fake_quantize(model, on=False)
    assert model["own"].enabled is True
