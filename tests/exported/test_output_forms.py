"""Outputs are taken apart into tensors and put together again, whatever holds them."""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.errors import CheckFailed
from pytest_qat.exported.outputs import OutputForm, flatten_outputs, has_unknown, tensors_in
from pytest_qat.workflows import pt2e
from tests.workflows.pt2e_models import ROWS, XNNPACK, made

ONE, TWO = torch.ones(2), torch.zeros(3)


@dataclasses.dataclass
class Layer:
    keys: Tensor | None = None
    values: Tensor | None = None


class Cache:
    """As the key-value caches of transformers: a list of objects with tensors."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = list(layers)
        self.name = "cache"


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024 - as users write them
PLAIN = [ONE, (ONE, TWO), {"a": ONE, "b": [TWO, None, 3]}, Pair(ONE, "text"), ()]
STRANGE = [Cache(Layer(ONE, TWO), Layer()), {"logits": ONE, "cache": Cache(Layer(TWO, ONE))}, Layer(ONE, ONE)]


@pytest.mark.parametrize("output", PLAIN + STRANGE)
def test_other_tensors_take_the_places_of_the_first(output: Any) -> None:
    doubled = [tensor * 2 + 1 for tensor in tensors_in(output)]
    found = OutputForm(output).around(doubled)
    assert type(found) is type(output)
    assert all(one is other for one, other in zip(tensors_in(found), doubled, strict=True))


def test_what_is_no_tensor_stays() -> None:
    form = OutputForm({"cache": Cache(Layer(ONE)), "count": 3})
    found = form.around([TWO])
    assert (found["count"], found["cache"].name, found["cache"].layers[0].values) == (3, "cache", None)
    assert found["cache"].layers[0].keys is TWO


def test_only_unknown_objects_need_it() -> None:
    assert [has_unknown(output) for output in PLAIN] == [False] * len(PLAIN)
    assert [has_unknown(output) for output in STRANGE] == [True] * len(STRANGE)


def test_what_cannot_be_taken_apart_is_refused() -> None:
    with pytest.raises(CheckFailed) as caught:
        OutputForm((ONE, threading.Lock()))
    assert [finding.code for finding in caught.value.findings] == ["opaque-output"]


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, *, cached: bool = True) -> Any:
        hidden = self.first(x)
        return {"logits": self.last(hidden), "cache": Cache(Layer(hidden, -hidden)) if cached else None}


def test_a_flattened_model_keeps_its_names_and_arguments() -> None:
    model = Cached()
    flatten_outputs(model)
    assert len(model(ROWS)) == 3
    assert len(model(ROWS, cached=False)) == 1
    assert {name for name, _ in model.named_modules()} == {"", "first", "last"}


def test_a_prepared_and_a_converted_model_return_what_the_float_model_does() -> None:
    model = Cached()
    prepared = pt2e.prepare(made(model), XNNPACK)
    prepared.module(ROWS)
    for module in (prepared.module.eval(), pt2e.convert(prepared, XNNPACK).module):
        found = module(ROWS[:5])
        assert isinstance(found["cache"], Cache)
        assert found["cache"].layers[0].values.shape == (5, 8)
        assert (found["logits"] - model(ROWS[:5])["logits"]).abs().max() < 0.1
