"""torch.ao FX graph mode: trace the model, insert fake-quantize by pattern, lower to torch's int8 kernels.

A model that cannot be traced as a whole is traced in parts, which are quantized, and Python runs what is between.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call
from pytest_qat.core.tracebacks import headline, locate_module, source_of
from pytest_qat.findings import Finding
from pytest_qat.recipe import Recipe
from pytest_qat.workflows import eager
from pytest_qat.workflows.base import ConvertedModel, PreparedModel
from pytest_qat.workflows.fx.graphs import convert_graph, prepare_graph
from pytest_qat.workflows.fx.parts import Chosen, Part, PartlyTraced, agree, find_parts
from pytest_qat.workflows.fx.tracing import Traced, swap_float_functionals, trace
from pytest_qat.workflows.qconfigs import float_roots, in_graph, qconfig_for, qconfig_mapping

__all__ = ["convert", "float_twin", "prepare"]

_BATCHES = 2
"""Calibration batches, beside the example, that the modules are watched on before they become parts."""


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return an FX QAT-prepared copy of the case's model, traced as a whole or in parts."""
    mapping = qconfig_mapping(case, engine=recipe.engine)
    reasons = float_roots(case.model, mapping, case)
    # Traced in eval mode: torch.fx bakes `self.training` in, and a dropout traced in train mode never switches off.
    model = _with_given_arguments(case)
    swap_float_functionals(model)
    stopped: dict[str, str] = {}
    try:
        traced = trace(model, case.example_inputs)
        _hold_to(model, traced, case)
        graph, alone = prepare_graph(traced, case.example_inputs, mapping)
        return PreparedModel(module=graph.train(), float_modules={**alone.modules, **reasons})
    except Exception as error:  # whatever a model does that a graph cannot hold
        place = locate_module(error, model)
        stopped[place or ""] = f"{type(error).__name__}: {headline(error)} ({source_of(error)})"
    return _in_parts(case, mapping, reasons, stopped)


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return the lowered int8 form of a copy of the prepared model."""
    module: nn.Module = copy.deepcopy(prepared.module).eval()
    if isinstance(module, GraphModule):
        return ConvertedModel(module=convert_graph(module))
    for part in module.modules():
        if isinstance(part, Part):
            part.graph = convert_graph(part.graph)
    return ConvertedModel(module=module.eval())


def float_twin(case: QATCase) -> nn.Module:
    """Return the traced float model in eval mode with BatchNorm folded."""
    model = _with_given_arguments(case)
    try:
        traced = trace(model, case.example_inputs)
        _hold_to(model, traced, case)
        return quantize_fx._fuse_fx(traced.module, False).eval()
    except Exception:  # prepare says why; what is left is to fold by watching a call
        return eager.float_twin(case)


def _in_parts(case: QATCase, mapping: tq.QConfigMapping, reasons: dict[str, str],
              stopped: dict[str, str]) -> PreparedModel:
    model = copy.deepcopy(case.model).eval()
    swap_float_functionals(model)

    def wanted(name: str, module: nn.Module) -> bool:
        in_float = any(name == root or name.startswith(f"{root}.") for root in reasons)
        return not in_float and _has_layers(name, module, mapping)

    batches = [case.example_inputs, *calibration_batches(case, limit=_BATCHES)]
    found = find_parts(model, batches, wanted=wanted, refused={})
    alone: dict[str, str] = {}
    for name, chosen in found.chosen.items():
        module = model.get_submodule(name)
        graph, left = prepare_graph(chosen.traced, chosen.inputs, in_graph(mapping, name, module))
        alone.update({_full(name, inner): why for inner, why in left.modules.items()})
        part = Part(module, graph, form=chosen.form, output=chosen.traced.output, name=name)
        model = _replaced(model, module, part)
    whole = PartlyTraced(model)
    return PreparedModel(module=whole.train(), float_modules={**alone, **reasons},
                         findings=_notes(found.chosen, found.stopped or stopped))


def _full(name: str, inner: str) -> str:
    """Return the user's name of a layer that the graph of a part calls `module` or `module.…`."""
    return ".".join(filter(None, (name, inner.removeprefix("module").lstrip("."))))


def _replaced(model: nn.Module, module: nn.Module, part: Part) -> nn.Module:
    """Put a part in the place of a module, under each of its names."""
    for alias, found in list(model.named_modules(remove_duplicate=False)):
        if found is module and not alias:
            return part
        if found is module:
            parent, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(parent), leaf, part)
    return model


def _has_layers(name: str, module: nn.Module, mapping: tq.QConfigMapping) -> bool:
    """Whether there is anything to quantize in a module: weights of two and more dimensions that are no table."""
    return any(any(parameter.dim() > 1 for parameter in part.parameters(recurse=False))
               and not isinstance(part, (nn.Embedding, nn.EmbeddingBag))
               and qconfig_for(".".join(filter(None, (name, inner))), part, mapping) is not None
               for inner, part in module.named_modules())


def _notes(chosen: dict[str, Chosen], stopped: dict[str, str]) -> tuple[Finding, ...]:
    stop = next(iter(stopped.items()))
    return (Finding(
        code="runs-partly-in-python", severity="note",
        message=f"torch.fx cannot trace the whole model ({stop[0] or 'its forward'}: {stop[1]}): {len(chosen)} parts "
                "are graphs, and Python runs what is between them.",
        evidence={"parts": list(chosen), "stopped": dict(stopped)}),)


def _hold_to(model: nn.Module, traced: Traced, case: QATCase) -> None:
    """Check that a graph computes what the model does on the example inputs."""
    with torch.no_grad():
        wanted = [leaf for leaf in pytree.tree_leaves(call(model, _copied(case.example_inputs)))
                  if isinstance(leaf, Tensor)]
        made = [leaf for leaf in pytree.tree_leaves(call(traced.module, _copied(case.example_inputs)))
                if isinstance(leaf, Tensor)]
    if not agree(wanted, made):
        raise ValueError("its graph computes something else than the model")


def _copied(inputs: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs)


def _with_given_arguments(case: QATCase) -> nn.Module:
    """Return a copy in eval mode whose forward takes no more arguments than the example gives, and flags as given.

    torch.fx hands every argument a proxy, which is never None and neither true nor false: a branch for a mask or a
    target that is left out would be traced as if it were given.
    """
    model = copy.deepcopy(case.model).eval()
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    given, left = parameters[:len(case.example_inputs)], parameters[len(case.example_inputs):]
    plain = all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in given)
    fixed = {parameter.name: value for parameter, value in zip(given, case.example_inputs, strict=False)
             if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))}
    if not plain or not (left or fixed):
        return model
    names = [parameter.name for parameter in given]
    passed = ", ".join(f"fixed[{name!r}]" if name in fixed else name for name in names)
    scope: dict[str, Any] = {"original": type(model).forward, "fixed": fixed}
    code = f"def forward(self, {', '.join(names)}): return original(self, {passed})"
    exec(code, scope)  # noqa: S102 - torch.fx reads the names of the arguments
    model.__class__ = type(type(model).__name__, (type(model),), {
        "forward": scope["forward"], "__module__": type(model).__module__})
    return model
