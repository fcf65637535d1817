"""Computed weights become plain parameters; what the model computes in eval mode stays the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from pytest_qat.workflows.parametrizations import own_copy, with_merged_parametrizations

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Squared(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.square()


def squared(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Squared())


FORMS = {"weight_norm": weight_norm, "spectral_norm": spectral_norm, "new weight_norm": parametrizations.weight_norm,
         "new spectral_norm": parametrizations.spectral_norm, "orthogonal": parametrizations.orthogonal,
         "own": squared}


def net(form: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch about its old forms
        model = nn.Sequential(form(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2))
    model.train()(ROWS)
    return model


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_computed_weight_becomes_a_parameter_with_its_value(form: Callable[[nn.Module], nn.Module]) -> None:
    model = net(form)
    merged, findings = with_merged_parametrizations(model)
    assert [(finding.code, finding.module, finding.evidence["tensor"]) for finding in findings] == [
        ("parametrization-merged", "0", "0.weight")]
    assert type(merged[0]) is nn.Linear  # type: ignore[index]
    assert sorted(name for name, _ in merged.named_parameters()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert not list(merged.buffers())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in merged.parameters())
    assert torch.equal(merged(ROWS), model.eval()(ROWS))
    copy.deepcopy(merged)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_users_model_stays_as_it_is(form: Callable[[nn.Module], nn.Module]) -> None:
    model = net(form)
    names = [name for name, _ in model.named_parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with_merged_parametrizations(model)
    assert model.training
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_weight_that_another_layer_reads_plainly_stays_that_of_the_other_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    squared(model[0])
    expected = model(ROWS)
    merged, _ = with_merged_parametrizations(model)
    assert torch.equal(merged(ROWS), expected)


def test_two_parametrizations_of_one_module_are_both_merged() -> None:
    layer = parametrizations.weight_norm(nn.LSTM(6, 4), "weight_hh_l0")
    parametrizations.weight_norm(layer, "weight_ih_l0")
    merged, findings = with_merged_parametrizations(layer)
    assert sorted(finding.evidence["tensor"] for finding in findings) == ["weight_hh_l0", "weight_ih_l0"]
    assert torch.equal(merged(ROWS)[0], layer.eval()(ROWS)[0])


def test_plain_models_and_pruned_ones_get_no_note() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    merged, findings = with_merged_parametrizations(model)
    assert findings == ()
    assert torch.equal(merged(ROWS), model(ROWS))


def test_a_frozen_weight_stays_frozen() -> None:
    layer = squared(nn.Linear(6, 6))
    layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    merged, _ = with_merged_parametrizations(layer)
    assert not merged.weight.requires_grad  # type: ignore[union-attr]


def test_results_of_a_computation_are_copied() -> None:
    model = nn.Linear(6, 2)
    model.last = model(ROWS)  # type: ignore[assignment]
    copied = own_copy(model)
    assert torch.equal(copied.last, model.last)  # type: ignore[arg-type]
    assert copied.last is not model.last
