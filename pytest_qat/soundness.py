"""Is the user's float model fit to be quantized at all? Asked once, before anything is spent on it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pytest_qat.batches import call, float_tensors, labelled
from pytest_qat.case import QATCase
from pytest_qat.errors import DataError, InvalidCase
from pytest_qat.locate import headline, place_of

__all__ = ["checked_model"]


def checked_model(case: QATCase) -> nn.Module:
    """Return a copy of the case's model in eval mode, after one call on its example inputs.

    Raises:
        InvalidCase: the model cannot be copied, is not float32, does not take its inputs or changes them, or returns
            NaN.
        DataError: training or evaluation data are empty, or their first batch is no pair.
    """
    for field in ("train_data", "eval_data"):
        data = getattr(case, field)
        if data is not None and next(labelled(data, field=field), None) is None:
            raise DataError(f"{field} is empty, expected at least one (inputs, target) batch.",
                            hint=f"Make {field} yield batches, or leave it out.")
    try:
        model = copy.deepcopy(case.model).eval()
    except Exception as error:
        raise InvalidCase(
            f"{case.label} cannot be copied: {type(error).__name__}: {headline(error)}",
            hint="Keep only parameters and buffers as tensor attributes of modules.") from error
    other = sorted({str(parameter.dtype) for parameter in model.parameters()
                    if parameter.is_floating_point() and parameter.dtype != torch.float32})
    if other:
        raise InvalidCase(f"{case.label} has parameters of {', '.join(other)}, expected torch.float32.",
                          hint="Call .float() on the model.")
    given = copy.deepcopy(case.example_inputs)
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
        raise InvalidCase(f"{case.label} changes its inputs in place, so that no two calls see the same.",
                          hint="Write x = (x - mean) / std instead of x.sub_(mean).div_(std), for one.")
    tensors = float_tensors(output)
    if not tensors:
        raise InvalidCase(f"{case.label} returned {type(output).__name__} without a floating-point tensor.",
                          hint="Return the logits as a tensor, or in a tuple or dict.")
    bad = sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)
    if bad:
        total = sum(tensor.numel() for tensor in tensors)
        raise InvalidCase(
            f"{case.label} returns NaN or infinity in {bad} of {total} output values on example_inputs.",
            hint="Look for NaN in the weights, and check that the inputs are normalised as in training.")
    return model


def _same(after: Any, before: Any) -> bool:
    """Whether two batches hold the same values; NaN is equal to itself."""
    pairs = zip(pytree.tree_leaves(after), pytree.tree_leaves(before), strict=True)
    return all(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) for one, other in pairs
               if isinstance(one, torch.Tensor))
