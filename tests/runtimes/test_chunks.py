"""Batches of any size through an artifact of one size; the stand-in refuses every other size, as the real ones do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.errors import DataError
from pytest_qat.runtimes.base import Deployed
from pytest_qat.runtimes.chunks import run_batch

SIZE = 4


class Artifact:
    """Doubles its inputs, in one size, and remembers each call."""

    def __init__(self, size: int | None = SIZE) -> None:
        self.size = size
        self.calls: list[Any] = []

    def run(self, adapted: tuple[str, Any]) -> Any:
        mark, inputs = adapted
        assert mark == "adapted"
        self.calls.append(inputs)
        leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        assert self.size is None or all(len(leaf) == self.size for leaf in leaves)
        return pytree.tree_map_only(Tensor, lambda leaf: leaf * 2, inputs)

    def deployed(self) -> Deployed:
        return Deployed(
            artifact=Path("model"), size_bytes=1, tensors=(), layout="contiguous", batch=self.size, run=self.run,
            adapt=lambda inputs: ("adapted", inputs), session=contextlib.nullcontext,
            save_program=lambda inputs, target: None)


def rows(samples: int) -> Tensor:
    return torch.arange(samples * 3.0).reshape(samples, 3)


@pytest.mark.parametrize(("samples", "calls"), [(1, 1), (3, 1), (4, 1), (5, 2), (7, 2), (8, 2), (9, 3), (23, 6)])
def test_a_batch_of_any_size_is_answered_whole_and_in_order(samples: int, calls: int) -> None:
    artifact = Artifact()
    assert torch.equal(run_batch(artifact.deployed(), rows(samples)), rows(samples) * 2)
    assert len(artifact.calls) == calls


def test_a_batch_that_fits_is_passed_on_as_it_is() -> None:
    artifact, inputs = Artifact(), (rows(4), "text")
    run_batch(artifact.deployed(), inputs)
    assert artifact.calls[0] is inputs


def test_an_artifact_of_no_size_takes_every_batch_at_once() -> None:
    artifact = Artifact(size=None)
    assert len(run_batch(artifact.deployed(), rows(23))) == 23
    assert len(artifact.calls) == 1


def test_the_last_part_is_filled_up_with_its_own_first_sample() -> None:
    artifact = Artifact()
    run_batch(artifact.deployed(), rows(6))
    assert torch.equal(artifact.calls[1], rows(6)[[4, 5, 4, 4]])


@pytest.mark.parametrize("samples", [2, 4, 6])
@pytest.mark.parametrize("wrap", [
    lambda x: (x, x + 1), lambda x: [x, (x + 1, {"a": x})], lambda x: {"b": x, "a": (x + 1,)},
], ids=["tuple", "nested", "dict"])
def test_the_structure_of_the_outputs_is_kept(samples: int, wrap: Any) -> None:
    found = run_batch(Artifact().deployed(), wrap(rows(samples)))
    expected = pytree.tree_map(lambda leaf: leaf * 2, wrap(rows(samples)))
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    assert all(torch.equal(*pair) for pair in zip(
        pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))


def test_a_mapping_of_the_user_s_own_is_cut_as_a_dict() -> None:
    artifact = Artifact()
    found = run_batch(artifact.deployed(), UserDict({"b": rows(5), "a": rows(5) + 1}))
    assert list(found) == ["b", "a"]
    assert [len(leaf) for leaf in found.values()] == [5, 5]
    assert all(isinstance(part, dict) for part in artifact.calls)


def test_what_has_no_batch_side_goes_into_every_part() -> None:
    artifact, scale = Artifact(), torch.tensor(3.0)
    found = run_batch(artifact.deployed(), (rows(6), scale, "text"))
    assert all(torch.equal(part[1], scale) and part[2] == "text" for part in artifact.calls)
    assert (found[0].shape, found[1].item(), found[2]) == ((6, 3), 6.0, "text")


def test_a_table_with_as_many_rows_as_the_batch_has_samples_goes_into_every_part_whole() -> None:
    artifact, table = Artifact(size=None), torch.randn(6, 2)
    fixed = dataclasses.replace(artifact.deployed(), batch=4, shapes=frozenset({(4, 3), (6, 2)}))
    found = run_batch(fixed, (rows(6), table))
    assert all(torch.equal(part[1], table) for part in artifact.calls)
    assert found[0].shape == (6, 3)


def test_a_scalar_before_the_batch_does_not_count_as_one() -> None:
    found = run_batch(Artifact().deployed(), (torch.tensor(3.0), rows(6)))
    assert torch.equal(found[1], rows(6) * 2)


def test_the_user_s_batch_stays_as_it_is() -> None:
    inputs = rows(6)
    kept = inputs.clone()
    run_batch(Artifact().deployed(), inputs)
    assert torch.equal(inputs, kept)


def test_outputs_without_a_row_a_sample_are_joined_kept_or_refused() -> None:
    def run(adapted: tuple[str, Any]) -> dict[str, Tensor]:
        _, inputs = adapted
        return {"tokens": inputs.reshape(-1, 1), "anchors": torch.ones(7), "loss": inputs.sum()}

    artifact = Artifact()
    artifact.run = run  # type: ignore[method-assign, assignment]
    found = run_batch(artifact.deployed(), rows(10))
    assert torch.equal(found["tokens"], rows(10).reshape(-1, 1))
    assert torch.equal(found["anchors"], torch.ones(7))
    assert found["loss"].dim() == 0

    artifact.run = lambda adapted: adapted[1].sum(dim=0)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"\(3,\) for a batch of 4 has no row"):
        run_batch(artifact.deployed(), rows(10))
