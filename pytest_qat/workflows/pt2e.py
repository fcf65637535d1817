"""PyTorch 2 export quantization (torchao): export the model, insert fake-quantize by a quantizer, convert.

What comes out is the *reference* form, quantize and dequantize around float ops: a runtime has to lower it.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from pytest_qat.case import QATCase
from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.locate import headline
from pytest_qat.recipe import Recipe
from pytest_qat.workflows.base import ConvertedModel, PreparedModel
from pytest_qat.workflows.exported import ExportedModel, always_on_nodes, export_program, without_spare_tensors
from pytest_qat.workflows.quantizers import make_quantizer

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]

CONVERTS_SLOWLY = True
"""Conversion matches patterns for seconds to minutes, so the untrained control stays in its simulated form."""


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return an exported, QAT-prepared copy of the case's model.

    Raises:
        CheckFailed: torch.export refuses the model, or the quantizer does.
    """
    model = copy.deepcopy(case.model).eval()
    program = export_program(model, case.example_inputs, any_batch=True)
    graph_module = program.module()
    always_on = always_on_nodes(graph_module)
    _tell_calls_apart(graph_module)
    quantizer = copy.deepcopy(case.quantizer) if case.quantizer is not None else make_quantizer(
        recipe.quantizer or "xnnpack", skip=case.skip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepared = prepare_qat_pt2e(graph_module, quantizer)
    except Exception as error:
        raise CheckFailed([f"{type(quantizer).__name__} cannot prepare the model."],
                          findings=[_refusal(error, quantizer)]) from error
    reasons = dict.fromkeys(case.skip, "left in float on purpose (skip)")
    return PreparedModel(module=ExportedModel(prepared, always_on=always_on).train(), float_modules=reasons)


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return the reference form of a copy of the prepared model, without the float weights it no longer reads."""
    module = copy.deepcopy(prepared.module).eval()
    assert isinstance(module, ExportedModel), "unreachable because prepare made it"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph_module = convert_pt2e(module.graph_module, fold_quantize=recipe.fold_quantize)
    without_spare_tensors(graph_module)
    return ConvertedModel(module=ExportedModel(graph_module, always_on=module.always_on).eval())


def float_twin(case: QATCase) -> nn.Module:
    """Return a copy in eval mode; the runtimes fold BatchNorm themselves."""
    return copy.deepcopy(case.model).eval()


def _tell_calls_apart(graph_module: torch.fx.GraphModule) -> None:
    """Name each further call of one module anew, in place.

    X86InductorQuantizer finds modules by name, and takes two calls of one ReLU for one module with two outputs.
    torch.export marks further calls as `name@1` in the stack's keys; here the name carries the mark, too.
    """
    for node in graph_module.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and any("@" in key for key in stack):
            node.meta["nn_module_stack"] = {
                key: (f"{name}@{key.rpartition('@')[2]}" if "@" in key else name, kind)
                for key, (name, kind) in stack.items()}


def _refusal(error: BaseException, quantizer: object) -> Finding:
    return Finding(
        code="quantizer-refused", severity="error",
        message=f"{type(quantizer).__name__} raised {type(error).__name__}: {headline(error).rstrip('.')}.",
        remedy="name the module in skip=(...), give the case a quantizer of its own, or use an fx recipe.",
        evidence={"error": type(error).__name__})
