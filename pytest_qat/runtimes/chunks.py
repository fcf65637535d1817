"""Run batches of any size through an artefact that is made for one size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.batches import sample_count
from pytest_qat.errors import DataError
from pytest_qat.runtimes.base import Deployed

__all__ = ["run_batch"]


def run_batch(deployed: Deployed, inputs: Any) -> Any:
    """Return the outputs for a batch: at once if the size fits, else in parts of the artefact's size.

    The last part is filled up with its first sample, whose further outputs are cut off again.

    Raises:
        DataError: an output depends on the samples, but has no rows of theirs.
    """
    samples = sample_count(inputs)
    size = deployed.batch
    if size is None or samples in (size, 0):
        return deployed.run(deployed.adapt(inputs))
    parts = [deployed.run(deployed.adapt(_part(inputs, start, size, samples))) for start in range(0, samples, size)]
    leaves, spec = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    joined = [_joined(values, size, samples) for values in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(joined, spec[0])


def _part(inputs: Any, start: int, size: int, samples: int) -> Any:
    index = torch.arange(start, start + size)
    index[index >= samples] = start

    def cut(leaf: Tensor) -> Tensor:
        return leaf[index] if leaf.dim() > 0 and leaf.shape[0] == samples else leaf

    return pytree.tree_map_only(Tensor, cut, inputs if not hasattr(inputs, "items") else dict(inputs))


def _joined(values: tuple[Any, ...], size: int, samples: int) -> Any:
    """Join one output of all parts: a row a sample, several rows a sample, or something that no sample changes."""
    first = values[0]
    if not isinstance(first, Tensor) or first.dim() == 0:
        return first
    if first.shape[0] == size:
        return torch.cat(values)[:samples]
    if all(torch.equal(first, value) for value in values[1:]):
        return first
    if first.shape[0] % size:
        raise DataError(
            f"an output of shape {tuple(first.shape)} for a batch of {size} cannot be told apart by samples, and the "
            f"artefact is made for {size}.", hint=f"Give batches of {size}, or return one row a sample.")
    return torch.cat(values)[:samples * (first.shape[0] // size)]
