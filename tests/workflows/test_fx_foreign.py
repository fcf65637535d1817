"""FX mode takes models as other people write them: numbers and masks are left alone, what does not trace is split."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import quantized_engine
from pytest_qat.finetune import fine_tune
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.workflows import PreparedModel, fx
from tests.workflows.foreign_nets import (
    AsksWeights,
    Attention,
    Bags,
    Detector,
    MergesOnFirstCall,
    Named,
    Sentence,
    Tied,
    Unpacks,
)
from tests.workflows.fx_made import RECIPE, Made

WORDS, MASK = torch.randint(0, 50, (8, 12)), (torch.arange(12) < torch.arange(5, 13)[:, None]).long()
ROWS = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


# -- values that are no float tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [-math.inf, -1e4, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("scale", ["power", "sqrt"])
def test_scales_from_shapes_and_masks_of_infinity_are_left_in_float(scale: str, fill: float) -> None:
    made = Made(Attention(scale, fill), (torch.randn(8, 12, 16), MASK))
    assert made.prepared.findings == ()
    assert made.int8_layers() == 3
    assert made.sqnr_db > 20


def test_integers_and_positions_are_left_alone_and_the_layer_is_quantized() -> None:
    made = Made(Sentence(), (WORDS, MASK))
    assert made.prepared.findings == ()
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20


def test_positions_follow_the_length_of_the_input() -> None:
    made = Made(Sentence(), (WORDS, MASK))
    with quantized_engine("x86"), torch.no_grad():
        assert sqnr_db(made.before(WORDS[:, :7], MASK[:, :7]), made.int8(WORDS[:, :7], MASK[:, :7])) > 15


def test_a_shape_unpacked_into_another_is_traced() -> None:
    made = Made(Unpacks(), torch.randn(3, 5, 8))
    assert made.prepared.findings == ()
    assert made.int8_layers() == 1
    with quantized_engine("x86"), torch.no_grad():
        assert made.int8(torch.randn(2, 4, 8)).shape == (2, 4, 8)


# -- arguments and results ------------------------------------------------------------------------------------------


def test_a_list_of_tensors_is_one_argument() -> None:
    made = Made(Bags(), ([torch.randint(0, 20, (8, 3)), torch.randint(0, 30, (8, 5))],))
    assert made.prepared.findings == ()
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20


class CalledWithKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Named()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x=x, weight=None, extra=3)


def test_keywords_and_mappings_keep_their_form() -> None:
    made = Made(CalledWithKeywords(), ROWS)
    with quantized_engine("x86"):
        out = made.int8(ROWS)
    assert list(out) == ["logits", "hidden"]
    assert out["hidden"][1] is None
    assert made.sqnr_db > 20


# -- parts ----------------------------------------------------------------------------------------------------------


def images(count: int = 2) -> list[Tensor]:
    return list(torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def detector() -> Made:
    torch.manual_seed(0)
    return Made(Detector(), (images(),))


def test_an_untraceable_model_is_quantized_in_parts_and_says_what_stopped_tracing(detector: Made) -> None:
    (note,) = detector.prepared.findings
    assert (note.code, note.severity) == ("runs-partly-in-python", "note")
    assert note.evidence["parts"] == ["backbone", "head"]
    assert "foreign_nets.py:" in note.message
    assert detector.int8_layers() == 3
    assert detector.coverage().mac_share == 1
    assert detector.sqnr_db > 20


def test_python_between_the_parts_follows_values_and_lengths(detector: Made) -> None:
    with quantized_engine("x86"), torch.no_grad():
        out = detector.int8(images(5))
    assert [sorted(each) for each in out] == [["boxes", "scores"]] * 5


def test_parts_have_no_names_of_their_own_in_coverage_and_train_as_one_model(detector: Made) -> None:
    assert detector.coverage().leftovers == ()
    before = {name: parameter.detach().clone() for name, parameter in detector.prepared.module.named_parameters()}
    prepared = copy.deepcopy(detector.prepared.module)
    case = QATCase(model=detector.case.model, example_inputs=(images(),),
                   train_data=[((images(),), torch.zeros(4))] * 4,
                   loss_fn=lambda out, target: (out[0]["boxes"] - target).square().mean(),
                   optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    with quantized_engine("x86"):
        done = fine_tune(prepared, case)
        trained = fx.convert(PreparedModel(module=prepared, float_modules={}), RECIPE).module
        after = trained(images())
    assert done.last_loss is not None
    assert done.first_loss is not None
    assert done.last_loss < done.first_loss
    assert any(not torch.equal(before[name], parameter) for name, parameter in prepared.named_parameters())
    assert after[0]["boxes"].abs().mean() < detector.made[0].abs().mean()


def test_the_int8_form_saves_no_float_copy_of_a_part(detector: Made) -> None:
    floats = [name for name, value in detector.int8.state_dict().items()
              if isinstance(value, Tensor) and value.dtype == torch.float32 and value.numel() > 8]
    assert floats == []


class Counting(nn.Module):
    """Keeps what it computed, so that one trace of it would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(8, 8), None

    def forward(self, x: Tensor) -> Tensor:
        made = self.fc(x)
        self.last = made
        return made * 2


def test_a_module_that_keeps_what_it_computes_runs_in_python_with_its_layer_in_int8() -> None:
    model = nn.Sequential(Counting(), nn.ReLU())
    made = Made(model, ROWS)
    assert model[0].last is None
    assert made.prepared.findings[0].evidence["parts"] == ["0.fc"]
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20


def test_hooks_run_in_parts() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model.register_forward_hook(lambda module, args, output: output + 100)
    made = Made(model, ROWS)
    assert made.int8_layers() == 1
    assert float(made.made[0].min()) >= 99


def test_a_part_that_is_called_in_another_form_later_is_refused_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Named()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x=x, extra=1 if float(x.sum()) < 1e6 else 2)["logits"]

    made = Made(Two(), ROWS)
    assert made.prepared.findings[0].evidence["parts"] == ["inner"]
    with quantized_engine("x86"), pytest.raises(Exception, match="inner is called with other arguments"):
        made.int8(ROWS + 1e7)


# -- weights that are asked for --------------------------------------------------------------------------------------


def test_what_forward_asks_of_a_weight_survives_packing() -> None:
    made = Made(AsksWeights(), ROWS)
    assert made.int8_layers() == 2
    assert made.sqnr_db > 20


def test_a_layer_whose_weight_is_read_as_a_tensor_stays_float_with_the_reason() -> None:
    made = Made(Tied(), ROWS)
    assert made.prepared.float_modules == {"a": "its weight is also read as a tensor"}
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20


def test_python_around_parts_may_ask_for_weights_that_are_packed() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e6:
                return x
            made = self.fc(x.to(next(self.fc.parameters()).dtype))
            return made + 0 * self.fc.weight.sum() + self.fc.out_features

    made = Made(Asking(), ROWS)
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20


def test_a_part_that_is_one_layer_stays_a_part_in_copies() -> None:
    """torch's int8 layers bring a `__deepcopy__` of their own, which must not answer for the part around them."""
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x.to(self.conv.weight.dtype))
            return made if float(x.sum()) < 1e6 else x

    image = images(1)[0].unsqueeze(0)
    made = Made(Asking(), image)
    assert made.int8_layers() == 1
    copies = copy.deepcopy(made.int8)
    assert type(copies.get_submodule("conv")) is type(made.int8.get_submodule("conv"))
    assert torch.equal(copies(image), made.int8(image))


# -- eval mode is what ships ----------------------------------------------------------------------------------------


def test_the_float_side_is_the_model_after_its_first_call_in_eval_mode() -> None:
    model = MergesOnFirstCall()
    made = Made(model, ROWS)
    assert model.merged is False
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20
    assert torch.allclose(fx.float_twin(made.case)(ROWS), made.wanted[0], atol=1e-5)


def test_a_branch_for_training_is_not_taken_by_python_around_parts() -> None:
    class Trains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(8, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            made = self.fc(x) if float(x.sum()) < 1e6 else x
            if self.training:
                raise ValueError
            return self.drop(made)

    made = Made(Trains(), ROWS)
    module = made.prepared.module.train()
    assert module.drop.training
    module(ROWS)


# -- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("make", "shape"), [
    (lambda: nn.Conv1d(4, 8, 3, padding="same"), (2, 4, 9)), (lambda: nn.Conv2d(4, 8, 4, padding="same"), (2, 4, 9, 9)),
    (lambda: nn.Conv2d(4, 8, 3, padding="valid"), (2, 4, 9, 9)),
    (lambda: nn.Conv2d(4, 8, (3, 2), dilation=(2, 3), padding="same"), (2, 4, 9, 9)),
])
def test_padding_by_name_is_padding_by_numbers(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    made = Made(nn.Sequential(make(), nn.ReLU()), torch.randn(shape))
    assert made.prepared.findings == ()
    assert made.int8_layers() == 1
    assert made.sqnr_db > 20


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **settings: Any) -> None:
        super().__init__()
        self.rnn: Any = kind(6, 8, batch_first=True, **settings)
        self.fc = nn.Linear(16 if settings.get("bidirectional") else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore:All inputs of this cat operator")
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "num_layers": 2}])
def test_lstm_is_int8_inside(settings: dict[str, Any]) -> None:
    made = Made(Recurrent(nn.LSTM, **settings), torch.randn(5, 7, 6))
    coverage = made.coverage()
    assert (coverage.mac_share, coverage.weight_share) == (1, 1)
    assert made.sqnr_db > 10


def test_gru_stays_float_with_the_reason() -> None:
    made = Made(Recurrent(nn.GRU), torch.randn(5, 7, 6))
    (left,) = made.coverage().leftovers
    assert (left.module, left.kind) == ("rnn", "GRU")


@pytest.mark.slow
def test_torch_compile_works_after_a_trace() -> None:
    """Tracing imports torch's compiler while functions of torch are replaced; the compiler must not keep those."""
    code = (
        "import torch; from torch import nn; from pytest_qat.case import QATCase\n"
        "from pytest_qat.recipe import get_recipe; from pytest_qat.workflows import load_workflow\n"
        "case = QATCase(model=nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), example_inputs=(torch.randn(1, 3, 8, 8),))\n"
        "load_workflow('fx').prepare(case, get_recipe('fx-x86'))\n"
        "import torch._dynamo.guards as guards\n"
        "assert all(isinstance(kind, type) for kind in guards.common_constant_types), guards.common_constant_types\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
