"""The form of a call: which of its arguments are tensors, what the others are, and how a result is nested.

A graph of torch.fx takes tensors one by one. What a user passes (lists, dicts, keywords, flags, None) is taken apart
before the graph and put together behind it; flags are part of the graph, so a call with others does not fit it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["CallForm", "Nested", "NotPlain", "form_of"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout,
          torch.memory_format, torch.Size, Enum, slice, range)


class NotPlain(Exception):
    """An argument or a result holds an object that a graph can neither take nor keep."""


@dataclass(frozen=True, slots=True)
class Nested:
    """How tensors are nested between other values.

    Attributes:
        spec: The nesting.
        others: What is no tensor, by its position among the leaves.
        size: Number of leaves.
    """

    spec: pytree.TreeSpec
    others: tuple[tuple[int, Any], ...]
    size: int

    def __deepcopy__(self, memo: dict[int, Any]) -> Nested:
        return self

    def filled(self, tensors: Sequence[Any]) -> Any:
        """Return the nested value with these tensors."""
        others = dict(self.others)
        rest = iter(tensors)
        return pytree.tree_unflatten(
            [others[index] if index in others else next(rest) for index in range(self.size)], self.spec)

    def fits(self, other: Nested) -> bool:
        """Whether another value differs from this in its tensors only."""
        return (self.size == other.size and self.spec == other.spec
                and [index for index, _ in self.others] == [index for index, _ in other.others]
                and all(type(one) is type(two) and bool(one == two)
                        for (_, one), (_, two) in zip(self.others, other.others, strict=True)))


@dataclass(frozen=True, slots=True)
class CallForm:
    """The form of the arguments of one call, whether they came by position, by keyword or by default.

    Attributes:
        signature: Of the function that is called, without `self`.
        nested: How the bound arguments are nested.
    """

    signature: inspect.Signature
    nested: Nested

    def __deepcopy__(self, memo: dict[int, Any]) -> CallForm:
        return self

    def tensors_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Return the tensors of a call in order, or None if it has another form."""
        bound = _bound(self.signature, args, kwargs)
        tensors, nested = taken_apart(bound)
        return tensors if self.nested.fits(nested) else None

    def call(self, function: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """Call a function in this form with other tensors."""
        bound = inspect.BoundArguments(self.signature, self.nested.filled(tensors))
        return function(*bound.args, **bound.kwargs)


def form_of(function: Callable[..., Any], args: tuple[Any, ...],
            kwargs: dict[str, Any]) -> tuple[CallForm, list[Tensor]]:
    """Return the form of a call and its tensors.

    Raises:
        NotPlain: an argument is neither a tensor nor a constant, nor a container of these.
    """
    signature = inspect.signature(function)
    tensors, nested = taken_apart(_bound(signature, args, kwargs))
    return CallForm(signature, nested), tensors


def taken_apart(value: Any, *, tensor: type = Tensor) -> tuple[list[Any], Nested]:
    """Return the tensors in a nested value, and how they are nested.

    Args:
        value: Any nested value.
        tensor: Class of what counts as a tensor: a proxy's while a graph is traced.

    Raises:
        NotPlain: it holds an object of another kind.
    """
    leaves, spec = pytree.tree_flatten(value)
    others = tuple((index, leaf) for index, leaf in enumerate(leaves) if not isinstance(leaf, tensor))
    strange = [leaf for _, leaf in others if not isinstance(leaf, _PLAIN)]
    if strange:
        raise NotPlain(f"a {type(strange[0]).__name__} is neither a tensor nor a constant")
    return [leaf for leaf in leaves if isinstance(leaf, tensor)], Nested(spec, others, len(leaves))


def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
