"""Which ops of a call matter to its outputs, from what each of them read and wrote.

A layer whose result nobody reads, such as the pooler of a BERT whose hidden states are taken, runs in eager mode and is
dropped by every compiler. Storages are followed, not tensors, so that views and writes in place are seen. Where a value
comes from or goes to where no op can be seen (`.item()`, numpy, Python's lists), everything is taken to matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import opened

__all__ = ["Dataflow", "tensors_in"]


class Dataflow:
    """The ops of one call, each with those whose results it reads.

    Args:
        given: The tensors that exist before the call: of the model and of its inputs.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        self._given = {_storage(tensor) for tensor in given}
        self._writers: dict[Any, int] = {}
        self._read: list[tuple[int, ...]] = []
        self._kept: set[int] = set()
        self._traceable = True

    def note(self, func: Any, args: Any, kwargs: Any, made: Any) -> int:
        """Note an op that ran, and return its number."""
        index = len(self._read)
        read = [_storage(tensor) for tensor in tensors_in((args, kwargs))]
        self._read.append(tuple({self._writers[each] for each in read if each in self._writers}))
        self._traceable &= all(map(self._is_known, read))
        results, written = [_storage(tensor) for tensor in tensors_in(made)], _written(func, args, kwargs)
        if not results or _shape_tells(func) or any(each in self._given for each in written):
            self._kept.add(index)
        for each in (*results, *written):
            self._writers[each] = index
        return index

    def matter(self, outputs: Any) -> frozenset[int]:
        """Return the numbers of the ops that the outputs depend on, and of those that change what was given."""
        leaves = pytree.tree_leaves(opened(outputs))
        ends = [_storage(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        known = all(leaf is None or isinstance(leaf, (Tensor, str, int, float)) for leaf in leaves)
        if not (known and self._traceable and all(map(self._is_known, ends))):
            return frozenset(range(len(self._read)))
        found, waiting = set[int](), [*self._kept, *(self._writers[each] for each in ends if each in self._writers)]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting.extend(self._read[index])
        return frozenset(found)

    def _is_known(self, storage: Any) -> bool:
        return storage is not None and (storage in self._writers or storage in self._given)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in the arguments or results of an op."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in tensors_in(part)]


def _storage(tensor: Tensor) -> StorageWeakRef | None:
    """Return a key for what a tensor stores, its own even when the tensor is gone; None: it has no storage to tell."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # sparse ones, and wrappers of torch.func
        return None


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found = []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [_storage(tensor) for tensor in tensors_in(value)]
    return found


def _shape_tells(func: Any) -> bool:
    """Return whether the shape of the result depends on values, so that Python code may act on it."""
    return torch.Tag.dynamic_output_shape in getattr(func, "tags", ())
