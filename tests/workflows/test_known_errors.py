"""PyTorch's own errors around quantization, provoked and explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx

from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.workflows.known_errors import explain
from tests.workflows.provoked import IMAGES, ROWS, WORDS, Gated, Residual, Stubbed, converted, explained


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


# -- what is known --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "inputs", "op"), [
    (nn.Conv2d(3, 4, 3), IMAGES, "quantized::conv2d"), (nn.Linear(4, 2), ROWS, "quantized::linear"),
])
def test_a_missing_quantstub_names_the_first_int8_layer(layer: nn.Module, inputs: Tensor, op: str) -> None:
    model = converted(Stubbed(nn.Sequential(layer), quantize=False), inputs)
    finding = explained(model, lambda: model(inputs))
    assert finding is not None
    assert (finding.code, finding.module, finding.severity) == ("float-into-int8", "body.0", "error")
    assert op in finding.message
    assert "QuantStub" in finding.remedy


@pytest.mark.parametrize(("body", "op"), [(Residual(), "aten::add"), (Gated(), "aten::mul")])
def test_arithmetic_on_int8_tensors_names_the_module_that_does_it(body: nn.Module, op: str) -> None:
    model = converted(Stubbed(nn.Sequential(nn.Conv2d(3, 3, 1), body)), IMAGES)
    finding = explained(model, lambda: model(IMAGES))
    assert finding is not None
    assert (finding.code, finding.module) == ("op-without-int8-kernel", "body.1")
    assert op in finding.message


def test_a_layer_without_int8_form_is_named() -> None:
    model = converted(Stubbed(nn.Linear(4, 4), head=nn.LayerNorm(4)), ROWS)
    finding = explained(model, lambda: model(ROWS))
    assert finding is not None
    assert (finding.code, finding.module) == ("op-without-int8-kernel", "head")


@pytest.mark.parametrize(("body", "head", "inputs"), [
    (nn.Linear(4, 4), nn.Linear(4, 2), ROWS), (nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), IMAGES),
])
def test_a_missing_dequantstub_names_the_float_layer_behind_it(body: nn.Module, head: nn.Module,
                                                               inputs: Tensor) -> None:
    model = converted(Stubbed(body, head=head), inputs)
    finding = explained(model, lambda: model(inputs))
    assert finding is not None
    assert finding.code == "mixed-dtypes"
    assert finding.module == "head"
    assert "DeQuantStub" in finding.remedy


@pytest.mark.parametrize("operation", [
    lambda int8: int8 + ROWS, lambda int8: ROWS * int8, lambda int8: torch.cat([ROWS, int8]),
    lambda int8: torch.cat([int8, ROWS]),
], ids=["int8 + float", "float * int8", "cat float, int8", "cat int8, float"])
def test_int8_and_float_in_one_operation_are_explained_as_that(operation: Callable[[Tensor], Tensor]) -> None:
    finding = explained(nn.Identity(), lambda: operation(torch.quantize_per_tensor(ROWS, 0.1, 0, torch.quint8)))
    assert finding is not None
    assert finding.code == "mixed-dtypes"


def embedding_by_fx() -> nn.Module:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 2)).train()
    return quantize_fx.prepare_qat_fx(model, tq.get_default_qat_qconfig_mapping("x86"), (WORDS,))


def embedding_eagerly() -> nn.Module:
    return converted(nn.Sequential(nn.Embedding(4, 4), tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub()), WORDS)


@pytest.mark.parametrize("quantize", [embedding_by_fx, embedding_eagerly])
def test_an_embedding_with_the_common_qconfig_is_explained(quantize: Callable[[], nn.Module]) -> None:
    finding = explained(nn.Identity(), quantize)
    assert finding is not None
    assert finding.code == "embedding-qconfig"
    assert "float_qparams_weight_only_qconfig" in finding.remedy


def conv_bn(*, training: tuple[bool, bool]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1).train(training[0]), nn.BatchNorm2d(3).train(training[1]))


@pytest.mark.parametrize(("fuse", "training"), [
    (tq.fuse_modules, (True, True)), (tq.fuse_modules_qat, (True, False)), (tq.fuse_modules_qat, (False, True)),
])
def test_fusing_in_the_wrong_mode_is_explained(fuse: Any, training: tuple[bool, bool]) -> None:
    model = conv_bn(training=training)
    finding = explained(model, lambda: fuse(model, [["0", "1"]]))
    assert finding is not None
    assert finding.code == "fusion-in-wrong-mode"
    assert "train mode" in finding.remedy


def test_preparing_in_eval_mode_is_explained() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    finding = explained(model, lambda: tq.prepare_qat(model))
    assert finding is not None
    assert finding.code == "prepare-in-eval-mode"
    assert ".train()" in finding.remedy


def test_a_per_tensor_observer_with_a_per_channel_scheme_is_explained() -> None:
    finding = explained(nn.Identity(), lambda: tq.MinMaxObserver(qscheme=torch.per_channel_symmetric))
    assert finding is not None
    assert finding.code == "observer-and-qscheme"
    assert "MinMaxObserver" in finding.message


def test_a_quantized_engine_that_is_not_there_is_explained() -> None:
    def choose() -> None:
        torch.backends.quantized.engine = "none"

    finding = explained(nn.Identity(), choose)
    assert finding is not None
    assert finding.code == "no-quantized-engine"


# -- what comes with it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["prepare", "convert"])
def test_stage_and_error_go_along_as_short_plain_evidence(stage: str) -> None:
    model = converted(Stubbed(Residual()), IMAGES)
    finding = explained(model, lambda: model(IMAGES), stage=stage)
    assert finding is not None
    assert finding.evidence["stage"] == stage
    assert finding.evidence["error"].startswith("Could not run 'aten::add")
    assert len(finding.evidence["error"]) <= 200
    json.dumps(finding.as_dict(), allow_nan=False)


def test_an_error_in_the_model_s_own_forward_belongs_to_the_whole_model() -> None:
    model = converted(nn.Sequential(tq.QuantStub(), Residual()), IMAGES)[1]
    finding = explained(model, lambda: model(torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.quint8)))
    assert finding is not None
    assert finding.module is None


def test_modules_of_another_model_are_not_named() -> None:
    model = converted(Stubbed(Residual()), IMAGES)
    finding = explained(nn.Sequential(Residual()), lambda: model(IMAGES))
    assert finding is not None
    assert finding.module is None


# -- what is not quantization's fault -------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [
    lambda: nn.Linear(4, 2)(ROWS.double()),
    lambda: ROWS @ torch.randn(4, 4, dtype=torch.float64),
    lambda: nn.Linear(4, 2)(torch.randn(1, 3)),
    lambda: nn.Conv2d(3, 3, 1)(IMAGES.half()),
    lambda: nn.functional.cross_entropy(ROWS, torch.ones(1)),
    lambda: nn.functional.cross_entropy(ROWS, torch.ones(1, dtype=torch.int32)),
    lambda: nn.functional.mse_loss(ROWS, ROWS, reduction="bad"),
    lambda: {}["weights"],
    lambda: torch.zeros(3)[5],
])
def test_errors_that_have_nothing_to_do_with_quantization_are_left_alone(action: Callable[[], Any]) -> None:
    assert explained(nn.Identity(), action) is None


TEXTS = [
    "the quantized model lost too much accuracy", "Fusion only for eval!", "'scale'", "Guard failed: x.size()[0] == 2",
    "Could not run 'quantized::conv2d.new' with arguments from the 'CPU' backend", "NoQEngine",
    "min nan should be less than max nan", "incoming model must be produced by prepare_fx",
    "Error(s) in loading state_dict for Net: Unexpected key(s) in state_dict: \"fc._packed_params._packed_params\".",
]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError, AssertionError, NotImplementedError])
@pytest.mark.parametrize("text", TEXTS)
def test_what_the_user_raises_is_never_explained(kind: type[Exception], text: str) -> None:
    def checks() -> None:
        raise kind(text)

    assert explained(converted(Stubbed(nn.Linear(4, 4)), ROWS), checks) is None


def test_what_the_user_asserts_is_never_explained() -> None:
    def checks() -> None:
        assert torch.is_inference_mode_enabled(), "Fusion only for eval!"

    assert explained(nn.Identity(), checks) is None


class Unfit(nn.Module):
    """A float model with an ordinary mistake in its forward."""

    def __init__(self, mistake: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.mistake = nn.Conv2d(3, 3, 1), mistake

    def forward(self, x: Tensor) -> Any:
        return self.mistake(self.conv(x))


@pytest.mark.parametrize("mistake", [
    lambda x: x @ torch.ones(5, 5), lambda x: x.view(7, 7), lambda x: torch.cat([x, x[:, :, :2]]), lambda x: x.missing,
    lambda x: {"a": x}["b"], lambda x: x + torch.ones(5), lambda x: torch.histc(x, min=float("nan"), max=float("nan")),
    lambda x: nn.functional.linear(x, torch.ones(4, 4)), lambda x: int("quantized::linear"), lambda x: x.numpy(),
    lambda x: torch.ones(3)[x.long() + 9], lambda x: x.to("cuda:99"), lambda x: (x, x).numel(),
    lambda x: x.sum().backward(x),
])
@pytest.mark.parametrize("int8", [False, True])
def test_ordinary_mistakes_are_left_alone(mistake: Callable[[Tensor], Any], *, int8: bool) -> None:
    model: nn.Module = Unfit(mistake)
    if int8:
        model = converted(nn.Sequential(Stubbed(nn.Conv2d(3, 3, 1)), Unfit(lambda x: x)), IMAGES)
        model[1] = Unfit(mistake)
    assert explained(model, lambda: model(IMAGES)) is None


@pytest.mark.parametrize("train", [
    lambda: torch.optim.SGD([], 0.1), lambda: torch.ones(1).backward(), lambda: nn.Linear(4, 4).half()(ROWS),
    lambda: nn.Linear(4, 4)(ROWS, ROWS), lambda: nn.Sequential(nn.Linear(4, 4)).missing, lambda: nn.Linear(4,
                                                                                                           4).qconfig,
    lambda: nn.Embedding(4, 4)(torch.ones(1, 2)), lambda: nn.BatchNorm2d(3)(ROWS),
])
def test_mistakes_with_float_models_are_left_alone(train: Callable[[], Any]) -> None:
    assert explained(nn.Linear(4, 4), train) is None


def test_an_error_that_the_user_s_was_raised_from_is_explained() -> None:
    model = converted(Stubbed(Residual()), IMAGES)

    def run() -> None:
        try:
            model(IMAGES)
        except NotImplementedError as error:
            raise RuntimeError("evaluation failed") from error

    finding = explained(model, run)
    assert finding is not None
    assert (finding.code, finding.module) == ("op-without-int8-kernel", "body")


def test_an_error_without_a_message_is_left_alone() -> None:
    assert explain(ValueError(), model=nn.Identity(), stage="convert") is None


def test_a_shape_that_export_fixed_is_told_with_what_must_hold() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.words(ids).mean(1)

    model = Tokens()
    program = torch.export.export(model, (torch.zeros(2, 8, dtype=torch.int64),)).module()
    finding = explained(model, lambda: program(torch.zeros(2, 5, dtype=torch.int64)))
    assert finding is not None
    assert finding.code == "shape-fixed-by-export"
    assert "== 8 must hold" in finding.message
    assert "pad token ids" in finding.remedy
