"""Training that changed nothing is not reported as done."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_fx

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.errors import DataError, StageError
from pytest_qat.finetune import calibrate, fine_tune
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import fx

IMAGES = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES + 0.1 * turn, torch.arange(8) % 2) for turn in range(3)]


def case(**changes: Any) -> QATCase:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    return QATCase(**{"model": model.eval(), "example_inputs": (IMAGES,), **changes})


def calibrated(made: QATCase) -> nn.Module:
    with preserved_torch_state(seed=0):
        module = fx.prepare(made, get_recipe("fx-x86")).module
        calibrate(module, [IMAGES])
    return module


def refusal(train: Any) -> StageError:
    made = case(train=train)
    with pytest.raises(StageError) as caught:
        fine_tune(calibrated(made), made)
    assert "in place" in caught.value.hint
    return caught.value


def one_step(model: nn.Module) -> None:
    images, target = BATCHES[0]
    nn.functional.cross_entropy(model(images), target).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def on_a_copy(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    one_step(model)
    return model


def on_a_lost_copy(model: nn.Module) -> None:
    on_a_copy(model)


def on_a_copy_after_calibration(model: nn.Module) -> nn.Module:
    model(2 * IMAGES)
    return on_a_copy(model)


@pytest.mark.parametrize("train", [on_a_copy, on_a_copy_after_calibration])
def test_a_trained_copy_that_is_returned_is_refused_as_such(train: Any) -> None:
    assert refusal(train).message == (
        "fine-tuning: the case's train returned another GraphModule and changed no parameter of the model it was "
        "given, expected it to train that one.")


@pytest.mark.parametrize("train", [on_a_lost_copy, lambda model: None, lambda model: model.eval()])
def test_a_train_that_changes_neither_parameter_nor_buffer_is_refused(train: Any) -> None:
    assert refusal(train).message == (
        "fine-tuning: the case's train changed no parameter and no buffer of the model it was given, expected it to "
        "train that one.")


def first_weight_only(model: nn.Module) -> nn.Module:
    next(model.parameters()).data[0, 0, 0, 0] += 1e-3
    return model


def observers_only(model: nn.Module) -> None:
    with torch.no_grad():
        model(2 * IMAGES)


def with_a_new_parameter(model: nn.Module) -> None:
    layer: Any = model.get_submodule("4")
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def with_a_returned_twin(model: nn.Module) -> nn.Module:
    one_step(model)
    return copy.deepcopy(model)


@pytest.mark.parametrize("train", [one_step, first_weight_only, observers_only, with_a_new_parameter,
                                   with_a_returned_twin])
def test_a_train_that_changes_anything_in_the_model_is_the_case_s_own(train: Any) -> None:
    made = case(train=train)
    assert fine_tune(calibrated(made), made).kind == "own"


def test_a_model_that_was_prepared_with_nan_in_it_is_compared_too() -> None:
    made = case(train=lambda model: None)
    module = calibrated(made)
    next(buffer for buffer in module.buffers() if buffer.is_floating_point()).fill_(float("nan"))
    with pytest.raises(StageError, match="changed no parameter and no buffer"):
        fine_tune(module, made)


class OneReader:
    """Gives the same iterator to everyone who asks."""

    def __init__(self) -> None:
        self.reader = iter(BATCHES)

    def __iter__(self) -> Iterator[Any]:
        return self.reader


def test_data_that_hand_out_one_iterator_are_trained_on_in_every_epoch() -> None:
    made = case(train_data=OneReader(), loss_fn=nn.functional.cross_entropy, epochs=2)
    checked_model(made)
    assert fine_tune(calibrated(made), made).steps == 6


class OnlyOnce:
    """Counts batches that a first reading has taken away."""

    def __init__(self) -> None:
        self.left = list(BATCHES)

    def __len__(self) -> int:
        return len(BATCHES)

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            yield self.left.pop()


def test_data_that_have_run_dry_before_the_first_step_are_refused() -> None:
    made = case(train_data=OnlyOnce(), loss_fn=nn.functional.cross_entropy, epochs=2)
    list(made.train_data or ())
    with pytest.raises(DataError, match="train_data gave no batch in any of 2 epochs, expected 3 in each") as caught:
        fine_tune(calibrated(made), made)
    assert "from the start" in caught.value.hint


def test_a_model_of_the_user_s_own_preparation_is_not_asked_to_have_changed() -> None:
    made = case(train=lambda model: None)
    module = quantize_fx.prepare_qat_fx(copy.deepcopy(made.model).train(), torch.ao.quantization.
                                        get_default_qat_qconfig_mapping("x86"), (IMAGES,))
    given = case(train=lambda model: None, prepared=module)
    assert fine_tune(module, given).kind == "given"
