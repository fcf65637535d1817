"""What a model returns, taken apart into tensors and put together again, also out of objects that torch does not know.

torch.export knows tuples, dicts and registered classes. Anything else, such as the key-value cache of a transformer
or a plain dataclass, is taken apart by pickling it with its tensors left out.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding

__all__ = ["OutputForm", "flatten_outputs", "has_unknown", "tensors_in"]

_PLAIN = (Tensor, int, float, str, type(None))


class OutputForm:
    """The structure around the tensors of an output, and everything in it that is no tensor.

    Attributes:
        single: Whether the output is a lone tensor.

    Args:
        output: An output of one call.

    Raises:
        CheckFailed: it holds an object that cannot be taken apart.
    """

    def __init__(self, output: Any) -> None:
        leaves, self._structure = pytree.tree_flatten(output)
        self._makers = [_maker(leaf) for leaf in leaves]
        self.single = self._structure.is_leaf() and isinstance(output, Tensor)

    def around(self, tensors: Sequence[Tensor]) -> Any:
        """Return an output of this form with other tensors in it."""
        left = iter(tensors)
        return pytree.tree_unflatten([make(left) for make in self._makers], self._structure)


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors of an output in the order in which its form takes them."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif not isinstance(leaf, _PLAIN):
            found += _taken_apart(leaf)[1]
    return found


def has_unknown(output: Any) -> bool:
    """Whether an output holds an object that torch.export does not know."""
    return any(not isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves(output))


def flatten_outputs(model: nn.Module) -> None:
    """Let a model return its tensors in a row, in place; names of modules and arguments stay."""
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(tensors_in(original(*args, **kwargs)))

    model.forward = forward


def _maker(leaf: Any) -> Callable[[Any], Any]:
    """Return what makes a leaf out of the tensors that are left."""
    if isinstance(leaf, Tensor):
        return next
    if isinstance(leaf, _PLAIN):
        return lambda left: leaf
    try:
        shell, tensors = _taken_apart(leaf)
        _put_together(shell, tensors)
    except Exception as error:
        kind = type(leaf).__name__
        raise CheckFailed([f"the model returns {kind}, which cannot be taken apart into tensors."], findings=[Finding(
            code="opaque-output", severity="error", evidence={"type": kind, "error": type(error).__name__},
            message=f"the tensors inside {kind} would be lost: pickling it raised {type(error).__name__}.",
            remedy="return a tuple or dict of tensors.")]) from error
    count = len(tensors)
    return lambda left: _put_together(shell, [next(left) for _ in range(count)])


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        """Keep a tensor apart."""
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        """Put a tensor in its place."""
        index: int = pid
        return self._tensors[index]


def _taken_apart(value: Any) -> tuple[bytes, list[Tensor]]:
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.dump(value)
    return content.getvalue(), pickler.tensors


def _put_together(shell: bytes, tensors: Sequence[Tensor]) -> Any:
    return _Unpickler(io.BytesIO(shell), tensors).load()
