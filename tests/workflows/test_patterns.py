"""Sparing torchao the export of patterns changes how long prepare and convert take, and nothing else."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import qat_utils

from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.finetune import calibrate
from pytest_qat.workflows import patterns, pt2e
from pytest_qat.workflows.base import PreparedModel
from tests.workflows.pt2e_models import IMAGES, XNNPACK, Block, made


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often torchao exports a pattern, by the convolution it is of."""
    patterns._exported_once.cache_clear()
    counts: Counter[str] = Counter()
    export = qat_utils._get_aten_graph_module_for_pattern

    def counted(pattern: Any, *args: Any, **options: Any) -> Any:
        closed = [cell.cell_contents for cell in pattern.fn.__closure__]
        counts[next(value.__name__ for value in closed if callable(value) and "conv" in value.__name__)] += 1
        return export(pattern, *args, **options)

    monkeypatch.setattr(qat_utils, "_get_aten_graph_module_for_pattern", counted)
    return counts


class Lines(nn.Module):
    """Convolutions of one dimension, one transposed, each with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU())
        self.second = nn.Sequential(nn.ConvTranspose1d(4, 2, 3), nn.BatchNorm1d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def both_ways(model: nn.Module, inputs: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    case = made(model, inputs)
    with preserved_torch_state(seed=0):
        fresh = pt2e.prepare(case, XNNPACK)
        calibrate(fresh.module, [inputs])
        prepared = PreparedModel(module=copy.deepcopy(fresh.module), float_modules={})
        return fresh.module, pt2e.convert(prepared, XNNPACK).module


def code_of(module: Any) -> list[str]:
    return [f"{node.op} {node.target}" for node in module.graph_module.graph.nodes]


@pytest.mark.slow
def test_only_convolutions_of_the_model_are_looked_for_and_once(exports: Counter[str]) -> None:
    both_ways(Block(), IMAGES)
    assert set(exports) == {"conv2d"}
    once = exports.total()
    both_ways(Block(), IMAGES)
    assert exports.total() == once


@pytest.mark.slow
@pytest.mark.parametrize(("make", "inputs"), [(Block, IMAGES), (Lines, torch.randn(8, 2, 12))], ids=["2d", "1d"])
def test_the_models_are_those_that_torchao_makes_by_itself(make: Any, inputs: torch.Tensor,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make()
    spared = both_ways(copy.deepcopy(model), inputs)
    monkeypatch.setattr(pt2e, "spared_patterns", contextlib.nullcontext)
    plain = both_ways(copy.deepcopy(model), inputs)
    for one, other in zip(spared, plain, strict=True):
        assert code_of(one) == code_of(other)
        assert torch.equal(one.eval()(inputs), other.eval()(inputs))
    assert not any("batch_norm" in line for line in code_of(spared[1]))


def test_torchao_is_left_as_it_was() -> None:
    names = [*patterns._HELPERS, patterns._EXPORT]
    before = [getattr(qat_utils, name) for name in names]
    with pytest.raises(ValueError, match="inside"), patterns.spared_patterns():
        assert all(getattr(qat_utils, name) is not old for name, old in zip(names, before, strict=True))
        raise ValueError("inside")
    assert [getattr(qat_utils, name) for name in names] == before


def test_a_release_with_other_names_works_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*patterns._HELPERS, patterns._EXPORT):
        monkeypatch.delattr(qat_utils, name)
    with patterns.spared_patterns():
        assert not any(hasattr(qat_utils, name) for name in patterns._HELPERS)
    assert not any(hasattr(qat_utils, name) for name in patterns._HELPERS)


def test_patterns_that_differ_in_anything_are_told_apart() -> None:
    def pattern(conv: Any, biased: bool) -> Any:
        def of(x: torch.Tensor) -> torch.Tensor:
            return conv(x) if biased else x
        return of

    x = torch.zeros(1, 1, 3)
    calls = [(pattern(torch.relu, True), x, {}), (pattern(torch.relu, False), x, {}),
             (pattern(torch.tanh, True), x, {}), (pattern(torch.relu, True), x[0], {}),
             (pattern(torch.relu, True), x.double(), {}), (pattern(torch.relu, True), x, {"scale": x})]
    keys = [patterns._key(function, ((inputs,),), options) for function, inputs, options in calls]
    assert len(set(keys)) == len(keys)
    assert keys[0] == patterns._key(pattern(torch.relu, True), ((torch.ones(1, 1, 3),),), {})
    assert patterns._key(pattern([], True), ((x,),), {}) is None
