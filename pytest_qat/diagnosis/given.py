"""The stages of a model that its user made, as `diagnose` gets them: copies that can be run and switched about."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call, enough, float_tensors, labeled
from pytest_qat.errors import InvalidCase
from pytest_qat.exported.model import as_module
from pytest_qat.workflows.observers import fake_quantizers
from pytest_qat.workflows.simulated import observers, simulated

__all__ = ["Given", "outputs_of", "received", "stages_of"]

_BATCHES = 16
_SAMPLES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A user's model in the stages that there are; every module is a copy in the mode and state it was given in.

    Attributes:
        case: The float model in eval mode, with inputs, calibration data, evaluation data and metric.
        fused: The float model with its layers fused.
        prepared: With observers or fake-quantizers, calibrated or trained.
        converted: The int8 model.
        rounding: The prepared model in eval mode, which rounds with the ranges that it has observed; None where it has
            none.
        batches: Inputs to compare outputs on: of the evaluation data, else calibration data, else the example.
        not_held: Names of trainable parameters of the prepared model that the optimizer does not hold.
        foreign: How many tensors the optimizer holds that are no parameters of the prepared model.
        trains: Whether the user trains the prepared model, as far as is known: an optimizer was given.
    """

    case: QATCase
    fused: nn.Module | None
    prepared: nn.Module | None
    converted: nn.Module | None
    batches: tuple[Any, ...]
    rounding: nn.Module | None = None
    not_held: tuple[str, ...] = ()
    foreign: int = 0
    trains: bool = False

    @property
    def float_model(self) -> nn.Module:
        """The float model in eval mode."""
        return self.case.model

    @property
    def simulates(self) -> bool:
        """Whether the prepared model has fake-quantizers, as one for QAT has."""
        return self.prepared is not None and any(True for _ in fake_quantizers(self.prepared))

    @property
    def observes(self) -> bool:
        """Whether the prepared model has observers that only observe."""
        return self.prepared is not None and bool(observers(self.prepared))


def received(float_model: nn.Module, example_inputs: Any, *, fused: nn.Module | None = None,
             prepared: nn.Module | None = None, converted: nn.Module | None = None,
             calibration: Iterable[Any] | None = None, evaluation: Iterable[Any] | None = None,
             metric: Callable[[Any, Any], Tensor] | None = None, higher_is_better: bool = True,
             optimizer: torch.optim.Optimizer | None = None) -> Given:
    """Check what a user gave, and copy it.

    Raises:
        InvalidCase: a stage is no module, or the float model is quantized already.
    """
    for name, value in (("fused", fused), ("prepared", prepared), ("converted", converted)):
        if value is not None and not isinstance(value, nn.Module):
            raise InvalidCase(f"{name} is {type(value).__name__}, expected an nn.Module instance.",
                              hint=f"Pass the module itself as {name}=.")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise InvalidCase(f"optimizer is {type(optimizer).__name__}, expected a torch.optim.Optimizer.",
                          hint="Pass the optimizer that trains the prepared model.")
    case = QATCase(
        model=copy.deepcopy(as_module(float_model)).eval(), example_inputs=example_inputs,
        calibration_data=None if calibration is None else list(calibration),
        eval_data=None if evaluation is None else list(evaluation), metric=metric,
        higher_is_better=higher_is_better)
    held = _held(optimizer)
    own = {} if prepared is None else {
        name: parameter for name, parameter in prepared.named_parameters() if parameter.requires_grad}
    foreign = [tensor for key, tensor in held.items() if key not in {id(parameter) for parameter in own.values()}]
    if _is_copied(own, foreign, (float_model, fused)):
        foreign, held = [], {}
    return Given(
        case=case, fused=_copied(fused), prepared=_copied(prepared), converted=_copied(converted),
        rounding=_rounding(prepared),
        batches=_batches(case), trains=optimizer is not None,
        not_held=() if not held else tuple(name for name, parameter in own.items() if id(parameter) not in held),
        foreign=len(foreign) if own else 0)


def _rounding(prepared: nn.Module | None) -> nn.Module | None:
    """Observers that have seen nothing, or NaN, have no ranges to round with."""
    if prepared is None:
        return None
    with contextlib.suppress(Exception):
        made = simulated(as_module(prepared))
        if any(True for _ in fake_quantizers(made)):
            return made
    return None


def stages_of(case: QATCase, *, prepared: nn.Module | None = None, converted: nn.Module | None = None) -> Given:
    """Return the stages of a case: its model, and what it brings as prepared and converted, or what was made of it."""
    return received(
        case.model, case.example_inputs, prepared=case.prepared if prepared is None else prepared,
        converted=case.converted if converted is None else converted, metric=case.metric,
        higher_is_better=case.higher_is_better,
        calibration=None if case.calibration_data is None and case.train_data is None else calibration_batches(
            case, limit=_BATCHES),
        evaluation=None if case.eval_data is None or case.set_metric is not None else itertools.islice(
            labeled(case.eval_data, field="eval_data"), _BATCHES))


def _is_copied(own: dict[str, nn.Parameter], foreign: list[Tensor], others: Iterable[nn.Module | None]) -> bool:
    """Whether an optimizer trains the model that the prepared one is a copy of, and no earlier stage."""
    earlier = {id(parameter) for model in others if model is not None for parameter in model.parameters()}
    return len(foreign) == len(own) and not any(id(tensor) in earlier for tensor in foreign) and all(
        tensor.shape == parameter.shape and torch.equal(tensor, parameter)
        for tensor, parameter in zip(foreign, own.values(), strict=True)) and any(tensor.grad is not None for tensor in
                                                                                  foreign)


def _copied(module: nn.Module | None) -> nn.Module | None:
    """Return a copy in the same mode; an exported graph keeps the training flags of its ops."""
    return None if module is None else as_module(copy.deepcopy(module))


def _held(optimizer: torch.optim.Optimizer | None) -> dict[int, Tensor]:
    return {} if optimizer is None else {
        id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}


def _batches(case: QATCase) -> tuple[Any, ...]:
    if case.eval_data is not None:
        inputs: Iterable[Any] = (each for each, _ in labeled(case.eval_data, field="evaluation"))
    else:
        inputs = case.calibration_data if case.calibration_data is not None else [case.example_inputs]
    return tuple(enough(inputs, batches=_BATCHES, samples=_SAMPLES)) or (case.example_inputs,)


def outputs_of(model: nn.Module, batches: Sequence[Any]) -> list[list[Tensor]]:
    """Return the float tensors that a model returns for each batch; quantized ones are dequantized."""
    with torch.inference_mode():
        return [float_tensors(call(model, inputs)) for inputs in batches]
