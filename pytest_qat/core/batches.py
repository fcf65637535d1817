"""Call a model on a batch and read its outputs, whatever their structure.

Inputs: a tensor is one argument, a tuple or list the positional ones, a mapping the keywords. Outputs may be a
tensor, or tensors in tuples, lists, dicts and dataclass-like containers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.errors import DataError

__all__ = [
    "NAMES_OF_CLASSES",
    "call",
    "classify",
    "copied",
    "enough",
    "float_tensors",
    "in_parts",
    "labeled",
    "move",
    "named_float_tensors",
    "opened",
    "same_values",
    "sample_count",
    "to_channels_last",
    "unlike",
    "with_batch",
]


NAMES_OF_CLASSES = ("logit", "score", "prob", "class", "cls")
"""Parts of the names of outputs that are scores of classes."""


def call(model: nn.Module, inputs: Any) -> Any:
    """Call `model` on the inputs of one batch."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def float_tensors(value: Any) -> list[Tensor]:
    """Return every floating-point tensor in a nested value, in order; quantized ones are dequantized."""
    return list(named_float_tensors(value).values())


def named_float_tensors(value: Any) -> dict[str, Tensor]:
    """Return the same tensors by their path in the value, such as `['scores']` or `[1]`; a lone tensor's is ""."""
    leaves = {pytree.keystr(place): leaf.dequantize() if leaf.is_quantized else leaf
              for place, leaf in pytree.tree_flatten_with_path(opened(value))[0] if isinstance(leaf, Tensor)}
    return {place: leaf for place, leaf in leaves.items() if leaf.is_floating_point()}


def opened(value: Any) -> Any:
    """Return outputs as torch's trees know them: dataclasses and a library's own containers as dicts."""
    if hasattr(value, "__dict__") and not isinstance(value, (Tensor, Mapping, tuple, list)):
        value = vars(value)
    return dict(value) if isinstance(value, Mapping) else value


def classify(output: Any, *, source: str, target: Any = None) -> tuple[str, Tensor]:
    """Return the path and the logits of an output, shape `(N, classes, ...)`.

    The logits are the first tensor with at least two classes, and of the shape that the target implies if there is
    one. If such tensors differ in their number of classes, the names decide (`logits`, `scores`).

    Raises:
        DataError: the output has no such tensor, or several that their names do not distinguish.
    """
    named = {place: tensor for place, tensor in named_float_tensors(output).items()
             if tensor.dim() >= 2 and tensor.shape[1] >= 2}
    if isinstance(target, Tensor):
        named = {place: tensor for place, tensor in named.items()
                 if (tensor.shape[0], *tensor.shape[2:]) == target.shape} or named
    if not named:
        seen = [tuple(tensor.shape) for tensor in float_tensors(output)] or type(output).__name__
        raise DataError(
            f"{source} needs an output of shape (N, classes), but the model returned {seen}.",
            hint="Give metric=, a function (output, target) -> one score per sample.")
    if len({tensor.shape[1] for tensor in named.values()}) > 1:
        by_name = {place: tensor for place, tensor in named.items()
                   if any(word in place.lower() for word in NAMES_OF_CLASSES)}
        if len({tensor.shape[1] for tensor in by_name.values()}) != 1:
            choice = ", ".join(f"{place} {tuple(tensor.shape)}" for place, tensor in named.items())
            raise DataError(
                f"{source} cannot tell which of the model's outputs are the class scores: {choice}.",
                hint="Give metric=, a function (output, target) -> one score per sample, or name the output logits.")
        named = by_name
    return next(iter(named.items()))


def sample_count(inputs: Any) -> int:
    """Return the number of samples of a batch: the first dimension of its first tensor."""
    for leaf in pytree.tree_leaves(inputs if not isinstance(inputs, Mapping) else dict(inputs)):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    return 1


def unlike(inputs: Any, example: Any) -> str | None:
    """Return how a batch differs from an example in shapes (except the batch size) or dtypes; None if it does not."""
    given, wanted = ([leaf for leaf in pytree.tree_leaves(dict(value) if isinstance(value, Mapping) else value)
                      if isinstance(leaf, Tensor)] for value in (inputs, example))

    def kinds(leaves: list[Tensor]) -> list[tuple[tuple[int, ...], str]]:
        return sorted((tuple(leaf.shape[1:]), str(leaf.dtype)) for leaf in leaves)  # keywords may come in any order

    def listed(leaves: list[Tensor]) -> str:
        return ", ".join(f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}" for leaf in leaves) or "none"

    return None if kinds(given) == kinds(wanted) else f"tensors {listed(given)}, example_inputs {listed(wanted)}"


def with_batch(inputs: Any, size: int) -> Any:
    """Return a batch of `size` samples: those of `inputs`, repeated or cut off.

    Only tensors whose first dimension is the batch size are changed.
    """
    samples = sample_count(inputs)
    if samples == 0:
        return inputs

    def resized(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != samples:
            return tensor
        index = torch.arange(size, device=tensor.device) % samples
        return tensor[index]

    return pytree.tree_map_only(Tensor, resized, dict(inputs) if (
        isinstance(inputs, Mapping) and not isinstance(inputs, dict)) else inputs)


def copied(value: Any) -> Any:
    """Return a nested value with copies of its tensors, which are leaves: one with a history does not copy."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)


def move(value: Any, device: torch.device | str) -> Any:
    """Return a nested value with its tensors on `device`."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, on any devices; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    other = other.to(one.device)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def to_channels_last(value: Any) -> Any:
    """Return a nested value with its 4-D tensors in channels_last layout."""
    def convert(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
    return pytree.tree_map_only(Tensor, convert, value)


def enough(inputs: Iterable[Any], *, batches: int, samples: int) -> list[Any]:
    """Return the first batches, as many as hold so many samples, and at most so many batches."""
    found: list[Any] = []
    held = 0
    for each in itertools.islice(inputs, batches):
        found.append(each)
        held += sample_count(each)
        if held >= samples:
            break
    return found


def labeled(data: Iterable[Any], *, field: str) -> Iterator[tuple[Any, Any]]:
    """Yield `(inputs, target)` of every batch.

    Raises:
        DataError: a batch is not such a pair.
    """
    for index, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            seen = f"a tensor of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else (
                f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__)
            raise DataError(f"batch {index} of {field} is {seen}, expected a pair (inputs, target).",
                            hint=f"Make {field} yield (inputs, target); inputs may be a tuple or a dict.")
        yield batch[0], batch[1]


def in_parts(run: Callable[[Any], Any], inputs: Any, *, size: int,
             whole: Collection[tuple[int, ...]] = ()) -> Any:
    """Return the outputs for a batch of any size from calls on parts of one size.

    The last part is padded with copies of its first sample, whose outputs are dropped.

    Args:
        run: Calls the model.
        inputs: The batch.
        size: The one batch size that it accepts.
        whole: Shapes of inputs that are not split, such as a table that has as many rows as the batch has samples.

    Raises:
        DataError: an output depends on the samples, but has no row for each of them.
    """
    samples = sample_count(inputs)
    parts = [run(_part(inputs, start, size, samples, whole)) for start in range(0, samples, size)]
    leaves, spec = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    joined = [_joined(values, size, samples) for values in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(joined, spec[0])


def _part(inputs: Any, start: int, size: int, samples: int, whole: Collection[tuple[int, ...]]) -> Any:
    index = torch.arange(start, start + size)
    index[index >= samples] = start

    def cut(leaf: Tensor) -> Tensor:
        batched = leaf.dim() > 0 and leaf.shape[0] == samples and tuple(leaf.shape) not in whole
        return leaf[index] if batched else leaf

    return pytree.tree_map_only(Tensor, cut, inputs if not hasattr(inputs, "items") else dict(inputs))


def _joined(values: tuple[Any, ...], size: int, samples: int) -> Any:
    """Join one output of all parts: one or more rows per sample, or a value that does not depend on the samples."""
    first = values[0]
    if not isinstance(first, Tensor) or first.dim() == 0:
        return first
    if first.shape[0] == size:
        return torch.cat(values)[:samples]
    if all(torch.equal(first, value) for value in values[1:]):
        return first
    if first.shape[0] % size:
        raise DataError(
            f"an output of shape {tuple(first.shape)} for a batch of {size} has no row for each sample, so a batch of "
            f"{samples} cannot be split into batches of {size}, the only size that the model accepts.",
            hint=f"Give batches of {size}, or return one row per sample.")
    return torch.cat(values)[:samples * (first.shape[0] // size)]
