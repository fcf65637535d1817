"""What quantizers of others annotate is completed: what must not be observed is not, and what may stay int8 does.

The quantizer inside decides where fake-quantize goes. Around it, three mistakes are kept out of its sight: integer
arithmetic with a Python number (XNNPACKQuantizer turns the number into a float), masks of -inf or -1e9, whose range
would leave one code for all scores, and constants too small for eight bits. Found with torchao 0.18, executorch 1.5.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
)

__all__ = ["CompletedQuantizer", "constants_and_masks"]

_KEY = "quantization_annotation"
_aten = torch.ops.aten
_ARITHMETIC = (_aten.add.Tensor, _aten.add_.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.mul_.Tensor,
               _aten.cat.default)
"""What quantizers observe whatever its operands are."""
_PADS = (_aten.constant_pad_nd.default, _aten.pad.default)
_KEEPS_VALUES = (*_PADS, _aten.unsqueeze.default, _aten.squeeze.default, _aten.squeeze.dims, _aten.select.int,
                 _aten.expand.default, _aten.clone.default, _aten.contiguous.default, _aten.alias.default,
                 _aten.detach.default, _aten.flip.default, _aten.roll.default, _aten.index_select.default,
                 _aten.pixel_shuffle.default, _aten.max_pool1d.default, _aten.upsample_nearest2d.vec)
"""Ops whose results are among their operand's values, or zero; quantizers know some others."""
_MOVES_VALUES = (*_KEEPS_VALUES[len(_PADS):], _aten.view.default, _aten.reshape.default, _aten.flatten.using_ints,
                 _aten.permute.default, _aten.transpose.int, _aten.slice.Tensor, _aten.dropout.default,
                 _aten.dropout_.default)
"""Ops whose results are their operand's values."""
_FIXED = MappingProxyType({
    **dict.fromkeys((_aten.sigmoid.default, _aten.sigmoid_.default, _aten.softmax.int),
                    (1 / 256, -128)),
    **dict.fromkeys((_aten.tanh.default, _aten.tanh_.default), (1 / 128, 0)),
    _aten.log_softmax.int: (16 / 256, 127)})
"""Scale and zero point that LiteRT's int8 kernels give, by its quantization specification; others do not load."""
_FAR = 1e3
"""A constant this far below zero hides a score; Swin's -100 is a number like others."""
_CODES = 255 * 2.0**-12
"""The range of eight bits at the least scale that quantizers allow: smaller constants get few codes, or none."""
_FAITHFUL = 1 / 256


@dataclass
class _InFloat(QuantizationAnnotation):  # type: ignore[misc, unused-ignore]
    """Nothing to observe; X86InductorQuantizer looks for its own mark on whatever is annotated."""

    _annotated: bool = True
    _is_output_of_quantized_pattern: bool = False


class CompletedQuantizer(Quantizer):  # type: ignore[misc, unused-ignore]
    """A quantizer around another one.

    Args:
        inner: Decides where fake-quantize goes.
        example: The tensors of one batch, in the order of the graph's placeholders: they show which are masks.
        fixes_scales: Whether the runtime's kernels of sigmoid, softmax and tanh give one scale and no other, as
            LiteRT's do.
    """

    def __init__(self, inner: Quantizer, example: Sequence[object], *, fixes_scales: bool = False) -> None:
        super().__init__()
        self._inner = inner
        self._example = example
        self._fixes_scales = fixes_scales

    def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Let the quantizer make tensors of numbers, except in integer arithmetic."""
        hidden = {node: node.args for node in model.graph.nodes if node.target in _ARITHMETIC and _has_integers(node)}
        for node in hidden:
            first = next(iter(node.all_input_nodes))
            node.args = tuple(argument if isinstance(argument, (torch.fx.Node, list, tuple)) else first
                              for argument in node.args)
        try:
            changed: torch.fx.GraphModule = self._inner.transform_for_annotation(model)
            return changed
        finally:
            for node, arguments in hidden.items():
                node.args = arguments
            model.recompile()

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Annotate a graph in place, and return it."""
        constant, hidden = constants_and_masks(model, self._example)
        for node in model.graph.nodes:
            if node.target in _ARITHMETIC and (
                    _has_integers(node) or node in constant or hidden.intersection((node, *node.all_input_nodes))
                    or any(_is_unfaithful(model, argument) for argument in node.all_input_nodes)):
                node.meta[_KEY] = _InFloat()
        annotated: torch.fx.GraphModule = self._inner.annotate(model)
        _complete_pads(annotated)
        if self._fixes_scales:
            _fix_scales(annotated)
        _share_on_the_way(annotated)
        return annotated

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Check what was annotated."""
        self._inner.validate(model)

    def prepare_obs_or_fq_callback(self, model: Any, edge_or_node_to_obs_or_fq: Any) -> None:
        """Let the quantizer change what observes."""
        self._inner.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)


def _has_integers(node: torch.fx.Node) -> bool:
    """Whether a tensor that a node takes or gives is not float32."""
    values = [argument.meta.get("val") for argument in (node, *node.all_input_nodes)]
    return any(isinstance(value, Tensor) and value.dtype != torch.float32 for value in values)


# -- masks ----------------------------------------------------------------------------------------------------------


def constants_and_masks(model: torch.fx.GraphModule,
                        example: Sequence[object]) -> tuple[set[torch.fx.Node], set[torch.fx.Node]]:
    """Return what is made of buffers, integers and booleans alone, such as indices and positions, and what is a mask.

    A mask holds -inf, or a number far below zero where something is hidden. It is made of constants, comes from an
    input that holds such values, or has them filled in. A sum with a mask is another.

    Args:
        model: An exported graph.
        example: The leaves of one batch, in the order of the placeholders.
    """
    found: set[torch.fx.Node] = set()
    constant: dict[torch.fx.Node, bool] = {}  # made without float inputs; whether a number in it is far below zero
    inputs = iter(example)
    for node in model.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            value = next(inputs, None) if node.op == "placeholder" else operator.attrgetter(str(node.target))(model)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and (
                    node.op == "get_attr" or not value.is_floating_point()):
                constant[node] = _hides(value)
            elif _hides(value):
                found.add(node)
        elif node.op == "call_function":
            fills = any(_is_far(number) for number in pytree.tree_leaves((node.args, dict(node.kwargs))))
            if all(operand in constant for operand in node.all_input_nodes):
                constant[node] = fills or any(constant[operand] for operand in node.all_input_nodes)
            elif (fills and any(word in str(node.target) for word in ("masked_fill", "where"))) or (
                    node.target in _PASSES_ON and found.intersection(node.all_input_nodes)):
                found.add(node)
        if constant.get(node):
            found.add(node)
    return set(constant), {node for node in found if _is_float(node)}


_PASSES_ON = (_aten.add.Tensor, _aten.add_.Tensor, _aten.sub.Tensor, _aten.view.default, _aten.reshape.default,
              _aten.expand.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.slice.Tensor, _aten.clone.default,
              _aten.permute.default, _aten.transpose.int, _aten.contiguous.default, _aten.index.Tensor,
              _aten.select.int, _aten.alias.default, _aten.repeat.default, _aten.where.self,
              _aten.where.ScalarOther, _aten.where.ScalarSelf)


def _is_float(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_far(number: object) -> bool:
    return isinstance(number, float) and number <= -_FAR


def _hides(value: object) -> bool:
    """Whether a tensor is a mask: nothing but zeros and one value far below, or -inf among others."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
        return False
    lowest = float(value.detach().min())
    if lowest <= torch.finfo(torch.float32).min / 2:
        return True
    return lowest <= -_FAR and bool(((value == 0) | (value == lowest)).all())


# -- constants ------------------------------------------------------------------------------------------------------


def _is_unfaithful(model: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a node is a number that eight bits at the least scale change by more than half a percent."""
    if node.op != "get_attr":
        return False
    value = operator.attrgetter(str(node.target))(model)
    if not isinstance(value, Tensor) or value.numel() != 1 or isinstance(value, nn.Parameter):
        return False
    size = abs(float(value.detach()))
    if not math.isfinite(size):
        return True
    if size == 0 or size >= _CODES:
        return False
    step = 2.0**-12
    return bool(abs(round(size / step) * step - size) > _FAITHFUL * size)


# -- int8 all the way -----------------------------------------------------------------------------------------------


def _complete_pads(model: torch.fx.GraphModule) -> None:
    """Let a pad before a quantized layer run in int8, with the layer's range: zero has a code in each."""
    for node in model.graph.nodes:
        if node.target not in _PADS or _annotation(node) is not None or not node.users:
            continue
        asked = [_wanted(user, node) for user in node.users]
        source = node.args[0]
        if any(spec is None or isinstance(spec, SharedQuantizationSpec) for spec in asked) or not _pads_zeros(node):
            continue
        made_int8 = _annotation(source)
        if made_int8 is not None and made_int8.output_qspec is not None:
            continue  # the way below does it
        shared = SharedQuantizationSpec((source, node))
        node.meta[_KEY] = QuantizationAnnotation(
            input_qspec_map={source: asked[0]}, output_qspec=shared, _annotated=True)


def _pads_zeros(node: torch.fx.Node) -> bool:
    mode = node.args[2] if node.target is _aten.pad.default and len(node.args) > 2 else "constant"
    value = node.args[-1] if len(node.args) > (3 if node.target is _aten.pad.default else 2) else 0
    return bool(mode != "constant" or value is None or value == 0)


def _fix_scales(model: torch.fx.GraphModule) -> None:
    """Give what is bounded by nature the scale that the kernel has for it, wherever somebody reads it in int8."""
    for node in model.graph.nodes:
        if node.target not in _FIXED or _annotation(node) is not None:
            continue
        scale, zero_point = _FIXED[node.target]
        fixed = FixedQParamsQuantizationSpec(
            dtype=torch.int8, scale=scale, zero_point=zero_point, quant_min=-128, quant_max=127,
            qscheme=torch.per_tensor_affine)
        if _hand_on(node, node, SharedQuantizationSpec(node), first=fixed):
            node.meta[_KEY] = QuantizationAnnotation(input_qspec_map={}, output_qspec=fixed, _annotated=True)


def _hand_on(node: torch.fx.Node, source: torch.fx.Node, shared: SharedQuantizationSpec, *, first: Any) -> bool:
    """Let all that read a node's values in int8 read them as its source has them; return whether anybody does."""
    read = False
    for user in list(node.users):
        made = _annotation(user)
        if made is not None and node in made.input_qspec_map:
            made.input_qspec_map[node] = first if node is source else shared
            read = True
        elif made is None and user.target in _MOVES_VALUES and _hand_on(user, source, shared, first=first):
            before = first if node is source else shared
            user.meta[_KEY] = QuantizationAnnotation(
                input_qspec_map={node: before}, output_qspec=shared, _annotated=True)
            read = True
    return read


def _share_on_the_way(model: torch.fx.GraphModule) -> None:
    """Give what passes quantized values on the same range, as quantizers do for the ops that they know."""
    for node in model.graph.nodes:
        if node.target not in _KEEPS_VALUES or _annotation(node) is not None:
            continue
        source = node.args[0]
        before = _annotation(source) if isinstance(source, torch.fx.Node) else None
        if before is None or before.output_qspec is None or not _is_float(node):
            continue
        if node.target in _PADS and not _pads_zeros(node):
            continue
        shared = SharedQuantizationSpec(source)
        node.meta[_KEY] = QuantizationAnnotation(
            input_qspec_map={source: shared}, output_qspec=shared, _annotated=True)


def _annotation(node: Any) -> QuantizationAnnotation | None:
    made = node.meta.get(_KEY) if isinstance(node, torch.fx.Node) else None
    return made if made is not None and made._annotated else None  # noqa: SLF001 - torchao's public convention


def _wanted(user: torch.fx.Node, node: torch.fx.Node) -> Any:
    """Return what a user of a node wants it quantized by."""
    made = _annotation(user)
    return None if made is None else made.input_qspec_map.get(node)
