"""Spare torchao the export of patterns that a model cannot match, and of those that it has exported before.

To fuse and fold Conv-BatchNorm, torchao exports 12 patterns at prepare and 96 at convert, for convolutions of one and
two dimensions, transposed or not, whatever the model has. An export takes a quarter of a second, so this was most of
the time that the PT2E workflow took. The patterns that are left, and what becomes of the model, stay the same.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torchao.quantization.pt2e import qat_utils

__all__ = ["spared_patterns"]

_HELPERS = ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper")
_EXPORT = "_get_aten_graph_module_for_pattern"


@contextlib.contextmanager
def spared_patterns() -> Iterator[None]:
    """Let torchao look for the convolutions that a model has, with patterns that are exported once a process.

    Where a release of torchao has other internals, they work as they do.
    """
    names = (*_HELPERS, _EXPORT)
    before = {name: getattr(qat_utils, name) for name in names if hasattr(qat_utils, name)}
    try:
        for name, function in before.items():
            setattr(qat_utils, name, _remembered(function) if name == _EXPORT else _where_needed(function))
        yield
    finally:
        for name, function in before.items():
            setattr(qat_utils, name, function)


def _where_needed(helper: Callable[..., GraphModule]) -> Callable[..., GraphModule]:
    def look_for(model: GraphModule, conv_fn: Callable[..., Tensor], *rest: Any, **options: Any) -> GraphModule:
        if not any(str(node.target).startswith(f"aten.{conv_fn.__name__}.") for node in model.graph.nodes):
            return model
        return helper(model, conv_fn, *rest, **options)

    return look_for


def _remembered(export: Callable[..., GraphModule]) -> Callable[..., GraphModule]:
    def exported(pattern: Any, *args: Any, **options: Any) -> GraphModule:
        key = _key(pattern, args, options)
        if key is None:
            return export(pattern, *args, **options)
        # what replaces patterns may change them
        return copy.deepcopy(_exported_once(_Pattern(key, lambda: export(pattern, *args, **options))))

    return exported


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A pattern; two are equal if their keys are."""

    key: Any
    export: Callable[[], GraphModule] = field(compare=False)


@functools.lru_cache(maxsize=256)
def _exported_once(pattern: _Pattern) -> GraphModule:
    return pattern.export()


def _key(pattern: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return what tells a pattern from others: its function, what that is closed over, and the form of its inputs."""
    function = getattr(pattern, "fn", pattern)
    closed = tuple(cell.cell_contents for cell in getattr(function, "__closure__", None) or ())
    key = (getattr(function, "__module__", None), getattr(function, "__qualname__", None), closed, _form(args),
           _form(options))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.device.type)
    if isinstance(value, (tuple, list)):
        return tuple(map(_form, value))
    if isinstance(value, dict):
        return tuple((name, _form(each)) for name, each in sorted(value.items()))
    return value
