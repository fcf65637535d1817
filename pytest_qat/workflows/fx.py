"""torch.ao FX graph mode: trace the model, insert fake-quantize by pattern, lower to torch's int8 kernels."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.fx.proxy import TraceError
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase
from pytest_qat.core.tracebacks import headline, locate_module
from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.recipe import Recipe
from pytest_qat.workflows import eager
from pytest_qat.workflows.base import ConvertedModel, PreparedModel
from pytest_qat.workflows.qconfigs import float_roots, qconfig_mapping

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]

CONVERTS_SLOWLY: bool = False


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return an FX QAT-prepared copy of the case's model.

    Raises:
        CheckFailed: torch.fx cannot trace the model.
    """
    mapping = qconfig_mapping(case, engine=recipe.engine)
    # Traced in eval mode: torch.fx bakes `self.training` in, and a dropout traced in train mode never switches off.
    model = _with_given_arguments(case)
    try:
        with _without_stack_traces():
            module = quantize_fx.prepare_qat_fx(model, mapping, case.example_inputs)
    except (TraceError, TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        if not _is_trace_error(error):
            raise
        raise CheckFailed([f"torch.fx cannot trace {case.label}."],
                          findings=[_untraceable(error, locate_module(error, model))]) from error
    return PreparedModel(module=module.train(), float_modules=float_roots(case.model, mapping, case))


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return the lowered int8 form of a copy of the prepared model."""
    module: Any = copy.deepcopy(prepared.module).eval()
    return ConvertedModel(module=quantize_fx.convert_fx(module).eval())


def float_twin(case: QATCase) -> nn.Module:
    """Return the traced float model in eval mode with BatchNorm folded."""
    try:
        with _without_stack_traces():
            return quantize_fx.fuse_fx(_with_given_arguments(case))
    except (TraceError, TypeError, ValueError, RuntimeError):
        return eager.float_twin(case)


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


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Trace without a stack trace a node: nobody reads them here, and symbolizing them imports torch's compiler."""
    kept = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = kept


def _is_trace_error(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, TraceError) or any(
        words in text for words in ("Proxy", "symbolically traced", "symbolic tracing", "argument of type"))


def _untraceable(error: BaseException, module: str | None) -> Finding:
    return Finding(
        code="not-fx-traceable", severity="error", module=module,
        message=f"its forward depends on values, which torch.fx cannot follow: {headline(error)}.",
        remedy="decide by shapes and attributes instead of tensor values, keep that part out of the model, "
               "or use an eager recipe such as --qat-recipe=eager-x86.")
