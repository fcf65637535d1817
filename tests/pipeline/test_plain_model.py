"""Weights that are computed in every call are merged exactly on a copy; what cannot be copied is shared."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
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


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.nf, self.scale = outputs, scale
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, x.size(-1)) @ (self.weight * self.scale)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.nf)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_the_other_way_round_are_written_as_linear_layers(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(8, 16, bias=bias), nn.ReLU(), Conv1D(16, 8)).eval()
    inputs = (torch.randn(2, 3, 8),)
    plain, notes = with_plain_model(QATCase(model=model, example_inputs=inputs))
    assert [type(layer) for layer in plain.model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [note.code for note in notes] == ["transposed-linear"]
    assert torch.allclose(plain.model(*inputs), model(*inputs), atol=1e-5)
    assert plain.model[0].nf == 16
    assert isinstance(model[0], Conv1D)
    assert {name for name, _ in plain.model.named_parameters()} == {name for name, _ in model.named_parameters()}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = Conv1D(8, 8), nn.Embedding(8, 8)
        self.table.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("model", [
    nn.Sequential(Conv1D(8, 8, scale=0.5)), nn.Sequential(nn.Linear(8, 8)), Tied(),
    nn.Sequential(type("Own", (nn.Linear,), {"forward": lambda self, x: x @ self.weight})(8, 8))],
    ids=["scaled", "linear", "tied", "subclass"])
def test_layers_that_compute_something_else_or_share_their_weights_stay(model: nn.Module) -> None:
    case = QATCase(model=model.eval(), example_inputs=(torch.randn(2, 8),))
    assert with_plain_model(case) == (case, ())
