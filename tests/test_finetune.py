"""Calibration and the QAT loop: schedule, reproducibility, what is reported."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core import progress
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.errors import TrainingError
from pytest_qat.finetune import calibrate, fine_tune
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import fx

BATCHES = [(torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 2)
           for i in range(5)]


def case(**changes: Any) -> QATCase:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    settings: dict[str, Any] = {"model": model.eval(), "example_inputs": (BATCHES[0][0],), "train_data": BATCHES,
                                "loss_fn": nn.functional.cross_entropy, "epochs": 2}
    return QATCase(**{**settings, **changes})


def prepared(made: QATCase) -> Any:
    with preserved_torch_state(seed=0):
        return fx.prepare(made, get_recipe("fx-x86")).module


def activation_range(module: nn.Module) -> tuple[float, float]:
    observer: Any = next(part for part in module.modules() if isinstance(part, tq.MovingAverageMinMaxObserver))
    return float(observer.min_val), float(observer.max_val)


def test_calibration_averages_the_batches_whatever_their_order() -> None:
    forward, backward = prepared(case()), prepared(case())
    calibrate(forward, [images for images, _ in BATCHES])
    calibrate(backward, [images for images, _ in reversed(BATCHES)])
    low = sum(float(images.min()) for images, _ in BATCHES) / len(BATCHES)
    high = sum(float(images.max()) for images, _ in BATCHES) / len(BATCHES)
    assert activation_range(forward) == pytest.approx((low, high), rel=1e-5)
    assert activation_range(backward) == pytest.approx((low, high), rel=1e-5)


class Shared(nn.Module):
    """Looks at two values with one fake-quantizer, the wider one first."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = tq.FakeQuantize(tq.MovingAverageMinMaxObserver)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fake(x) + self.fake(x / 4)


def test_an_observer_called_twice_in_a_batch_is_calibrated_on_its_widest_call() -> None:
    module = Shared()
    calibrate(module, [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 8.0])])
    assert activation_range(module) == (-2.0, 5.0)
    assert not any(part._forward_hooks for part in module.modules())


def test_a_calibrated_model_fake_quantizes_with_the_ranges_it_saw() -> None:
    made = case()
    module = prepared(made)
    calibrate(module, [images for images, _ in BATCHES])
    fakes = [part for part in module.modules() if isinstance(part, tq.FakeQuantize)]
    assert all(torch.equal(part.scale, part.calculate_qparams()[0]) for part in fakes)
    module.apply(tq.disable_observer)
    assert sqnr_db(made.model(BATCHES[0][0]), module(BATCHES[0][0])) > 12


def test_calibration_leaves_constants_and_switches_as_training_needs_them() -> None:
    module = prepared(case())
    before = [part.averaging_constant for part in module.modules() if hasattr(part, "averaging_constant")]
    calibrate(module, [BATCHES[0][0]])
    assert [part.averaging_constant for part in module.modules() if hasattr(part, "averaging_constant")] == before
    fakes = [part for part in module.modules() if isinstance(part, tq.FakeQuantizeBase)]
    assert fakes
    assert all(int(part.fake_quant_enabled) == 1 and int(part.observer_enabled) == 1 for part in fakes)


def test_observers_freeze_first_and_batchnorm_statistics_after_them() -> None:
    states: list[tuple[bool, bool]] = []
    module = prepared(case())
    fake = next(part for part in module.modules() if isinstance(part, tq.FakeQuantizeBase))
    batchnorm: Any = next(part for part in module.modules() if isinstance(part, nn.BatchNorm2d))

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        states.append((bool(int(fake.observer_enabled)), batchnorm.training))
        return nn.functional.cross_entropy(output, target)

    done = fine_tune(module, case(loss_fn=loss))
    assert states == [(True, True)] * 6 + [(False, True)] * 2 + [(False, False)] * 2
    assert done.steps == 10
    assert not module.training
    assert int(fake.observer_enabled) == 0


def test_training_changes_weights_and_reports_first_and_last_loss() -> None:
    made = case(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), epochs=6)
    module = prepared(made)
    calibrate(module, [BATCHES[0][0]])
    before = copy.deepcopy([parameter.detach() for parameter in module.parameters()])
    steps: list[tuple[int, int | None]] = []
    progress.listen(lambda opened: steps.extend((step.done, step.total) for step in opened))
    done = fine_tune(module, made)
    progress.listen(None)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert done.first_loss is not None
    assert done.last_loss is not None
    assert done.last_loss < done.first_loss
    assert steps == [(step, 30) for step in range(31)]


def test_without_train_and_data_nothing_is_trained() -> None:
    made = case(train_data=None, loss_fn=None, calibration_data=[images for images, _ in BATCHES])
    module = prepared(made)
    before = copy.deepcopy(list(module.parameters()))
    assert fine_tune(module, made).kind == "none"
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_the_users_own_loop_gets_the_module_in_train_mode_with_gradients() -> None:
    seen: list[tuple[bool, bool]] = []

    def train(module: nn.Module) -> None:
        seen.append((module.training, torch.is_grad_enabled()))
        next(module.parameters()).data.mul_(0.5)
        module.eval()

    with torch.no_grad():
        done = fine_tune(prepared(case()), case(train=train))
    assert seen == [(True, True)]
    assert done.kind == "own"


def test_one_shot_training_data_last_for_every_epoch() -> None:
    made = case(train_data=(batch for batch in BATCHES), epochs=3)
    assert fine_tune(prepared(made), made).steps == 15


@pytest.mark.parametrize(("optimizer", "expected"), [
    (lambda parameters: 1 / 0, "the case's optimizer raised ZeroDivisionError"),
    (lambda parameters: None, "optimizer gave NoneType, expected a torch optimizer"),
])
def test_a_bad_optimizer_is_named(optimizer: Any, expected: str) -> None:
    made = case(optimizer=optimizer)
    with pytest.raises(TrainingError, match=expected):
        fine_tune(prepared(made), made)


def test_frozen_parameters_leave_nothing_to_train() -> None:
    made = case()
    made.model.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter of the prepared model requires a gradient"):
        fine_tune(prepared(made), made)


def test_a_module_that_the_user_has_prepared_is_not_trained_again() -> None:
    made = case()
    module = prepared(made)
    calibrate(module, [BATCHES[0][0]])
    given = dataclasses.replace(made, prepared=module)
    assert not given.fine_tunes
    before = copy.deepcopy([parameter.detach() for parameter in module.parameters()])
    assert fine_tune(module, given).kind == "given"
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert not module.training
