"""A model that nobody has trained, told by its normalization layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.measure.untrained import untrained_norms, why_random


class RMSNorm(nn.Module):
    """As language models write it; `start` is 0 where the forward adds 1."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def net(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())


def stepped(model: nn.Sequential) -> nn.Sequential:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.randn(4, 3, 6, 6)) ** 2).mean().backward()
        optimizer.step()
    return model


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8), "group": lambda: nn.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True), "layer": lambda: nn.LayerNorm((8, 4, 4)),
    "statistics alone": lambda: nn.BatchNorm2d(8, affine=False), "zero gamma": lambda: zeroed(nn.BatchNorm2d(8)),
}


def zeroed(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.zeros_(norm.weight)
    return norm


@pytest.mark.parametrize("name", MAKERS)
def test_a_new_norm_is_told_from_a_trained_one(name: str) -> None:
    assert untrained_norms(net(MAKERS[name]())) == 1
    assert untrained_norms(stepped(net(MAKERS[name]()))) == 0


def test_batch_norm_that_has_seen_data_counts_as_trained() -> None:
    model = net(nn.BatchNorm2d(8))
    model(torch.randn(4, 3, 6, 6))
    assert untrained_norms(model) == 0


def test_one_trained_norm_of_several_is_enough() -> None:
    assert untrained_norms(nn.Sequential(net(nn.BatchNorm2d(8)), stepped(net(nn.BatchNorm2d(8))))) == 0


def test_a_layer_of_the_users_counts_by_its_name() -> None:
    assert untrained_norms(nn.Sequential(RMSNorm(8, 0.0), RMSNorm(8, 1.0))) == 2


def test_how_it_is_known_is_a_clause() -> None:
    one = net(nn.BatchNorm2d(8))
    assert why_random(one) == "its normalization layer still holds the values that a new layer starts from"
    assert why_random(nn.Sequential(one, net(nn.BatchNorm2d(8)))).startswith("its 2 normalization layers still hold ")
    assert why_random(stepped(one)) == ""


def test_without_a_norm_nothing_is_known() -> None:
    assert untrained_norms(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False))) == 0


@pytest.mark.parametrize(("value", "count"), [(1.0, 1), (0.0, 1), (0.73, 0)])
def test_a_single_channel_is_new_only_at_one_or_zero(value: float, count: int) -> None:
    norm = nn.BatchNorm1d(1)
    nn.init.constant_(norm.weight, value)
    assert untrained_norms(norm) == count
