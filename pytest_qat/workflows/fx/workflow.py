"""torch.ao FX graph mode: trace the model, insert fake-quantize by pattern, lower to torch's int8 kernels.

A model that cannot be traced as a whole is traced in parts, which are quantized, and Python runs what is between.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call, copied
from pytest_qat.core.tracebacks import locate_module, summary_of
from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.recipe import Recipe
from pytest_qat.workflows import eager
from pytest_qat.workflows.base import ConvertedModel, PreparedModel
from pytest_qat.workflows.fx.graphs import prepare_graph
from pytest_qat.workflows.fx.parts import (
    Part,
    Partition,
    agree,
    failed_part,
    find_parts,
    naming_part,
    serve_in_eval_mode,
)
from pytest_qat.workflows.fx.recurrent import wrap_layers
from pytest_qat.workflows.fx.tracing import Traced, swap_float_functionals, trace
from pytest_qat.workflows.fx.trial import int8_form, try_int8
from pytest_qat.workflows.qconfigs import float_roots, in_graph, qconfig_for, qconfig_mapping

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]

CONVERTS_SLOWLY: bool = False

_BATCHES = 2
"""Calibration batches, beside the example, that the modules are watched on before they become parts."""


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return an FX QAT-prepared copy of the case's model, traced as a whole or in parts.

    Raises:
        CheckFailed: the quantized model does not run, though its parts do.
    """
    with _warnings_ignored():
        return _prepare(case, recipe)


def _prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    mapping = qconfig_mapping(case, engine=recipe.engine)
    reasons = float_roots(case.model, mapping, case)
    # Traced in eval mode: torch.fx bakes `self.training` in, and a dropout traced in train mode never switches off.
    model = _with_given_arguments(case)
    swap_float_functionals(model)
    wrap_layers(model, mapping)
    try:
        traced = trace(model, case.example_inputs)
        _hold_to(model, traced, case)
        graph, alone = prepare_graph(traced, case.example_inputs, mapping)
        try_int8(graph, case.example_inputs)
        return PreparedModel(module=graph.train(), float_modules={**alone.modules, **reasons})
    except Exception as error:  # whatever a model does that a graph cannot hold
        return _in_parts(case, mapping, reasons, stopped=summary_of(error))


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return the lowered int8 form of a copy of the prepared model."""
    with _warnings_ignored():
        return ConvertedModel(module=int8_form(prepared.module))


def float_twin(case: QATCase) -> nn.Module:
    """Return the traced float model in eval mode with BatchNorm folded."""
    with _warnings_ignored():
        model = _with_given_arguments(case)
        try:
            traced = trace(model, case.example_inputs)
            _hold_to(model, traced, case)
            return quantize_fx._fuse_fx(traced.module, False).eval()  # noqa: SLF001 - as fuse_fx does
        except Exception:  # prepare says why; what is left is to fold by watching a call
            return eager.float_twin(case)


@contextlib.contextmanager
def _warnings_ignored() -> Iterator[None]:
    """Keep a warning of torch's or of the model's, where warnings are errors, from deciding what can be quantized."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _in_parts(case: QATCase, mapping: tq.QConfigMapping, reasons: dict[str, str], *, stopped: str) -> PreparedModel:
    """Prepare the largest parts that trace, convert and run; a part that does not is looked for inside itself."""
    batches = [case.example_inputs, *(batch for batch in calibration_batches(case, limit=_BATCHES)
                                      if batch is not case.example_inputs)]
    refused: dict[str, str] = {}

    def wanted(name: str, module: nn.Module) -> bool:
        in_float = any(name == root or name.startswith(f"{root}.") for root in reasons)
        return not in_float and _has_layers(name, module, mapping)

    while True:
        model = _settled_copy(case)
        swap_float_functionals(model)
        wrap_layers(model, mapping)
        found = find_parts(model, batches, wanted=wanted, refused=refused)
        module: nn.Module = model
        try:
            module, alone = _with_parts(model, found, mapping)
            try_int8(module, case.example_inputs)
        except Exception as error:  # torch.ao's own, of whatever type
            name = failed_part(error)
            if name is None or name in refused:
                raise CheckFailed(["the quantized model does not run."], findings=[
                    _failed(error.__cause__ or error, locate_module(error, module))]) from error
            refused[name] = summary_of(error.__cause__ or error)
            continue
        inside = {name: f"Python runs it, for torch.fx stops there ({why})"
                  for name, why in found.stopped.items() if name}
        inside |= {name: f"quantized by torch.fx, it fails ({why})" for name, why in refused.items()}
        return PreparedModel(module=module.train(), float_modules={**inside, **alone, **reasons},
                             findings=_notes(found, stopped))


def _with_parts(model: nn.Module, found: Partition, mapping: tq.QConfigMapping) -> tuple[nn.Module, dict[str, str]]:
    """Put prepared graphs in the place of the modules that trace; return the layers that were left alone, too."""
    alone: dict[str, str] = {}
    for name, chosen in found.chosen.items():
        module = model.get_submodule(name)
        with naming_part(name):
            graph, left = prepare_graph(chosen.traced, chosen.inputs, in_graph(mapping, name, module))
        alone.update({_full(name, inner): why for inner, why in left.modules.items()})
        assert chosen.traced.output is not None, "unreachable because trace_call notes it"
        model = _replaced(model, module, Part(
            module, graph, form=chosen.form, output=chosen.traced.output, name=name))
    return (model if isinstance(model, Part) else serve_in_eval_mode(model)), alone


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


def _notes(found: Partition, stopped: str) -> tuple[Finding, ...]:
    if list(found.chosen) == [""]:
        return ()  # nothing but the form of its arguments kept torch.fx from it
    name, why = next(iter(found.stopped.items()), ("", stopped))
    return (Finding(
        code="runs-partly-in-python", severity="note", module=name or None,
        message=f"torch.fx cannot trace the model as a whole: {why}. {len(found.chosen)} parts of it are traced and "
                "quantized, and Python runs what is between them, in float.",
        evidence={"parts": list(found.chosen), "stopped": dict(found.stopped) or {"": stopped}}),)


def _failed(error: BaseException, place: str | None) -> Finding:
    return Finding(
        code="fx-model-fails", severity="error", module=place or None,
        message=f"with its layers quantized by torch.fx, it raised {summary_of(error)}.",
        evidence={"error": type(error).__name__})


def _hold_to(model: nn.Module, traced: Traced, case: QATCase) -> None:
    """Check that a graph computes what the model does on the example inputs."""
    with torch.no_grad():
        wanted = [leaf for leaf in pytree.tree_leaves(call(model, copied(case.example_inputs)))
                  if isinstance(leaf, Tensor)]
        made = [leaf for leaf in pytree.tree_leaves(call(traced.module, copied(case.example_inputs)))
                if isinstance(leaf, Tensor)]
    if not agree(wanted, made):
        raise ValueError("its graph computes something else than the model")


def _settled_copy(case: QATCase) -> nn.Module:
    """Return a copy in eval mode, called once: some models merge weights or build tables in their first call."""
    model = copy.deepcopy(case.model).eval()
    with torch.no_grad():
        call(model, copied(case.example_inputs))
    return model


def _with_given_arguments(case: QATCase) -> nn.Module:
    """Return a copy in eval mode whose forward takes no more arguments than the example gives, and flags as given.

    torch.fx hands every argument a proxy, which is never None and neither true nor false: a branch for a mask or a
    target that is left out would be traced as if it were given.
    """
    model = _settled_copy(case)
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
