"""Weights that are computed in every call are merged exactly on a copy; what cannot be copied is shared."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from pytest_qat.case import QATCase
from pytest_qat.pipeline.plain_model import with_plain_model

X = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.flip(-1)


def _own(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def net(change: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(change(nn.Conv1d(4, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()


@pytest.mark.parametrize("change", [
    weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
    parametrizations.orthogonal, lambda layer: prune.l1_unstructured(layer, "weight", 0.3), _own,
], ids=["weight_norm", "spectral_norm", "new-weight_norm", "new-spectral_norm", "orthogonal", "pruned", "own"])
def test_a_computed_weight_is_merged_exactly_and_the_user_s_model_is_left_as_it_is(
        change: Callable[[nn.Module], nn.Module]) -> None:
    model = net(change)
    with torch.no_grad():
        before = model(X)
    model(X)  # leaves weights with a history, which no copy takes
    names = list(model.state_dict())
    made, (note,) = with_plain_model(QATCase(model=model, example_inputs=(X,)))
    assert (note.code, note.severity, note.module) == ("parametrization-merged", "note", "0")
    assert sorted(made.model.state_dict()) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    assert type(made.model[0]) is nn.Conv1d
    assert not made.model[0]._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(made.model)(X), before)
        assert torch.equal(model(X), before)
    assert list(model.state_dict()) == names


def test_a_plain_model_is_taken_as_it_is() -> None:
    case = QATCase(model=net(), example_inputs=(X,))
    assert with_plain_model(case) == (case, ())


def test_a_tensor_with_a_history_and_a_lock_do_not_forbid_copies() -> None:
    model = net()
    model.last, model.lock = model[0].weight * 2, threading.Lock()
    made, notes = with_plain_model(QATCase(model=model, example_inputs=(X,)))
    twice = copy.deepcopy(copy.deepcopy(made.model))
    assert notes == ()
    assert twice.lock is model.lock
    assert not twice.last.requires_grad
    assert torch.equal(twice(X), model(X))
