"""The QAT loop between prepare and convert: calibrate first, train, freeze towards the end.

The schedule is the one of torchvision's quantization references: observers learn ranges first and are then frozen,
and later BatchNorm statistics are frozen too, so that the last steps train the very function that is converted.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic import qat as nniqat

from pytest_qat.case import QATCase
from pytest_qat.core import progress
from pytest_qat.core.batches import call, labeled, move, same_values
from pytest_qat.core.tracebacks import headline, place_of
from pytest_qat.errors import DataError, TrainingError, UnsupportedEnvironment
from pytest_qat.exported.model import ExportedModel
from pytest_qat.workflows.names import observed, user_names
from pytest_qat.workflows.observers import (
    switch_fake_quantize,
    switch_observers,
    take_over_ranges,
    unbounded_range,
)

__all__ = ["FREEZE_BATCHNORM_AT", "FREEZE_OBSERVERS_AT", "FineTuning", "calibrate", "default_optimizer", "fine_tune"]

_MOST_BATCHES = 100_000
FREEZE_OBSERVERS_AT = 0.6
FREEZE_BATCHNORM_AT = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """What the training between prepare and convert did.

    Attributes:
        kind: `data` (built-in loop), `own` (the case's `train`) or `none` (calibration only).
        steps: Optimizer steps of the built-in loop.
        first_loss: Loss of the first step.
        last_loss: Mean loss of the last tenth of the steps.
    """

    kind: str
    steps: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None


def calibrate(prepared: nn.Module, batches: Iterable[Any]) -> None:
    """Let the observers see the batches, in place, with fake-quantize off and in eval mode.

    Raises:
        DataError: a batch makes NaN or infinity somewhere that is observed.

    Moving-average observers end on the mean of the batches' extremes, whatever their order; torch's own constant of
    0.01 would keep the first batch's range nearly unchanged. A batch's extremes are those of all calls: an observer
    is called more than once where a module is, or where ops share one range as those before and after pooling do.
    """
    prepared.eval()
    switch_observers(prepared, on=True)
    switch_fake_quantize(prepared, on=False)
    observers: list[Any] = [module for module in prepared.modules() if hasattr(module, "averaging_constant")]
    constants = [observer.averaging_constant for observer in observers]
    for observer in observers:
        observer.averaging_constant = 1.0  # each call shows its own extremes
    means: dict[Any, tuple[int, Tensor, Tensor]] = {}
    with (torch.no_grad(), _extremes(prepared) as extremes,
          progress.step("calibrating", total=progress.known_length(batches), unit="batches") as shown):
        for index, inputs in enumerate(batches):
            extremes.clear()
            try:
                call(prepared, inputs)
            except TypeError as error:
                raise DataError(f"batch {index} of the calibration data does not fit the model: {headline(error)}.",
                                hint="Give the arguments of forward alone, without targets.") from error
            _refuse_unbounded(prepared, batch=index)
            for observer, (low, high) in extremes.items():
                count, mean_low, mean_high = means.get(observer, (0, low, high))
                count += 1
                means[observer] = count, mean_low + (low - mean_low) / count, mean_high + (high - mean_high) / count
            shown.advance()
        for observer, (_, low, high) in means.items():
            observer.min_val.copy_(low)
            observer.max_val.copy_(high)
    for observer, constant in zip(observers, constants, strict=True):
        observer.averaging_constant = constant
    switch_fake_quantize(prepared, on=True)
    take_over_ranges(prepared)


def _refuse_unbounded(prepared: nn.Module, *, batch: int) -> None:
    """An observer that saw NaN keeps it, and ignores all later batches in silence."""
    if (found := unbounded_range(prepared)) is not None:
        name, low, high = found
        raise DataError(
            f"batch {batch} of the calibration data makes values from {low} to {high} at "
            f"{observed(user_names(prepared)[name])}, expected finite ones.",
            hint="Drop such samples or fill them in, and mask with a large finite number instead of infinity.")


@contextlib.contextmanager
def _extremes(prepared: nn.Module) -> Iterator[dict[Any, tuple[Tensor, Tensor]]]:
    """Gather the least minimum and greatest maximum that moving-average observers show after their calls."""
    found: dict[Any, tuple[Tensor, Tensor]] = {}

    def note(module: Any, *_: Any) -> None:
        observer = getattr(module, "activation_post_process", module)
        low, high = observer.min_val.clone(), observer.max_val.clone()
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            return  # it has seen nothing yet
        before = found.get(observer, (low, high))
        found[observer] = torch.minimum(before[0], low), torch.maximum(before[1], high)

    handles = [module.register_forward_hook(note) for module in prepared.modules()
               if hasattr(getattr(module, "activation_post_process", module), "averaging_constant")]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def fine_tune(prepared: nn.Module, case: QATCase, *, device: str = "cpu",
              between_steps: Callable[[], None] = lambda: None) -> FineTuning:
    """Train a prepared module in place, as the case says, and leave it on the CPU in eval mode, observers off.

    Args:
        prepared: A prepared and calibrated module.
        case: Its `train`, or its `train_data`, `loss_fn`, `optimizer` and `epochs`.
        device: Where to train.
        between_steps: Called after every step of the built-in loop.

    Raises:
        UnsupportedEnvironment: there is no such device.
        TrainingError: the user's own loop, loss or optimizer raised, the loop left the module as it was, or the loss
            is not finite.
        DataError: the training data are empty or have another form.
    """
    with _device_errors(device):
        prepared.to(device)
    prepared.train()
    if case.prepared is not None:
        done = FineTuning(kind="given")  # it is judged as the user trained it
    elif case.train is not None:
        with progress.step("fine-tuning by the case's train"):
            _own_loop(prepared, case)
        done = FineTuning(kind="own")
    elif case.train_data is not None:
        done = _built_in_loop(prepared, case, device=device, between_steps=between_steps)
    else:
        done = FineTuning(kind="none")
    prepared.to("cpu").eval()
    switch_observers(prepared, on=False)
    return done


@contextlib.contextmanager
def _device_errors(device: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedEnvironment(
            f"fine-tuning on {device} failed: {headline(error)}", hint="Use --qat-device=cpu.") from error


def _own_loop(prepared: nn.Module, case: QATCase) -> None:
    assert case.train is not None, "unreachable because fine_tune asked"
    train: Callable[[nn.Module], object] = case.train
    parameters, buffers = _clones(prepared.named_parameters()), _clones(prepared.named_buffers())
    try:
        with torch.enable_grad():
            returned = train(prepared)
    except Exception as error:
        raise TrainingError(
            f"fine-tuning: the case's train raised {type(error).__name__}: {error} ({place_of(error)}).",
            hint="train gets the prepared module in train mode and changes it in place; call it in a shell to see "
                 "the whole traceback.") from error
    if not _unchanged(parameters, prepared.named_parameters()):
        return
    if isinstance(returned, nn.Module) and returned is not prepared:
        raise TrainingError(
            f"fine-tuning: the case's train returned another {type(returned).__name__} and changed no parameter of the "
            "model it was given, expected it to train that one.",
            hint="Train the given model in place, not a copy: what train returns is not used.")
    if _unchanged(buffers, prepared.named_buffers()):
        raise TrainingError(
            "fine-tuning: the case's train changed no parameter and no buffer of the model it was given, expected it "
            "to train that one.",
            hint="Train the given model in place, or leave out train for calibration only.")


def _clones(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _unchanged(before: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> bool:
    after = {name: tensor.detach() for name, tensor in tensors}
    return before.keys() == after.keys() and all(same_values(old, after[name]) for name, old in before.items())


def _built_in_loop(prepared: nn.Module, case: QATCase, *, device: str,
                   between_steps: Callable[[], None]) -> FineTuning:
    assert case.train_data is not None, "unreachable because fine_tune asked"
    optimizer = _optimizer(prepared, case)
    per_epoch = _length(case.train_data)
    total = per_epoch * case.epochs
    losses: list[float] = []
    with torch.enable_grad(), progress.step("fine-tuning", total=total, unit="batches") as shown:
        for _ in range(case.epochs):
            for inputs, target in labeled(case.train_data, field="train_data"):
                _freeze(prepared, done=len(losses) / total)
                loss = _loss(prepared, case, move(inputs, device), move(target, device), step=len(losses) + 1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                shown.advance(detail=f"loss {losses[-1]:.4f}")
                between_steps()
    if not losses:
        raise DataError(f"train_data gave no batch in any of {case.epochs} epochs, expected {per_epoch} in each.",
                        hint="Make every iter(train_data) begin from the start, as that of a list does.")
    tail = losses[-max(1, len(losses) // 10):]
    return FineTuning(kind="data", steps=len(losses), first_loss=losses[0], last_loss=sum(tail) / len(tail))


def default_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return what trains where the case does not say."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


def _optimizer(prepared: nn.Module, case: QATCase) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in prepared.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError("fine-tuning: no parameter of the prepared model requires a gradient.",
                            hint="Set requires_grad on the layers to train, or leave out train_data.")
    if case.optimizer is None:
        return default_optimizer(parameters)
    try:
        optimizer = case.optimizer(parameters)
    except Exception as error:
        raise TrainingError(f"fine-tuning: the case's optimizer raised {type(error).__name__}: {error}.",
                            hint="Write optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4).") from error
    if not hasattr(optimizer, "step") or not hasattr(optimizer, "zero_grad"):
        raise TrainingError(f"fine-tuning: optimizer gave {type(optimizer).__name__}, expected a torch optimizer.",
                            hint="Write optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4).")
    return optimizer


def _loss(prepared: nn.Module, case: QATCase, inputs: Any, target: Any, *, step: int) -> Tensor:
    assert case.loss_fn is not None, "unreachable because QATCase asked"
    try:
        loss = case.loss_fn(call(prepared, inputs), target)
    except Exception as error:
        raise TrainingError(
            f"fine-tuning: step {step} raised {type(error).__name__}: {error} ({place_of(error)}).",
            hint="Check that train_data fit the model and that loss_fn(output, target) works.") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TrainingError(f"fine-tuning: loss_fn gave {_shape(loss)}, expected a scalar tensor.",
                            hint="Reduce the loss to its mean.")
    if not math.isfinite(loss.item()):
        raise TrainingError(f"fine-tuning: the loss is {loss.item()} at step {step}, expected a finite number.",
                            hint="Use a learning rate 10 to 100 times lower than for training from scratch.")
    return loss


def _shape(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _length(data: Iterable[Any]) -> int:
    """Count the batches."""
    count = progress.known_length(data)
    if count is None:
        count = sum(1 for _ in itertools.islice(data, _MOST_BATCHES + 1))
        if count > _MOST_BATCHES:
            raise DataError(f"train_data has not ended after {_MOST_BATCHES:,} batches.",
                            hint="Fine-tuning in a test takes seconds to minutes: use itertools.islice, say.")
    if count == 0:
        raise DataError("train_data is empty, expected at least one (inputs, target) batch.",
                        hint="Make train_data yield batches, or leave it out for calibration only.")
    return count


def _freeze(prepared: nn.Module, *, done: float) -> None:
    if done >= FREEZE_OBSERVERS_AT:
        switch_observers(prepared, on=False)
    if done >= FREEZE_BATCHNORM_AT:
        prepared.apply(nniqat.freeze_bn_stats)
        for module in prepared.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                module.eval()
            elif isinstance(module, ExportedModel):
                module.freeze_batchnorm()


def untrained_copy(prepared: nn.Module) -> nn.Module:
    """Return a copy in eval mode with its observers off: the post-training-quantized twin, ready to convert."""
    twin = copy.deepcopy(prepared).eval()
    switch_observers(twin, on=False)
    return twin
