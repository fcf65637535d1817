"""Whether the user's float model can be quantized at all, checked once before any time is spent on it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase
from pytest_qat.core.batches import call, copied, float_tensors, labeled, named_float_tensors, same_values, unlike
from pytest_qat.core.memory import hold_to_memory
from pytest_qat.core.tracebacks import headline, place_of
from pytest_qat.errors import CheckFailed, DataError, InvalidCase
from pytest_qat.exported.model import workflow_of
from pytest_qat.findings import Finding
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import Recipe

__all__ = ["check_prepared", "check_shapes", "checked_model", "hold_to_model"]

_LOOKED_AT = 64
"""Batches whose shapes are compared before training."""
_SAME_DB = 60.0
"""Folding BatchNorm and using other float kernels leaves 100 dB and more; half-precision kernels about 65."""
_LOST = ("only the forward method of the model's class is traced: hooks, a forward set on the instance and state kept "
         "between calls are lost, in float and in int8 alike.")
_FORMS = {"pt2e": "a graph that torch.export made", "fx": "a graph that torch.fx traced", "eager": "a plain module",
          "torchao": "a plain module that quantize_ prepared"}
_REMEDY = "move them into forward itself, as plain tensor operations."


def checked_model(case: QATCase) -> nn.Module:
    """Return a copy of the case's model in eval mode, after one call on its example inputs.

    Raises:
        InvalidCase: the model cannot be copied, is not float32, does not take its inputs or changes them, or returns
            NaN.
        UnsupportedEnvironment: the stages of a run will not fit into memory.
        DataError: training or evaluation data are empty, or their first batch is no pair.
    """
    hold_to_memory(case.label, sum(parameter.nbytes for parameter in case.model.parameters()))
    for field in ("train_data", "eval_data"):
        data = getattr(case, field)
        if data is not None and next(labeled(data, field=field), None) is None:
            raise DataError(f"{field} is empty, expected at least one (inputs, target) batch.",
                            hint=f"Make {field} yield batches, or leave it out.")
    try:
        model = copy.deepcopy(case.model)
        model.eval()  # some models' own eval returns nothing
    except Exception as error:
        raise InvalidCase(
            f"{case.label} cannot be copied: {type(error).__name__}: {headline(error)}",
            hint="Keep only parameters and buffers as tensor attributes of modules.") from error
    other = sorted({str(parameter.dtype) for parameter in model.parameters()
                    if parameter.is_floating_point() and parameter.dtype != torch.float32})
    if other:
        raise InvalidCase(f"{case.label} has parameters of {', '.join(other)}, expected torch.float32.",
                          hint="Call .float() on the model.")
    given = copied(case.example_inputs)
    try:
        with torch.inference_mode():
            output = call(model, given)
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in case.example_inputs if isinstance(leaf, torch.Tensor)]
        raise InvalidCase(
            f"{case.label} raised {type(error).__name__} on example_inputs of shape {shapes}: "
            f"{headline(error)} ({place_of(error)}).",
            hint="Give the arguments of one forward call as example_inputs.") from error
    if not _same(given, case.example_inputs):
        raise InvalidCase(f"{case.label} changes its inputs in place, so that no two calls get the same inputs.",
                          hint="Use operations that return a new tensor: x = (x - mean) / std, not x.sub_(mean).")
    tensors = float_tensors(output)
    if not tensors:
        raise InvalidCase(f"{case.label} returned {type(output).__name__} without a floating-point tensor.",
                          hint="Return the logits as a tensor, or in a tuple or dict.")
    bad = sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)
    if bad:
        total = sum(tensor.numel() for tensor in tensors)
        raise InvalidCase(
            f"{case.label} returns NaN or infinity in {bad} of {total} output values on example_inputs.",
            hint="Look for NaN in the weights, and check that the inputs are normalized as in training.")
    return model


def check_shapes(case: QATCase) -> None:
    """Check that evaluation and calibration data have the shapes of the example, apart from the batch size.

    An artifact that is built from an exported program takes no others, and training would be for nothing.

    Raises:
        CheckFailed: a batch has another shape; the finding tells both.
    """
    evaluation = () if case.eval_data is None else (inputs for inputs, _ in labeled(case.eval_data, field="eval_data"))
    for field, batches in (("eval_data", evaluation), ("calibration_data", case.calibration_data or ())):
        for index, inputs in enumerate(itertools.islice(batches, _LOOKED_AT)):
            difference = unlike(inputs, case.example_inputs)
            if difference is not None:
                raise CheckFailed(
                    [f"batch {index} of {field} does not fit the artifact, which takes the shapes of example_inputs."],
                    findings=[Finding(
                        code="shape-fixed-by-export", severity="error", message=f"batch {index} of {field} has "
                        f"{difference}.", evidence={"field": field, "batch": index},
                        remedy="bring every batch to one shape, by padding or cutting, and give it as example_inputs.",
                    )])


def check_prepared(case: QATCase, recipe: Recipe) -> None:
    """Check that a recipe can convert the model that a case prepared; beside `converted=` nobody converts it.

    Raises:
        InvalidCase: it comes from another workflow.
    """
    if case.prepared is None or case.converted is not None:
        return
    found, wanted = workflow_of(case.prepared), recipe.workflow
    if found != wanted and (found, wanted) != ("eager", "torchao"):
        raise InvalidCase(
            f"prepared= is {_FORMS[found]}, but {recipe.name} converts {_FORMS[wanted]}.",
            hint=f"Leave out prepared= to have {recipe.name} prepare the float model.")


def hold_to_model(model: nn.Module, deployed: Callable[[Any], Any], batches: Sequence[Any], *,
                  exported: Callable[[], nn.Module] | None = None) -> None:
    """Check that the deployed float model computes what the user's does: everything else is compared with it.

    Tracing keeps one path through the `forward` method of the class: hooks, methods set on an instance, and state kept
    from call to call are lost, in float and in int8 alike.

    Args:
        model: The user's, in eval mode.
        deployed: Calls the float model as it is deployed.
        batches: Inputs.
        exported: Exports the float model for the runtime, where it has one of its own: that tells whether tracing or
            the runtime is to blame.

    Raises:
        CheckFailed: the outputs differ in number, in shape or in value (60 dB).
    """
    for inputs in batches:
        with torch.inference_mode():
            own = named_float_tensors(call(model, copied(inputs)))
            torch.manual_seed(torch.initial_seed() + 1)
            again = named_float_tensors(call(model, copied(inputs)))
        if _shapes(own) != _shapes(again) or _worst(own, again)[0] < _SAME_DB:
            _fail("two calls of the float model with the same input give different outputs.",
                  "it draws random numbers in eval mode, or keeps state from one call to the next, which no deployed "
                  "model does.", "pass the state as an input and return it, and remove the randomness.")
        other = named_float_tensors(deployed(copied(inputs)))
        if _shapes(own) != _shapes(other):
            _fail(f"the deployed float model returns {_listed(other)}, but yours returns {_listed(own)}.",
                  _LOST, _REMEDY)
        level, place = _worst(own, other)
        if level < _SAME_DB and all(torch.isfinite(tensor).all() for tensor in own.values()):
            reason = (f"the deployed float model agrees with yours to only {level:.1f} dB"
                      f"{f' in output {place}' if place else ''}, expected {_SAME_DB:g} dB.")
            if exported is not None and _agrees(exported, inputs, own):
                raise CheckFailed([reason], findings=[Finding(
                    code="runtime-differs", severity="error", evidence={"sqnr_db": level},
                    message="the exported program still computes what your model does, so what the runtime makes of it "
                            "does not, in float as in int8.")])
            _fail(reason, _LOST, _REMEDY)


def _agrees(exported: Callable[[], nn.Module], inputs: Any, own: dict[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            made = named_float_tensors(call(exported(), copied(inputs)))
    except Exception:  # it was exported for other inputs, or in another form
        return False
    return _shapes(own) == _shapes(made) and _worst(own, made)[0] >= _SAME_DB


def _shapes(outputs: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in outputs.values()]


def _worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """Return the lowest SQNR of any output, with the place of it; NaN is equal to itself."""
    return min(((sqnr_db(first.nan_to_num(), second.nan_to_num()), place)
               for (place, first), second in zip(one.items(), other.values(), strict=True)), default=(math.inf, ""))


def _listed(outputs: dict[str, Tensor]) -> str:
    return ", ".join(map(str, _shapes(outputs))) or "nothing"


def _fail(reason: str, message: str, remedy: str) -> NoReturn:
    raise CheckFailed([reason], findings=[Finding(code="baseline-differs", severity="error", message=message,
                                                  remedy=remedy)])


def _same(after: Any, before: Any) -> bool:
    """Whether two batches hold the same values; NaN is equal to itself."""
    leaves = pytree.tree_leaves(after), pytree.tree_leaves(before)
    pairs = zip(*leaves, strict=False)
    return len(leaves[0]) == len(leaves[1]) and all(
        same_values(one, other) for one, other in pairs
        if isinstance(one, Tensor) and isinstance(other, Tensor))
