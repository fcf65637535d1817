"""torchao's `quantize_` with `QATConfig`, for models whose work is in linear layers: transformers and MLPs.

Activations are quantized to int8 per token at run time; weights to int8 per channel, or to int4 in groups.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8DynamicActivationIntxWeightConfig, quantize_
from torchao.quantization.granularity import PerGroup
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

from pytest_qat.case import QATCase
from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.recipe import Recipe
from pytest_qat.workflows.base import ConvertedModel, PreparedModel

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]

CONVERTS_SLOWLY: bool = False
GROUP = 32
"""Weights that share a scale in the int4 form."""
_NAMED = 5


def prepare(case: QATCase, recipe: Recipe) -> PreparedModel:
    """Return a copy whose linear layers fake-quantize activations and weights.

    Raises:
        CheckFailed: the model has no linear layer that fits.
    """
    model = copy.deepcopy(case.model).eval()
    reasons = _float_layers(model, case, recipe)
    chosen = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in reasons]
    if not chosen:
        raise CheckFailed(["there is no linear layer to quantize."], findings=[Finding(
            code="no-linear-layers", severity="error", evidence=dict(reasons),
            message=f"{recipe.name} quantizes linear layers only; {_why_none(model, reasons)}.")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(model, _prepare_config(recipe), filter_fn=_only(chosen))
    return PreparedModel(module=model.train(), float_modules=reasons)


def convert(prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
    """Return a copy with int8 or int4 weights."""
    model = copy.deepcopy(prepared.module).eval()
    chosen = [name for name, module in model.named_modules()
              if isinstance(module, nn.Linear) and hasattr(module, "weight_fake_quantizer")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(model, QATConfig(_config(recipe), step="convert"), filter_fn=_only(chosen))
    return ConvertedModel(module=model.eval())


def float_twin(case: QATCase) -> nn.Module:
    """Return a copy in eval mode."""
    return copy.deepcopy(case.model).eval()


def _prepare_config(recipe: Recipe) -> QATConfig:
    if recipe.quantizer == "int4":
        return QATConfig(_config(recipe), step="prepare")
    # torchao derives no fake-quantize from the int8 form, and simulates activations per token with zero points only.
    return QATConfig(
        activation_config=IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False),
        weight_config=IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True), step="prepare")


def _config(recipe: Recipe) -> Any:
    if recipe.quantizer == "int4":
        return Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4,  # type: ignore[attr-defined, unused-ignore]
                                                     weight_granularity=PerGroup(GROUP))
    return Int8DynamicActivationInt8WeightConfig()


def _why_none(model: nn.Module, reasons: Mapping[str, str]) -> str:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    named = "; ".join(f"{name or 'the model itself'}: {reasons[name]}" for name in linear[:_NAMED])
    return f"none of the model's can be ({named})" if linear else "the model has none"


def _only(names: list[str]) -> Any:
    def wanted(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name in names
    return wanted


def _float_layers(model: nn.Module, case: QATCase, recipe: Recipe) -> dict[str, str]:
    """Return the reasons for every layer with weights that stays in float."""
    reasons: dict[str, str] = {}
    attention = {f"{name}.out_proj" if name else "out_proj" for name, module in model.named_modules()
                 if isinstance(module, nn.MultiheadAttention)}
    for name, module in model.named_modules():
        if any(name == skipped or name.startswith(f"{skipped}.") for skipped in case.skip):
            reasons[name] = "left in float on purpose (skip)"
        elif name in attention:
            reasons[name] = "nn.MultiheadAttention reads its weight itself, without calling the layer"
        elif isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
            reasons[name] = f"{type(module).__name__} has a forward of its own, which the int8 form would replace"
        elif isinstance(module, nn.Linear) and is_parametrized(module):
            reasons[name] = "its weight is computed anew in every call (parametrized)"
        elif isinstance(module, nn.Linear) and recipe.quantizer == "int4" and module.in_features % GROUP:
            reasons[name] = f"its {module.in_features} inputs are no multiple of the group of {GROUP}"
        elif not isinstance(module, nn.Linear) and any(True for _ in module.parameters(recurse=False)):
            reasons[name] = f"{type(module).__name__} has no int8 form in this workflow"
    return reasons
