"""Models taken through PT2E once for all tests of it; those that change one take a copy."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.finetune import calibrate, fine_tune, untrained_copy
from pytest_qat.workflows import pt2e
from pytest_qat.workflows.base import PreparedModel
from pytest_qat.workflows.observers import switch_observers
from tests.workflows.pt2e_models import (
    IMAGES,
    INDUCTOR,
    ROWS,
    XNNPACK,
    Block,
    Mlp,
    made,
)


@pytest.fixture(scope="session", params=[XNNPACK, INDUCTOR], ids=["xnnpack", "x86-inductor"])
def mlp(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A small model, prepared only and calibrated; tests that change it take a copy."""
    with preserved_torch_state(seed=0):
        model = Mlp().train()
        before = copy.deepcopy(model.state_dict())
        case = QATCase(model=model, example_inputs=(ROWS[:1],))
        fresh = pt2e.prepare(case, request.param)
        calibrated = PreparedModel(module=copy.deepcopy(fresh.module), float_modules={})
        calibrate(calibrated.module, [ROWS])
        switch_observers(calibrated.module, on=False)
        return SimpleNamespace(case=case, model=model, before=before, recipe=request.param, fresh=fresh,
                               calibrated=calibrated, converted=pt2e.convert(calibrated, request.param).module)


@pytest.fixture(scope="session")
def block() -> SimpleNamespace:
    """A residual block through the whole way; each step takes seconds."""
    with preserved_torch_state(seed=0):
        case = made(Block(), IMAGES)
        before = copy.deepcopy(case.model.state_dict())
        fresh = pt2e.prepare(case, INDUCTOR)
        prepared = PreparedModel(module=copy.deepcopy(fresh.module), float_modules={})
        calibrate(prepared.module, [IMAGES])
        untrained = untrained_copy(prepared.module)
        trained = made(case.model, IMAGES, train_data=[(IMAGES, torch.arange(8) % 2)] * 10,
                       loss_fn=nn.functional.cross_entropy)
        done = fine_tune(prepared.module, trained)
        return SimpleNamespace(case=case, before=before, fresh=fresh.module, prepared=prepared, untrained=untrained,
                               done=done, converted=pt2e.convert(prepared, INDUCTOR).module)
