"""torch.ao eager mode: fuse, set qconfigs, add what the model lacks, swap modules.

What eager mode leaves to the user by hand is done here from a trace of one call: fusable chains are found inside
any container, stubs are put at the model's border when it has none, and modules that stay in float are wrapped in
dequantize/quantize. What cannot be done for the user (a `+` between int8 tensors) is reported before any training.
"""

from __future__ import annotations

import copy

import torch
import torch.ao.quantization as tq
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.recipe import Recipe
from pytest_qat.workflows.base import ConvertedModel, PreparedModel
from pytest_qat.workflows.eager.fusion import fusable_chains
from pytest_qat.workflows.eager.int8_flow import Int8Flow, follow_int8, has_int8_form
from pytest_qat.workflows.eager.trace import Trace, trace_call
from pytest_qat.workflows.eager.wrappers import FloatIsland, QuantizedBorder, is_stub
from pytest_qat.workflows.qconfigs import float_roots, qconfig_for, qconfig_mapping

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]

CONVERTS_SLOWLY: bool = False


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return an eager QAT-prepared copy of the case's model.

    Raises:
        CheckFailed: int8 tensors reach an op outside of modules that has no int8 kernel.
    """
    model = copy.deepcopy(case.model).eval()
    mapping = qconfig_mapping(case, engine=recipe.engine)
    in_float = float_roots(model, mapping, case)
    if not _anything_to_quantize(model, in_float):
        return PreparedModel(module=model.train(), float_modules=in_float)
    trace = trace_call(model, case.example_inputs, leaves=frozenset(in_float))
    has_stubs = any(isinstance(module, tq.QuantStub) for module in model.modules())
    flow = follow_int8(trace, model, float_modules=in_float, border_quantizes=not has_stubs)
    if flow.refused:
        findings = [_refusal(*refused) for refused in flow.refused]
        plural = "s" if len(findings) > 1 else ""
        raise CheckFailed([f"{len(findings)} operation{plural} on int8 tensors cannot run in eager mode."],
                          findings=findings)

    chains = _chains(case, model, trace, in_float)
    model.train()
    if chains:
        tq.fuse_modules_qat(model, chains, inplace=True)
    for name, module in model.named_modules():
        floats = "" in flow.islands or name in flow.islands
        module.qconfig = None if floats else qconfig_for(name, module, mapping)
    model = _with_islands(model, flow, mapping)
    if not has_stubs:
        model = QuantizedBorder(model, inputs=case.example_inputs, qconfig=mapping.global_qconfig)
    prepared = tq.prepare_qat(model.train(), inplace=True)
    return PreparedModel(module=prepared, float_modules=flow.islands)


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return the int8 form of a copy of the prepared model."""
    module = copy.deepcopy(prepared.module).eval()
    for part in module.modules():
        fake_quant = getattr(part, "weight_fake_quant", None)
        if fake_quant is not None and _saw_nothing(fake_quant):  # a layer that no batch reached
            fake_quant.enable_observer()
            fake_quant(part.weight)
    module = tq.convert(module, inplace=True)
    return ConvertedModel(module=module.eval())


def _saw_nothing(fake_quant: nn.Module) -> bool:
    least = getattr(getattr(fake_quant, "activation_post_process", None), "min_val", None)
    return least is not None and (least.numel() == 0 or bool(torch.isinf(least).all()))


def float_twin(case: QATCase) -> nn.Module:
    """Return a copy in eval mode with BatchNorm folded into the convolutions before it."""
    model = copy.deepcopy(case.model).eval()
    chains = fusable_chains(trace_call(model, case.example_inputs), model, keep=frozenset())
    return tq.fuse_modules(model, chains, inplace=True).eval() if chains else model


def _chains(case: QATCase, model: nn.Module, trace: Trace, in_float: dict[str, str]) -> list[list[str]]:
    if case.fuse is not None:
        return [list(names) for names in case.fuse]
    return fusable_chains(trace, model, keep=frozenset(in_float))


def _anything_to_quantize(model: nn.Module, in_float: dict[str, str]) -> bool:
    return any(has_int8_form(module) and any(True for _ in module.parameters())
               and not any(name == root or name.startswith(f"{root}.") for root in in_float)
               for name, module in model.named_modules())


def _with_islands(model: nn.Module, flow: Int8Flow, mapping: tq.QConfigMapping) -> nn.Module:
    """Wrap what stays in float, under each of its names; the model itself, too, if it is one."""
    for name in flow.islands:
        inner = model.get_submodule(name)
        if is_stub(inner):
            continue
        island = FloatIsland(inner, requantize=name in flow.requantized, qconfig=mapping.global_qconfig)
        aliases = [alias for alias, module in model.named_modules(remove_duplicate=False) if module is inner]
        if "" in aliases:
            return island
        for alias in aliases:
            parent_name, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(parent_name), leaf, island)
    return model


def _refusal(call_name: str, owner: str, place: str) -> Finding:
    method = _FLOAT_FUNCTIONAL.get(call_name)
    symbol = {"add": "+", "mul": "*", "matmul": "@"}.get(method or "", f"{call_name}()")
    instead = f"; it sees .{method}(a, b) of a torch.ao.nn.quantized.FloatFunctional()" if method else ""
    return Finding(
        code="eager-op-without-int8-kernel", severity="error", module=owner or None,
        message=f"`{symbol}` at {place} is no module, so eager mode leaves it out, and it has no kernel for the int8 "
                f"tensors that reach it{instead}.",
        evidence={"operation": call_name, "place": place})


_FLOAT_FUNCTIONAL = {"add": "add", "__add__": "add", "__iadd__": "add", "add_": "add", "__radd__": "add",
                     "mul": "mul", "__mul__": "mul", "__imul__": "mul", "mul_": "mul", "__rmul__": "mul",
                     "matmul": "matmul", "__matmul__": "matmul"}
