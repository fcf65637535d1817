"""The form of a case: what is accepted, and what is refused with a mend."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization import quantize_fx

from pytest_qat.case import QATCase, ReplayedIterable, Tolerances, without_training
from pytest_qat.errors import InvalidCase

pytestmark = pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")  # torch's own


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.fc = nn.Linear(4, 2)
        self.dequant = tq.DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.fc(self.quant(x)))


BATCH = torch.zeros(2, 4)
PAIRS = [(BATCH, torch.zeros(2, dtype=torch.long))]


def case(**changes: Any) -> QATCase:
    return QATCase(**{"model": Net(), "example_inputs": (BATCH,), **changes})


def refused(**changes: Any) -> InvalidCase:
    with pytest.raises(InvalidCase) as caught:
        case(**changes)
    assert caught.value.hint, "every refusal comes with a mend"
    return caught.value


def prepared_eagerly() -> nn.Module:
    model = Net().train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    return tq.prepare_qat(model)


def converted_eagerly() -> nn.Module:
    model = prepared_eagerly()
    model(BATCH)
    return tq.convert(model.eval())


def prepared_by_fx() -> nn.Module:
    return quantize_fx.prepare_qat_fx(Net().train(), tq.get_default_qat_qconfig_mapping("x86"), (BATCH,))


def converted_by_fx() -> nn.Module:
    model = prepared_by_fx()
    model(BATCH)
    return quantize_fx.convert_fx(model.eval())


@pytest.mark.parametrize(("model", "seen"), [
    (Net, "the class Net"), (None, "None"), ("net.pt", "'net.pt'"), (torch.relu, "relu"), ({"fc": 1}, "a dict"),
    (BATCH, "a tensor of shape (2, 4)"),
])
def test_a_model_that_is_no_module_is_refused_as_what_it_is(model: object, seen: str) -> None:
    error = refused(model=model)
    assert error.message.startswith("model is ")
    assert seen in error.message


def test_a_class_in_place_of_an_instance_is_mended_by_calling_it() -> None:
    assert "Net(...)" in refused(model=Net).hint


@pytest.mark.parametrize("field", ["prepared", "converted"])
def test_the_user_s_own_stages_must_be_modules_too(field: str) -> None:
    assert refused(**{field: "model.pt"}).message.startswith(f"{field} is ")


@pytest.mark.parametrize("make", [prepared_eagerly, converted_eagerly, prepared_by_fx, converted_by_fx])
def test_a_model_that_is_quantized_already_is_refused_with_a_place_for_it(make: Any) -> None:
    error = refused(model=make())
    assert "already quantized" in error.message
    assert "converted=" in error.hint


def test_the_refusal_of_a_quantized_model_names_the_module() -> None:
    model = Net()
    model.head = converted_eagerly().fc
    assert "head is Linear" in refused(model=model).message


def test_an_eager_model_with_stubs_and_float_functional_is_still_a_float_model() -> None:
    model = Net()
    model.add = torch.ao.nn.quantized.FloatFunctional()
    assert case(model=model).model is model


def test_a_model_without_parameters_is_refused() -> None:
    assert "no parameters" in refused(model=nn.Sequential(nn.ReLU(), nn.Flatten())).message


def test_a_model_away_from_the_cpu_is_refused_by_its_device() -> None:
    assert "meta" in refused(model=Net().to("meta")).message


def test_a_single_buffer_away_from_the_cpu_is_enough_to_refuse() -> None:
    model = Net()
    model.register_buffer("mean", torch.zeros(1, device="meta"))
    assert "meta" in refused(model=model).message


def test_a_bare_tensor_is_taken_for_the_only_input() -> None:
    inputs = case(example_inputs=BATCH).example_inputs
    assert isinstance(inputs, tuple)
    assert inputs[0] is BATCH
    assert len(inputs) == 1


def test_a_list_of_inputs_becomes_a_tuple() -> None:
    assert case(example_inputs=[BATCH, 3]).example_inputs == (BATCH, 3)


@pytest.mark.parametrize("inputs", [(), [], None, {"x": BATCH}, 3, "1x4"])
def test_inputs_that_are_no_arguments_of_a_call_are_refused(inputs: object) -> None:
    error = refused(example_inputs=inputs)
    assert error.message.startswith("example_inputs is ")
    assert "example_inputs=(batch,)" in error.hint


@pytest.mark.parametrize("field", ["train", "loss_fn", "optimizer", "metric", "set_metric"])
def test_what_is_called_must_be_callable(field: str) -> None:
    assert refused(**{field: "adam"}).message.startswith(f"{field} is str 'adam'")


def auc(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return 0.5


def swapped(y_true: torch.Tensor, y_score: torch.Tensor) -> float:
    return 0.5


def test_a_model_is_judged_by_one_score() -> None:
    assert case(set_metric=auc, eval_data=PAIRS).set_metric is auc
    assert "both given" in refused(set_metric=auc, metric=auc, eval_data=PAIRS).message


def test_a_score_of_a_set_needs_a_set() -> None:
    error = refused(set_metric=auc)
    assert "without eval_data" in error.message
    assert "eval_data=" in error.hint


@pytest.mark.parametrize("field", ["metric", "set_metric"])
def test_a_function_that_expects_the_targets_first_is_refused_with_the_turn(field: str) -> None:
    error = refused(**{field: swapped, "eval_data": PAIRS})
    assert f"swapped (test_case.py:{swapped.__code__.co_firstlineno}) is y_true" in error.message
    assert f"{field}=lambda outputs, targets: swapped(targets, outputs)" in error.hint


@pytest.mark.parametrize("function", [auc, max, functools.partial(auc, targets=1), lambda y: 0.5, lambda *pair: 0.5])
def test_functions_that_say_nothing_of_an_order_are_accepted(function: Any) -> None:
    assert case(set_metric=function, eval_data=PAIRS).set_metric is function


def test_a_case_without_training_has_nothing_to_score() -> None:
    bare = without_training(case(set_metric=auc, eval_data=PAIRS))
    assert (bare.set_metric, bare.eval_data) == (None, None)


@pytest.mark.parametrize("epochs", [0, -1, True, 1.5, "3", None])
def test_epochs_are_a_whole_number_of_at_least_one(epochs: object) -> None:
    assert refused(epochs=epochs).message.startswith(f"epochs is {epochs!r}")


def test_training_data_need_a_loss() -> None:
    assert "loss_fn" in refused(train_data=PAIRS).message


def test_a_loss_needs_training_data() -> None:
    assert "train_data" in refused(loss_fn=nn.functional.cross_entropy).message


def test_the_user_s_own_loop_needs_neither_loss_nor_data() -> None:
    assert case(train=lambda model: None, train_data=PAIRS).fine_tunes
    assert case(train=lambda model: None, loss_fn=nn.functional.cross_entropy).fine_tunes


@pytest.mark.parametrize(("changes", "fine_tunes"), [
    ({}, False),
    ({"train": print}, True),
    ({"train_data": PAIRS, "loss_fn": print}, True),
    ({"calibration_data": [BATCH], "eval_data": PAIRS}, False),
    ({"train": print, "prepared": nn.Identity()}, False),
])
def test_a_case_knows_whether_it_fine_tunes(changes: dict, fine_tunes: bool) -> None:
    assert case(**changes).fine_tunes is fine_tunes


@pytest.mark.parametrize(("field", "names"), [("skip", ("fc", "head")), ("fuse", [["fc", "head"]]), ("skip", [""])])
def test_names_of_modules_that_do_not_exist_are_refused(field: str, names: Any) -> None:
    error = refused(**{field: names})
    assert error.message.startswith(f"{field} names {'head' if 'head' in str(names) else ''!r}")
    assert "named_modules" in error.hint


def test_names_of_modules_that_exist_are_accepted() -> None:
    assert case(skip=["fc"], fuse=[["fc"]]).skip == ["fc"]


@pytest.mark.parametrize("field", ["skip", "recipes"])
def test_a_plain_string_is_no_list_of_names(field: str) -> None:
    assert "plain string" in refused(**{field: "fc"}).message


@pytest.mark.parametrize(("field", "value"), [
    ("skip", None), ("skip", 3), ("fuse", 3), ("fuse", (3,)), ("recipes", 3), ("tolerances", {"accuracy_drop": 0.1}),
    ("tolerances", None),
])
def test_fields_of_the_wrong_type_are_refused_and_not_left_to_crash_later(field: str, value: object) -> None:
    assert field in refused(**{field: value}).message


@pytest.mark.parametrize("field", ["train_data", "calibration_data", "eval_data"])
@pytest.mark.parametrize("data", ["digits", b"digits", 3, BATCH, Net()])
def test_data_that_are_no_batches_are_refused(field: str, data: object) -> None:
    error = refused(**{field: data, "loss_fn": print if field == "train_data" else None})
    assert error.message.startswith(f"{field} is ")


def test_data_that_can_be_read_again_are_kept_as_they_are() -> None:
    assert case(eval_data=PAIRS).eval_data is PAIRS


@pytest.mark.parametrize("field", ["train_data", "calibration_data", "eval_data"])
def test_a_generator_can_be_read_more_than_once(field: str) -> None:
    made = case(**{field: iter([1, 2, 3]), "loss_fn": print if field == "train_data" else None})
    data = getattr(made, field)
    assert [list(data), list(data)] == [[1, 2, 3], [1, 2, 3]]


def test_an_endless_generator_is_read_only_as_far_as_asked() -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    data = case(calibration_data=endless()).calibration_data
    assert read == []
    assert list(itertools.islice(data, 3)) == [0, 1, 2]
    assert list(itertools.islice(data, 2)) == [0, 1]
    assert read == [0, 1, 2]


def test_two_readers_of_one_generator_do_not_disturb_each_other() -> None:
    data = ReplayedIterable(iter("abc"))
    assert list(zip(data, data, strict=True)) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_a_case_is_called_by_its_name_or_else_by_its_class() -> None:
    assert case().label == "Net"
    assert case(name="mine").label == "mine"


def test_a_case_changes_nothing_about_its_model() -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    made = case(model=model)
    assert made.model is model
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_default_tolerances_are_the_documented_ones() -> None:
    assert case().tolerances == Tolerances()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_inside_a_model_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 3)))
    with pytest.raises(InvalidCase, match="1 is a TorchScript module, whose layers cannot be quantized"):
        QATCase(model=model, example_inputs=(torch.ones(1, 3),))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("field", ["prepared", "converted"])
@pytest.mark.parametrize("inside", [False, True])
def test_the_user_s_own_stages_cannot_be_torchscript(field: str, inside: bool) -> None:
    scripted = torch.jit.script(nn.Linear(4, 2))
    error = refused(**{field: nn.Sequential(scripted) if inside else scripted})
    assert error.message == (f"{field} {'holds' if inside else 'is'} a TorchScript module{' (0)' if inside else ''}, "
                             "which hides its layers, expected a module that runs in Python.")
    assert "scripted from" in error.hint


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning",
                            "ignore::torch.jit.TracerWarning")
def test_a_converted_model_in_torchscript_is_refused_as_torchscript_in_place_of_the_float_model() -> None:
    assert "TorchScript" in refused(model=torch.jit.trace(converted_eagerly(), BATCH)).message


class OneReader:
    """Gives the same iterator to everyone who asks."""

    def __init__(self, batches: list[Any]) -> None:
        self.reader = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self.reader


@pytest.mark.parametrize("field", ["train_data", "calibration_data", "eval_data"])
def test_an_iterable_that_hands_out_one_iterator_can_be_read_more_than_once(field: str) -> None:
    made = case(**{field: OneReader([1, 2, 3]), "loss_fn": print if field == "train_data" else None})
    data = getattr(made, field)
    assert [list(data), list(data)] == [[1, 2, 3], [1, 2, 3]]


class Failing:
    def __iter__(self) -> Iterator[Any]:
        raise OSError("no such folder")


def test_data_that_fail_when_they_are_read_are_left_to_the_stage_that_reads_them() -> None:
    data = Failing()
    assert case(eval_data=data).eval_data is data


class Loader(torch.utils.data.DataLoader):
    asked = 0

    def __iter__(self) -> Any:
        type(self).asked += 1
        return super().__iter__()


def test_a_data_loader_is_not_asked_for_an_iterator_before_it_is_needed() -> None:
    loader = Loader(PAIRS)  # it would start its workers
    assert case(eval_data=loader).eval_data is loader
    assert Loader.asked == 0
