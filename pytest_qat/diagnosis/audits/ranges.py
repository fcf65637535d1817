"""Whether the ranges that observers hold are ranges: finite, observed at all, and no longer moving in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.batches import call
from pytest_qat.diagnosis.given import Given
from pytest_qat.findings import Finding
from pytest_qat.finetune import calibrate
from pytest_qat.workflows.names import observed, observed_module, user_names
from pytest_qat.workflows.observers import fake_quantizers, forget_ranges, range_of, unbounded_range
from pytest_qat.workflows.simulated import observers

__all__ = ["learn_in_evaluation", "never_observed", "not_finite"]

_NAMED = 5
_MOVES = 2.0
_UNLIKE = 1.4
"""Means of batches' extremes that differ by this factor are of data that differ."""
_BATCHES = 16
_WITHOUT_NAN = ("take the batches with NaN or infinite values out of the calibration and training data, and calibrate "
                "again.")


def not_finite(given: Given) -> Iterator[Finding]:
    """A range with NaN or infinity, or a scale that is not a finite number above 0."""
    if given.prepared is not None and (found := unbounded_range(given.prepared)) is not None:
        name, low, high = found
        own = user_names(given.prepared)[name]
        yield Finding(
            code="range-not-finite", severity="error", module=observed_module(own),
            evidence={"low": str(low), "high": str(high)},
            message=f"{observed(own)} was observed with values from {low} to {high}; no scale and zero point hold such "
                    "a range, so what is quantized with it is NaN or one value.",
            remedy=_WITHOUT_NAN)
        return
    broken = None if given.converted is None else next((
        (name, module) for name, module in given.converted.named_modules()
        if (scale := _scale(module)) is not None and not (torch.isfinite(scale).all() and (scale > 0).all())), None)
    if broken is not None and given.converted is not None:
        yield Finding(
            code="range-not-finite", severity="error", module=user_names(given.converted)[broken[0]] or None,
            message=f"{broken[0]} was converted with the scale {float(_flat_scale(broken[1]))}, so all its values are "
                    "NaN or one value: NaN or infinity passed its observer.",
            remedy=_WITHOUT_NAN)


def _flat_scale(module: nn.Module) -> Tensor:
    scale = _scale(module)
    assert scale is not None, "unreachable because it was looked at"
    return scale.flatten()[~(torch.isfinite(scale.flatten()) & (scale.flatten() > 0))][0]


def _scale(module: Any) -> Tensor | None:
    if not type(module).__module__.startswith("torch.ao.nn"):
        return None
    scale = getattr(module, "scale", None)
    return torch.tensor(float(scale)) if isinstance(scale, float) else scale if isinstance(scale, Tensor) else None


def never_observed(given: Given) -> Iterator[Finding]:
    """Observers through which values pass, and which have seen none before."""
    prepared = given.prepared
    if prepared is None:
        return
    watched = {**observers(prepared), **dict(fake_quantizers(prepared))}
    blind = {name for name, module in watched.items() if (ends := range_of(module)) is not None and not bool(
        torch.isfinite(ends[0]).any() | torch.isfinite(ends[1]).any())}
    if not blind:
        return
    passed = _passed(prepared, blind, given)
    if not passed:
        return  # as those of modules that nothing calls
    own = user_names(prepared)
    names = list(dict.fromkeys(observed(own[name]) for name in passed))
    every = blind == set(watched) or all(
        name in blind for name in watched if not own[name].endswith(("weight_fake_quant", ".weight")))
    module = next((name for name in names if name in dict(given.float_model.named_modules())), None)
    yield Finding(
        code="never-calibrated", severity="error", module=None if every else module,
        evidence={"blind": len(passed), "of": len(watched), "modules": names[:_NAMED]},
        message=(f"none of the {len(watched)} observers has seen a value" if every else
                 f"{len(passed)} of {len(watched)} observers have seen no value ({', '.join(names[:_NAMED])})") +
                ", so they are converted with scale 1 and zero point 0, which are nobody's range.",
        remedy="run representative batches through the prepared model before it is converted, with its observers on"
               f"{'' if every else ', and among them some that go through these modules'}.")


def _passed(prepared: nn.Module, names: set[str], given: Given) -> list[str]:
    """Return through which of these observers values pass."""
    model = copy.deepcopy(prepared).eval()
    found: list[str] = []
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, __, name=name: found.append(name) if name not in found else None)
    with torch.inference_mode():
        for inputs in given.batches:
            call(model, inputs)
    order = list(dict(model.named_modules()))
    return sorted(found, key=order.index)


def learn_in_evaluation(given: Given) -> Iterator[Finding]:
    """Fake-quantizers whose observers are on, and which evaluation data give other ranges than calibration data."""
    if given.prepared is None or given.case.eval_data is None or not given.simulates:
        return
    on = [name for name, module in fake_quantizers(given.prepared)
          if hasattr(module, "observer_enabled") and int(module.observer_enabled[0])]
    if not on:
        return
    known = given.case.calibration_data
    before = _scales(given.prepared, on) if known is None else _scales(_observed_anew(given, list(known)), on)
    after = _scales(_observed_anew(given, list(given.batches)), on)
    moved = {name: change for name in on if (change := _change(before[name], after[name])) > (
        _MOVES if known is None else _UNLIKE)}
    if not moved:
        return
    first = max(moved, key=lambda name: moved[name])
    own = user_names(given.prepared)[first]
    yield Finding(
        code="observers-learn-in-evaluation", severity="warning", module=observed_module(own),
        evidence={"moved": len(moved), "of": len(on), "largest_change": moved[first]},
        message=f"{len(on)} observers are on, and .eval() does not switch them off: they take the ranges of the "
                f"evaluation data, which at {observed(own)} are unlike those before by a factor of "
                f"{moved[first]:.2f}. So the score depends on what was evaluated before.",
        remedy="call model.apply(torch.ao.quantization.disable_observer) before evaluation, and enable_observer before "
               "training goes on.")


def _observed_anew(given: Given, batches: list[Any]) -> nn.Module:
    model = copy.deepcopy(given.prepared)
    assert model is not None, "unreachable because it was looked at"
    forget_ranges(model)
    calibrate(model, batches[:_BATCHES])
    return model


def _scales(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    quantizers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    return {name: quantizer.calculate_qparams()[0] if hasattr(quantizer, "calculate_qparams") else quantizer.scale
            for name, quantizer in quantizers.items()}


def _change(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape:
        return 1.0
    ratio = after.clamp_min(1e-30) / before.clamp_min(1e-30)
    return float(torch.maximum(ratio, 1 / ratio).max())
