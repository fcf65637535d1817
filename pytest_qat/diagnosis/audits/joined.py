"""Concatenation of int8 tensors: torch's kernel clips every input to the range of the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_qat.core.batches import call
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.given import Given
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.workflows.names import user_names

__all__ = ["clipped_by_concatenation"]

_HEALTHY_DB = 15.0
"""Values that are only rounded to the steps of another range agree better."""
_CLIPPED = 0.01
_IN_GRAPH = ("leave the concatenation and the layer that reads it in float: "
             "qconfig_mapping.set_object_type(torch.cat, None).set_module_name(layer, None); or build the model with "
             "this input first.")
_IN_EAGER = "concatenate with an nn.quantized.FloatFunctional of its own, which has a scale for the result."
_JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)


def clipped_by_concatenation(given: Given) -> Iterator[Finding]:
    """Yield the concatenation that clips an input most, if it makes the values of that input wrong."""
    if given.converted is None:
        return
    in_graph = any(isinstance(module, torch.fx.GraphModule) for module in given.converted.modules())
    watcher = _Watcher(remedy=_IN_GRAPH if in_graph else _IN_EAGER)
    names = user_names(given.converted)
    handles = [module.register_forward_hook(lambda _, __, made, name=name: watcher.note(made, names[name]))
               for name, module in given.converted.named_modules() if name]
    try:
        with torch.no_grad(), watcher:
            call(given.converted, given.batches[0])
    finally:
        for handle in handles:
            handle.remove()
    if watcher.worst is not None:
        yield watcher.worst


class _Watcher(TorchDispatchMode):
    """Looks at concatenations as they are called, and at which module each of their inputs comes from."""

    def __init__(self, *, remedy: str) -> None:
        super().__init__()
        self._remedy = remedy
        self.worst: Finding | None = None
        self._least_db = _HEALTHY_DB
        self._made: dict[int, tuple[Tensor, str]] = {}
        self._handed_on: dict[int, tuple[Tensor, str]] = {}

    def note(self, made: Any, name: str) -> None:
        """Remember which module made tensors; they are kept, for another one could get the id of one that is gone."""
        for leaf in pytree.tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.is_quantized:
                self._made.setdefault(id(leaf), (leaf, name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _JOINS and all(each.is_quantized for each in args[0]):
            self._look(args[0])
        made = func(*args, **(kwargs or {}))
        source = next((name for name in map(self._name, pytree.tree_leaves(args)) if name), "")
        if source and isinstance(made, Tensor) and made.is_quantized:
            self._handed_on[id(made)] = made, source
        return made

    def _name(self, value: Any) -> str:
        """Return the module that made a tensor, or the values in it; empty if there is none."""
        return self._made.get(id(value), self._handed_on.get(id(value), (None, "")))[1]

    def _look(self, inputs: list[Tensor]) -> None:
        first, *others = inputs
        if first.qscheme() != torch.per_tensor_affine:
            return
        scale, zero_point = first.q_scale(), first.q_zero_point()
        ends = torch.iinfo(torch.int8 if first.dtype == torch.qint8 else torch.uint8)
        low, high = (ends.min - zero_point) * scale, (ends.max - zero_point) * scale
        for other in others:
            values = other.dequantize()
            outside = float(((values < low - scale) | (values > high + scale)).float().mean()) if len(values) else 0.0
            level = sqnr_db(values, values.clamp(low, high))
            if outside > _CLIPPED and level < self._least_db:
                self._least_db = level
                self.worst = Finding(
                    code="clipped-by-concatenation", severity="error", module=self._name(other) or None,
                    evidence={"sqnr_db": json_number(level), "clipped": outside, "range": [low, high],
                              "values": [float(values.min()), float(values.max())]},
                    message=f"a concatenation clips {percent(outside)} of these values: they go from "
                            f"{float(values.min()):.3g} to {float(values.max()):.3g}, and the range of its first input "
                            f"from {low:.3g} to {high:.3g}. torch's int8 kernel gives the result the scale of the "
                            "first input.",
                    remedy=self._remedy)
