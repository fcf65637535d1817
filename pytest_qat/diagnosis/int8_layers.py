"""Which layer of an int8 model computes worst, and why, where there is no prepared model to switch about.

Each int8 layer gets what its float form gets. What is wrong with the worst is told apart by rounding one thing at a
time: its weights as they are in int8, or its float output to the scale and zero point that it was converted with.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq

from pytest_qat.core.batches import call
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.divergence import agreements
from pytest_qat.diagnosis.given import Given
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.workflows.eager.fusion import fusable_chains
from pytest_qat.workflows.eager.trace import trace_call
from pytest_qat.workflows.names import user_names

__all__ = ["fused_form", "one_module_for_unlike_calls", "worst_layer"]

_HEALTHY_DB = 25.0
"""An int8 layer by itself leaves 30 dB and more."""
_MARGIN_DB = 6.0
_CLIPPED = 0.01
_UNLIKE_CALLS = 8.0
_PER_CHANNEL = "quantize these weights per channel, such as with default_per_channel_weight_fake_quant."


def worst_layer(given: Given, int8: nn.Module) -> Finding | None:
    """Return the layer that by itself differs most from float, with the reason; None where none is below 25 dB.

    Args:
        given: The float model, and inputs.
        int8: The converted model, in eval mode.
    """
    reference = fused_form(given)
    if (shared := one_module_for_unlike_calls(reference, given)) is not None:
        return shared
    found, calls = agreements(reference, int8, given.batches[0], with_rounding=True)
    leaves = {user_names(int8)[name]: module for name, module in int8.named_modules()
              if hasattr(module, "scale") or callable(getattr(module, "weight", None))}
    judged = [each for each in found if each.module in leaves and each.sqnr_db < _HEALTHY_DB]
    if not judged:
        return None
    least = min(each.sqnr_db for each in judged)
    worst = next(each for each in judged if each.sqnr_db < least + _MARGIN_DB)  # later ones get its coarse output
    module, made = leaves[worst.module], calls[worst.module].output
    code, told, remedy = _why(module, _float_layer(reference, worst.module), made)
    return Finding(
        code=code, severity="error", module=worst.module, evidence={"sqnr_db": json_number(worst.sqnr_db)},
        message=f"on the float model's own inputs, the int8 {type(module).__name__} agrees with its float form to "
                f"{worst.sqnr_db:.1f} dB. {told}", remedy=remedy)


def one_module_for_unlike_calls(reference: nn.Module, given: Given) -> Finding | None:
    """Return which functional module is called at places with values of unlike size, all of which share its scale."""
    seen: dict[str, list[float]] = {}
    handles = [module.activation_post_process.register_forward_hook(
        lambda _, __, made, name=name: seen.setdefault(name, []).append(float(made.abs().max())))
        for name, module in reference.named_modules() if isinstance(module, nnq.FloatFunctional)]
    try:
        with torch.inference_mode():
            call(reference, given.batches[0])
    finally:
        for handle in handles:
            handle.remove()
    unlike = {name: max(sizes) / max(min(sizes), 1e-12) for name, sizes in seen.items() if len(sizes) > 1}
    name = max(unlike, key=lambda each: unlike[each], default="")
    if not name or unlike[name] < _UNLIKE_CALLS:
        return None
    sizes = " and ".join(f"{size:.3g}" for size in seen[name][:3])
    return Finding(
        code="one-range-for-all-calls", severity="error", module=name, evidence={"largest_values": seen[name][:20]},
        message=f"{name} is called {len(seen[name])} times, with values up to {sizes}, which all share one scale.",
        remedy="use one FloatFunctional for each operation.")


def fused_form(given: Given) -> nn.Module:
    """Return the float model with the layers fused that converted models have fused."""
    if given.fused is not None:
        return copy.deepcopy(given.fused).eval()
    model = copy.deepcopy(given.float_model)
    chains = fusable_chains(trace_call(model, given.case.example_inputs), model, keep=frozenset())
    return tq.fuse_modules(model, chains, inplace=True).eval() if chains else model


def _float_layer(reference: nn.Module, name: str) -> nn.Module | None:
    try:
        layer = reference.get_submodule(name)
    except AttributeError:
        return None
    return layer[0] if isinstance(layer, nn.Sequential) and len(layer) else layer


def _why(module: Any, layer: Any, made: Any) -> tuple[str, str, str]:
    """Return the code of the cause, what is seen of it, and the remedy."""
    if isinstance(made, Tensor) and isinstance(getattr(module, "scale", None), (float, Tensor)):
        scale, zero_point = float(module.scale), int(module.zero_point)
        low, high = -zero_point * scale, (255 - zero_point) * scale
        rounded = torch.fake_quantize_per_tensor_affine(made.float(), scale, zero_point, 0, 255)
        of_range = sqnr_db(made, rounded)
    else:
        of_range, low, high = float("inf"), 0.0, 0.0
    channel, of_weights, per_tensor = _weights(module, layer)
    if of_weights < min(of_range, _HEALTHY_DB):
        code = "one-scale-for-all-channels" if per_tensor else "rounding-too-coarse"
        return code, (f"Channel {channel} of its weights agrees to {of_weights:.1f} dB"
                      f"{', for all channels share one scale' if per_tensor else ''}."), (
            _PER_CHANNEL if per_tensor else "leave this module in float: give it no qconfig.")
    if of_range < _HEALTHY_DB:
        return _of_range(made.float(), low, high, scale)
    return "kernels-disagree", "Neither its weights nor its range make that: its kernel computes something else.", (
        "leave this module in float, or convert for another quantized engine.")


def _of_range(made: Tensor, low: float, high: float, scale: float) -> tuple[str, str, str]:
    least, greatest = float(made.min()), float(made.max())
    seen = f"Its output goes from {least:.3g} to {greatest:.3g}, and its int8 range from {low:.3g} to {high:.3g}"
    outside = float(((made < low - scale) | (made > high + scale)).float().mean())
    if outside > _CLIPPED:
        return "calibration-unlike-evaluation", f"{seen}: {percent(outside)} of the values are clipped.", (
            "calibrate on data like those of the evaluation, with the same preprocessing.")
    return "outliers-set-the-range", f"{seen}: most codes are hardly used.", (
        "take outliers out of the calibration data, or use an observer that leaves them out (HistogramObserver).")


def _weights(module: Any, layer: Any) -> tuple[int, float, bool]:
    """Return the channel whose int8 weights are worst, its SQNR, and whether all channels share one scale."""
    weight = getattr(module, "weight", None)
    own = getattr(layer, "weight", None)
    int8 = weight() if callable(weight) else weight
    if not isinstance(int8, Tensor) or not isinstance(own, Tensor) or not int8.is_quantized or int8.shape != own.shape:
        return 0, float("inf"), False
    plain = int8.dequantize()
    levels = [sqnr_db(one, other) if float(one.norm()) > 0 else float("inf") for one, other in zip(
        own.detach().float(), plain, strict=True)]
    worst = min(range(len(levels)), key=levels.__getitem__)
    return worst, levels[worst], int8.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
