"""What batches hold, joined along the batch dimension, whatever the structure, so that samples can be drawn from it.

Tensors are joined along the first dimension that has a row for each sample in every batch (the second where the first
is time). What differs in shape from batch to batch, and lists with one entry a sample, become one list of the samples.
What has no entry for each sample, such as an auxiliary loss, becomes a list of the batches' values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Take", "joined", "on_cpu", "row_count", "size_bytes"]

Take = Callable[[Tensor], Any]
"""Returns what the samples with these indices have, in this order; shape of the indices: `(N,)`, int64."""
_MOST_BATCH_DIMENSIONS = 2
_TENSOR_KINDS = "biuf"


def joined(values: Sequence[Any], counts: Sequence[int]) -> Take:
    """Join one value of every batch.

    Args:
        values: The value in each batch: tensors, arrays, or lists, tuples, mappings and plain objects of such.
        counts: Number of samples in each batch.
    """
    first = values[0]
    alike = all(type(value) is type(first) for value in values)
    join = next((join for kinds, join in _JOINS if isinstance(first, kinds)), None) if alike else _listed
    if join is None:
        join = _objects if _holds_tensors(first) else _listed
    return join(values, counts)


def _nothing(values: Sequence[Any], counts: Sequence[int]) -> Take:
    return lambda index: None


def _arrays(values: Sequence[Any], counts: Sequence[int]) -> Take:
    take = joined([torch.from_numpy(value) if value.dtype.kind in _TENSOR_KINDS else value.tolist()
                   for value in values], counts)

    def rows(index: Tensor) -> Any:
        found = take(index)
        return found.numpy() if isinstance(found, Tensor) else found

    return rows


def _mappings(values: Sequence[Any], counts: Sequence[int]) -> Take:
    first = values[0]
    if any(value.keys() != first.keys() for value in values):
        return _listed(values, counts)
    parts = {key: joined([value[key] for value in values], counts) for key in first}
    return lambda index: _filled(first, {key: take(index) for key, take in parts.items()})


def _objects(values: Sequence[Any], counts: Sequence[int]) -> Take:
    first = values[0]
    parts = {name: joined([getattr(value, name, None) for value in values], counts) for name in vars(first)}
    return lambda index: _with_attributes(first, {name: take(index) for name, take in parts.items()})


def _tensors(values: Sequence[Tensor], counts: Sequence[int]) -> Take:
    dim = next((dim for dim in range(_MOST_BATCH_DIMENSIONS) if all(
        value.dim() > dim and value.shape[dim] == count for value, count in zip(values, counts, strict=True))), None)
    if dim is None:
        return _listed(values, counts)
    if len({(*value.shape[:dim], *value.shape[dim + 1:]) for value in values}) == 1:
        whole = torch.cat(list(values), dim=dim)
        return lambda index: whole.index_select(dim, index)
    return _picked([row for value in values for row in value.unbind(dim)])


def _sequences(values: Sequence[Any], counts: Sequence[int]) -> Take:
    """Join lists or tuples: of one entry a sample, or of parts that each have all samples."""
    first = values[0]
    a_sample_each = all(len(value) == count for value, count in zip(values, counts, strict=True))
    if a_sample_each and not all(_has_all(part, count) for value, count in zip(values, counts, strict=True)
                                 for part in value):
        return _picked([entry for value in values for entry in value])
    if len({len(value) for value in values}) > 1:
        return _listed(values, counts)
    parts = [joined(part, counts) for part in zip(*values, strict=True)]
    if hasattr(first, "_fields"):  # a named tuple
        return lambda index: type(first)(*(take(index) for take in parts))
    return lambda index: type(first)(take(index) for take in parts)


def _has_all(part: Any, count: int) -> bool:
    """Whether every tensor in a value has a row for each of the samples, and there is one."""
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        return bool(part) and all(_has_all(inner, count) for inner in part)
    return row_count(part) == count


def _listed(values: Sequence[Any], counts: Sequence[int]) -> Take:
    """Return a list of one value a batch, which is one a sample where batches have one; else it stays as it is."""
    if all(count == 1 for count in counts):
        return _picked(list(values))
    return lambda index: list(values)


def _picked(entries: list[Any]) -> Take:
    return lambda index: [entries[place] for place in index.tolist()]


def _filled(like: Any, parts: dict[Any, Any]) -> Any:
    """Return a mapping of the same kind with other values; some kinds show their keys as attributes, too."""
    if type(like) is dict:
        return parts
    try:
        made = copy.copy(like)
        for key, value in parts.items():
            made[key] = value
    except Exception:  # one that cannot be written to
        return parts
    return made


def _holds_tensors(value: Any) -> bool:
    return hasattr(value, "__dict__") and any(isinstance(part, (Tensor, list, tuple, Mapping))
                                              for part in vars(value).values())


def _with_attributes(like: Any, parts: dict[str, Any]) -> Any:
    made = copy.copy(like)
    for name, value in parts.items():
        object.__setattr__(made, name, value)  # also of a frozen dataclass
    return made


_JOINS: tuple[tuple[type | tuple[type, ...], Callable[[Sequence[Any], Sequence[int]], Take]], ...] = (
    (Tensor, _tensors), (np.ndarray, _arrays), ((list, tuple), _sequences), (Mapping, _mappings),
    (type(None), _nothing))


def row_count(value: Any) -> int | None:
    """Return the number of rows of a tensor or array; None of anything else."""
    return int(value.shape[0]) if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0 else None


def on_cpu(value: Any) -> Any:
    """Return a nested value with its tensors detached, on the CPU, and not quantized."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return plain.dequantize() if plain.is_quantized else plain
    if isinstance(value, Mapping):
        return _filled(value, {key: on_cpu(part) for key, part in value.items()})
    if isinstance(value, (list, tuple)):
        parts = [on_cpu(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, type) and _holds_tensors(value):
        return _with_attributes(value, {name: on_cpu(part) for name, part in vars(value).items()})
    return value


def size_bytes(value: Any) -> int:
    """Return the bytes of the tensors and arrays in a nested value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(size_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size_bytes, value))
    return sum(map(size_bytes, vars(value).values())) if _holds_tensors(value) else 0
