"""PyTorch 2 export quantization (torchao): export the model, insert fake-quantize by a quantizer, convert.

What comes out is the *reference* form, quantize and dequantize around float ops: a runtime has to lower it.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from pytest_qat.case import QATCase
from pytest_qat.core.batches import call
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import CheckFailed
from pytest_qat.exported.fixes import (
    complete_batchnorms,
    quantize_transposed_by_output,
    read_weights_apart,
    shield,
    unfoldable,
    unshield,
)
from pytest_qat.exported.model import ExportedModel, always_on_nodes
from pytest_qat.exported.outputs import OutputForm, flatten_outputs, has_unknown
from pytest_qat.exported.places import blamed_node, described, line_of
from pytest_qat.exported.program import export_program, module_of, without_spare_tensors
from pytest_qat.exported.rewrites import frozen_parameters
from pytest_qat.findings import Finding
from pytest_qat.recipe import Recipe
from pytest_qat.workflows.annotations import CompletedQuantizer
from pytest_qat.workflows.base import ConvertedModel, PreparedModel
from pytest_qat.workflows.patterns import spared_patterns
from pytest_qat.workflows.quantizers import make_quantizer

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]

CONVERTS_SLOWLY: bool = True  # conversion matches patterns for seconds to minutes
_DEFAULT_EPS = 1e-5
"""What torchao's patterns for Conv-BatchNorm take for eps, whatever the model's is."""


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return an exported, QAT-prepared copy of the case's model.

    Raises:
        CheckFailed: torch.export refuses the model, or the quantizer does.
    """
    model = copy.deepcopy(case.model).eval()
    outputs = _flattened(model, case.example_inputs)
    program = export_program(model, case.example_inputs, any_batch=True)
    graph_module = program.module()
    frozen = frozen_parameters(graph_module)
    always_on = always_on_nodes(graph_module)
    skip = case.skip if case.quantizer is None else ()  # a quantizer of the user's own knows what to leave out
    batchnorms = _batchnorm_settings(graph_module)
    _tell_calls_apart(graph_module, but=skip)
    read_weights_apart(graph_module)
    complete_batchnorms(graph_module)
    apart = unfoldable(graph_module)
    shield(graph_module, lambda node: node in apart or _within(module_of(node), skip))
    quantizer = copy.deepcopy(case.quantizer) if case.quantizer is not None else make_quantizer(
        recipe.quantizer or "xnnpack", skip=skip, batchnorms=any(
            "batch_norm" in str(node.target) for node in graph_module.graph.nodes))
    try:
        with warnings.catch_warnings(), spared_patterns():
            warnings.simplefilter("ignore")
            prepared = prepare_qat_pt2e(graph_module, CompletedQuantizer(
                quantizer, pytree.tree_leaves(case.example_inputs),
                fixes_scales=recipe.quantizer == "xnnpack-litert" and case.quantizer is None))
    except Exception as error:
        raise CheckFailed([f"{type(quantizer).__name__} cannot prepare the model."],
                          findings=[_refusal(error, quantizer, graph_module.graph)]) from error
    unshield(prepared)
    quantize_transposed_by_output(prepared)
    _restore_batchnorm(prepared, batchnorms)
    for name, parameter in prepared.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    reasons = dict.fromkeys(skip, "left in float on purpose (skip)")
    module = ExportedModel(prepared, always_on=always_on, outputs=outputs).train()
    return PreparedModel(module=module, float_modules=reasons)


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return the reference form of a copy of the prepared model, without the float weights it no longer reads."""
    module = copy.deepcopy(prepared.module).eval()
    assert isinstance(module, ExportedModel), "unreachable because prepare made it"
    _absorb_eps(module.graph_module)
    with warnings.catch_warnings(), spared_patterns():
        warnings.simplefilter("ignore")
        graph_module = convert_pt2e(module.graph_module, fold_quantize=recipe.fold_quantize)
    without_spare_tensors(graph_module)
    return ConvertedModel(module=ExportedModel(
        graph_module, always_on=module.always_on, outputs=module.outputs).eval())


def float_twin(case: QATCase) -> nn.Module:
    """Return a copy in eval mode; the runtimes fold BatchNorm themselves."""
    return copy.deepcopy(case.model).eval()


def _flattened(model: nn.Module, example_inputs: Any) -> OutputForm | None:
    """Let a model return tensors in a row, in place, if it returns something that torch.export does not know."""
    with torch.no_grad():
        output = call(model, example_inputs)
    if not has_unknown(output):
        return None
    flatten_outputs(model)
    return OutputForm(output)


def _batchnorm_settings(graph_module: torch.fx.GraphModule) -> dict[str, tuple[Any, Any]]:
    """Return momentum and eps of every BatchNorm by the name of its running variance."""
    return {_attribute(node.args[4]): (node.args[6], node.args[7]) for node in graph_module.graph.nodes
            if node.target is torch.ops.aten.batch_norm.default and _attribute(node.args[4])}


def _restore_batchnorm(graph_module: torch.fx.GraphModule, settings: dict[str, tuple[Any, Any]]) -> None:
    """Put momentum and eps back, in place: the pattern that torchao puts for Conv-BatchNorm carries the defaults."""
    for node in graph_module.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and (variance := _attribute(node.args[4])) in settings:
            node.args = (*node.args[:6], *settings[variance], *node.args[8:])
        elif node.target is torch.ops.aten.add.Tensor and (variance := _attribute(node.args[0])) in settings:
            node.args = (node.args[0], settings[variance][1])  # running_var + eps, which scales the weight
    graph_module.recompile()


def _absorb_eps(graph_module: torch.fx.GraphModule) -> None:
    """Move each BatchNorm's eps, less the default, into its running variance, in place: torchao folds by the default.

    In eval mode the function stays the same.
    """
    absorbed: dict[str, float] = {}
    for node in graph_module.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and node.args[5] is False and _attribute(node.args[4]):
            absorbed[_attribute(node.args[4])] = node.args[7] - _DEFAULT_EPS
            node.args = (*node.args[:7], _DEFAULT_EPS, *node.args[8:])
    for node in graph_module.graph.nodes:
        if node.target is torch.ops.aten.add.Tensor and _attribute(node.args[0]) in absorbed:
            node.args = (node.args[0], _DEFAULT_EPS)
    for name, extra in absorbed.items():
        graph_module.get_buffer(name).add_(extra)
    graph_module.recompile()


def _attribute(argument: Any) -> str:
    return str(argument.target) if isinstance(argument, torch.fx.Node) and argument.op == "get_attr" else ""


def _tell_calls_apart(graph_module: torch.fx.GraphModule, *, but: Sequence[str]) -> None:
    """Name each further call of one module anew, in place, except in the modules `but`, which are skipped by name.

    X86InductorQuantizer finds modules by name, and takes two calls of one ReLU for one module with two outputs.
    torch.export marks further calls as `name@1` in the stack's keys; here the name carries the mark, too.
    """
    for node in graph_module.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and any("@" in key for key in stack):
            node.meta["nn_module_stack"] = {
                key: (f"{name}@{key.rpartition('@')[2]}" if "@" in key and not _within(name, but) else name, kind)
                for key, (name, kind) in stack.items()}


def _within(name: str, parents: Sequence[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _refusal(error: Exception, quantizer: object, graph: torch.fx.Graph) -> Finding:
    node = blamed_node(error, graph)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f" while it worked on {described(node)}" if node is not None else ""
    module = module_of(node) if node is not None else ""
    return Finding(
        code="quantizer-refused", severity="error", module=module or None,
        message=f"{type(quantizer).__name__} raised {type(error).__name__}{where}: {headline(error).rstrip('.')} "
                f"(raised at {Path(frame.filename).name}:{frame.lineno}).",
        evidence={"error": type(error).__name__, "line": line_of(node) if node is not None else ""})
