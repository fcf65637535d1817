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

from pytest_qat.workflows.observers import (
    fake_quantizers,
    qparams_of,
    round_as_converted,
    switch_fake_quantize,
    switch_observers,
)

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


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("end", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("kind", [kind for kind in OBSERVING if "fused" in kind])
def test_what_is_simulated_is_what_converting_reads(kind: str, end: float, symmetric: bool) -> None:
    """torch's fused kernel computes qparams of its own for symmetric codes, and where all values are zero."""
    made = type(KINDS[kind]())
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    fused, model = (nn.Sequential(made(quant_min=-128, quant_max=127, dtype=torch.qint8, qscheme=scheme))
                    for _ in range(2))
    round_as_converted(model)
    assert model.state_dict().keys() == fused.state_dict().keys()
    assert model[0].observer_enabled.dtype == fused[0].observer_enabled.dtype
    for each in (fused, model):
        each(VALUES * end * 0.5)
        each(torch.where(VALUES == 1, end, VALUES * end * 0.5))
        assert torch.equal(each[0].activation_post_process.min_val, fused[0].activation_post_process.min_val)
    assert agree(model[0])
    assert agree(fused[0]) is (not symmetric and end != 0)


def agree(quantizer: Any) -> bool:
    scale, zero_point = quantizer.calculate_qparams()
    return qparams_of(quantizer) == (scale.flatten().tolist(), zero_point.flatten().tolist())
