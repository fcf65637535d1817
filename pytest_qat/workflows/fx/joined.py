"""Concatenation in int8: torch's kernel gives its result the scale of its first input, and clips the others to it.

So all inputs need one scale. torch.ao lets them share an observer, but one concatenation after the other: a tensor
that two of them read keeps the observer of the last, and a layer before an upsampling or a slice keeps its own. And a
function such as sigmoid, whose kernel has a fixed scale, imposes that on whatever it is concatenated with.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.ao.quantization as tq
import torch.ao.quantization.backend_config.utils  # torch reads it as an attribute, unimported
from torch import Tensor, nn
from torch.ao.quantization import FixedQParamsFakeQuantize
from torch.ao.quantization.backend_config import ObservationType, get_native_backend_config
from torch.ao.quantization.backend_config.backend_config import BackendPatternConfig
from torch.ao.quantization.fake_quantize import FakeQuantizeBase
from torch.fx import GraphModule, Interpreter, Node

from pytest_qat.core.batches import copied
from pytest_qat.workflows.observers import switch_fake_quantize, switch_observers

__all__ = ["share_ranges"]

_JOINS = (torch.cat, torch.stack)
_ALIKE = 4.0
"""Ranges up to this ratio share a scale, which costs the narrower one two bits; others are rounded again instead."""


def share_ranges(prepared: GraphModule, inputs: Sequence[Any]) -> None:
    """Give the inputs of each concatenation, and its result, one fake-quantizer, in place.

    A tensor that has other readers, too, and a far narrower range than the result is not brought to the scale of the
    result; a copy of it is, in front of the concatenation.

    Args:
        prepared: A graph with fake-quantizers, not yet calibrated.
        inputs: What its placeholders take; tensors are copied.
    """
    joins = [node for node in prepared.graph.nodes if node.target in _JOINS and _observed_inputs(node, prepared)
             and len(node.users) == 1 and _is_quantizer(next(iter(node.users)), prepared)]
    if not joins:
        return
    scales = _Scales(prepared, _extents(prepared, inputs))
    for join in joins:
        scales.add(join)
    scales.assign()
    prepared.recompile()


@dataclass(slots=True, eq=False)
class _Scale:
    """Fake-quantizers, as nodes, whose tensors have one scale.

    Attributes:
        nodes: The fake-quantizers.
        joined: Whether a concatenation reads or makes one of them.
        fixed: Whether a kernel computes one of them at a scale that cannot be chosen.
    """

    nodes: list[Node]
    joined: bool = False
    fixed: bool = False


@dataclass(slots=True)
class _Scales:
    """All fake-quantizers of activations in a graph by the scale that their tensors have."""

    module: GraphModule
    extents: dict[Node, float]
    of: dict[Node, _Scale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.module.graph.nodes:
            if not _is_quantizer(node, self.module):
                continue
            value = node.args[0]
            self.of[node] = _Scale([node], fixed=_pattern(value, self.module) in _patterns(_fixes))
            if value.target not in _JOINS and _keeps_scale(value, self.module):
                for source in _observed_inputs(value, self.module)[:1]:
                    self.merge(self.of[node], self.of[source])

    def merge(self, one: _Scale, other: _Scale) -> None:
        """Let two scales be the same."""
        if one is not other:
            one.nodes += other.nodes
            one.joined |= other.joined
            one.fixed |= other.fixed
            self.of.update(dict.fromkeys(other.nodes, one))

    def add(self, join: Node) -> None:
        """Bring a concatenation to one scale."""
        result = self.of[next(iter(join.users))]
        result.joined = True
        for source in _observed_inputs(join, self.module):
            scale = self.of[source]
            scale.joined = True
            if self.may_share(scale, result, join):
                self.merge(result, scale)
            else:
                self.round_again(source, join, result)

    def may_share(self, scale: _Scale, result: _Scale, join: Node) -> bool:
        """Whether an input of a concatenation is itself brought to the scale of the result."""
        if scale is result or scale.fixed:
            return scale is result
        extents = [max(self.extents.get(node, 0.0) for node in each.nodes) for each in (scale, result)]
        return max(extents) <= _ALIKE * min(extents) or not self.others_read(scale, join)

    def others_read(self, scale: _Scale, join: Node) -> bool:
        """Whether anything but a concatenation reads tensors of a scale, apart from what hands them on at it."""
        return any(user is not join and not any(each in scale.nodes for each in user.users)
                   for node in scale.nodes for user in node.users)

    def round_again(self, source: Node, join: Node, result: _Scale) -> None:
        """Put a fake-quantizer of the result's scale between an input and a concatenation."""
        name = f"{source.name}_for_{join.name}"
        self.module.add_submodule(name, self.module.get_submodule(str(source.target)))
        with self.module.graph.inserting_before(join):
            added = self.module.graph.call_module(name, (source,))
        join.replace_input_with(source, added)
        self.of[added] = _Scale([added])
        self.extents[added] = self.extents.get(source, 0.0)
        self.merge(result, self.of[added])

    def assign(self) -> None:
        """Give each scale that a concatenation is concerned with a fake-quantizer of its own."""
        free = next(each for each in map(self.quantizer, self.of) if not isinstance(each, FixedQParamsFakeQuantize))
        taken = {id(self.quantizer(node)) for node, scale in self.of.items() if not scale.joined}
        for scale in {id(each): each for each in self.of.values() if each.joined}.values():
            chosen = self.quantizer_of(scale) or free
            if id(chosen) in taken:
                chosen = copy.deepcopy(chosen)
            taken.add(id(chosen))
            for node in scale.nodes:
                self.module.set_submodule(str(node.target), chosen)

    def quantizer_of(self, scale: _Scale) -> nn.Module | None:
        """Return a fake-quantizer for a scale; None if those that it has belong to a fixed scale, and it does not."""
        if scale.fixed:
            patterns = [_pattern(value, self.module) for node in scale.nodes for value in node.all_input_nodes]
            return _fixed_quantizer(next(pattern for pattern in patterns if pattern in _patterns(_fixes)))
        return next((each for each in map(self.quantizer, scale.nodes)
                     if not isinstance(each, FixedQParamsFakeQuantize)), None)

    def quantizer(self, node: Node) -> nn.Module:
        """Return the fake-quantizer that a node calls."""
        return self.module.get_submodule(str(node.target))


class _Watcher(Interpreter):
    """Notes the greatest magnitude that each fake-quantizer sees."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.extents: dict[Node, float] = {}

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        if isinstance(made, Tensor) and made.numel() and n.op == "call_module":
            self.extents[n] = made.abs().max().item()
        return made


def _extents(prepared: GraphModule, inputs: Sequence[Any]) -> dict[Node, float]:
    """Return the greatest magnitude of each module's output, by node, with nothing rounded and nothing observed."""
    plain = copy.deepcopy(prepared).eval()
    switch_observers(plain, on=False)
    switch_fake_quantize(plain, on=False)
    watcher = _Watcher(plain)
    with torch.no_grad():
        watcher.run(*copied(tuple(inputs)))
    by_name = {node.name: extent for node, extent in watcher.extents.items()}
    return {node: by_name[node.name] for node in prepared.graph.nodes if node.name in by_name}


def _observed_inputs(node: Node, module: GraphModule) -> list[Node]:
    """Return the fake-quantizers of a node's inputs, if all its tensors have one."""
    found = node.all_input_nodes
    return found if all(_is_quantizer(each, module) for each in found) else []


def _is_quantizer(node: Node, module: GraphModule) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), FakeQuantizeBase)


def _pattern(node: Node, module: GraphModule) -> Any:
    """Return what torch.ao knows an operation by: a class, a function, or the name of a method."""
    return type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _keeps_scale(node: Node, module: GraphModule) -> bool:
    return node.target is operator.getitem or _pattern(node, module) in _patterns(_shares)


def _shares(config: BackendPatternConfig) -> bool:
    return bool(config.observation_type == ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)


def _fixes(config: BackendPatternConfig) -> bool:
    return any(each.output_dtype_with_constraints.scale_exact_match is not None for each in config.dtype_configs)


@cache
def _patterns(wanted: Callable[[BackendPatternConfig], bool]) -> dict[Any, BackendPatternConfig]:
    """Return the operations of torch.ao's own table of which something holds."""
    return {config.pattern: config for config in get_native_backend_config().configs
            if config.pattern is not None and wanted(config)}


def _fixed_quantizer(pattern: Any) -> nn.Module:
    """Return the fake-quantizer of a kernel with a fixed scale."""
    zero_point = next(each.output_dtype_with_constraints.zero_point_exact_match
                      for each in _patterns(_fixes)[pattern].dtype_configs)
    made: nn.Module = (tq.default_fixed_qparams_range_0to1_fake_quant if zero_point == 0
                       else tq.default_fixed_qparams_range_neg1to1_fake_quant)()
    return made
