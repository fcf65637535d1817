"""Errors of calling converted models, over layer types, engines and workflows."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.nn import functional as F

from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.workflows.known_errors import explain
from tests.workflows.provoked import IMAGES, ROWS, SIGNALS, VOLUMES, Net, Stubbed, Then, by_fx, check, explained, static

ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
STEPS = torch.randn(3, 2, 4)
TENSOR_WEIGHTS = tq.QConfig(activation=tq.default_observer, weight=tq.default_weight_observer)
FloatFunctional = torch.ao.nn.quantized.FloatFunctional


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


def fused(model: nn.Module) -> nn.Module:
    return tq.fuse_modules(model, [["0", "1"]])


class Functional(nn.Module):
    def __init__(self, method: str, *, mixed: bool = False) -> None:
        super().__init__()
        self.quant, self.method, self.mixed = tq.QuantStub() if mixed else nn.Identity(), method, mixed
        self.functional = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.quant(x), x.t() if self.method == "matmul" else x
        return getattr(self.functional, self.method)(*{
            "cat": ([a, b],), "add_scalar": (a, 2.0), "mul_scalar": (a, 2.0)}.get(self.method, (a, b)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


# -- float where int8 is wanted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("layer", "inputs"), [
    (nn.Conv1d(3, 4, 3), SIGNALS), (nn.Conv2d(3, 4, 3), IMAGES), (nn.Conv3d(3, 4, 3), VOLUMES), (nn.Linear(4, 4), ROWS),
    (nn.BatchNorm2d(3), IMAGES), (nn.Hardswish(), IMAGES), (nn.LayerNorm(4), ROWS), (nn.GroupNorm(1, 3), IMAGES),
    (nn.LeakyReLU(), ROWS), (nn.ELU(), ROWS), (nn.ReLU6(), ROWS), (nn.InstanceNorm2d(3), IMAGES),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "")
def test_a_float_tensor_in_an_int8_layer(layer: nn.Module, inputs: Tensor, engine: str) -> None:
    with quantized_engine(engine):
        model = static(nn.Sequential(nn.Sequential(copy.deepcopy(layer))), inputs, engine=engine)
        check(explained(model, lambda: model(inputs)), "float-into-int8", "QuantStub", "quantized::", module="0.0")


@pytest.mark.parametrize(("layers", "inputs", "op"), [
    ([nn.Conv2d(3, 4, 3), nn.ReLU()], IMAGES, "conv2d_relu"), ([nn.Linear(4, 4), nn.ReLU()], ROWS, "linear_relu"),
    ([nn.Conv1d(3, 4, 3), nn.ReLU()], SIGNALS, "conv1d_relu"), ([nn.BatchNorm2d(3), nn.ReLU()], IMAGES,
                                                                "batch_norm2d_relu"),
])
def test_a_float_tensor_in_a_fused_int8_layer(layers: list[nn.Module], inputs: Tensor, op: str) -> None:
    model = static(nn.Sequential(*layers), inputs, before=fused)
    check(explained(model, lambda: model(inputs)), "float-into-int8", f"quantized::{op}", module="0")


@pytest.mark.parametrize(("layer", "inputs"), [
    (nn.ConvTranspose1d(3, 4, 3), SIGNALS), (nn.ConvTranspose2d(3, 4, 3), IMAGES), (nn.ConvTranspose3d(3, 4, 3),
                                                                                    VOLUMES)])
def test_a_float_tensor_in_a_transposed_convolution(layer: nn.Module, inputs: Tensor) -> None:
    model = static(nn.Sequential(layer), inputs, qconfig=TENSOR_WEIGHTS)
    check(explained(model, lambda: model(inputs)), "float-into-int8", "quantized::conv_transpose", module="0")


@pytest.mark.parametrize("method", ["add", "add_relu", "mul", "cat", "add_scalar", "mul_scalar", "matmul"])
def test_a_float_tensor_in_an_int8_operation_tells_the_line(method: str) -> None:
    model = static(nn.Sequential(Functional(method)), torch.randn(4, 4))
    finding = check(explained(model, lambda: model(torch.randn(4, 4))), "float-into-int8", f"quantized::{method}")
    assert "test_errors_of_int8_calls.py:" in finding.message


def test_a_float_tensor_in_an_int8_lstm_names_the_lstm() -> None:
    model = static(Recurrent(), STEPS)
    check(explained(model, lambda: model(STEPS)), "float-into-int8", module="lstm")


def test_a_float_tensor_in_an_fx_graph_tells_the_user_s_line() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, x)

    custom = PrepareCustomConfig().set_input_quantized_indexes([0])
    model = quantize_fx.convert_fx(by_fx(nn.Sequential(Doubled(), nn.Linear(4, 4)), ROWS, custom=custom))
    finding = check(explained(model, lambda: model(ROWS)), "float-into-int8", "quantized::add")
    assert "test_errors_of_int8_calls.py:" in finding.message


def test_a_tensor_that_is_quantized_twice() -> None:
    model = static(nn.Sequential(tq.QuantStub(), tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub()), ROWS)
    check(explained(model, lambda: model(ROWS)), "quantized-twice", "QuantStub", module="1")


# -- int8 where there is no kernel for it ---------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "op", "remedy"), [
    (lambda x: x + x, "aten::add (the operator +)", "FloatFunctional() in __init__"),
    (lambda x: x * x, "aten::mul", "FloatFunctional"), (lambda x: x @ x.t(), "aten::mm", "matmul"),
    (lambda x: x - x, "aten::sub", "DeQuantStub"), (lambda x: x / x, "aten::div", "DeQuantStub"),
    (lambda x: -x, "aten::neg", "DeQuantStub"), (lambda x: x ** 2, "aten::pow", "DeQuantStub"),
    (lambda x: F.softmax(x, 1), "aten::_softmax", "DeQuantStub"), (F.silu, "aten::silu", "DeQuantStub"),
    (lambda x: F.layer_norm(x, (4,)), "aten::native_batch_norm", "DeQuantStub"),
    (lambda x: F.rms_norm(x, (4,)), "rms_norm", "DeQuantStub"), (lambda x: x + 1, "this operation", "DeQuantStub"),
    (F.normalize, "linalg.vector_norm", "DeQuantStub"), (torch.exp, "aten::exp", "DeQuantStub"),
    (lambda x: torch.where(x.dequantize() > 0, x, x), "aten::where", "DeQuantStub"),
    (lambda x: torch.bmm(x[None], x.t()[None]), "aten::bmm", "FloatFunctional"),
    (lambda x: F.embedding(x, torch.ones(4, 4)), "embedding", "DeQuantStub"),
    (lambda x: torch.from_numpy(x.numpy()), "this operation", "DeQuantStub"),
])
def test_an_operation_without_int8_kernel_tells_op_and_line(function: Callable[[Tensor], Any], op: str,
                                                            remedy: str) -> None:
    model = static(nn.Sequential(tq.QuantStub(), Then(lambda x: x), tq.DeQuantStub()), ROWS)
    model[1].function = function
    finding = check(explained(model, lambda: model(ROWS)), "op-without-int8-kernel", op, remedy, module="1")
    assert re.search(r"(test_errors_of_int8_calls|provoked)\.py:\d+", finding.message)


@pytest.mark.parametrize(("head", "inputs"), [
    (nn.LayerNorm(4), ROWS), (nn.GroupNorm(1, 3), IMAGES), (nn.Conv2d(3, 3, 1, bias=False), IMAGES),
    (nn.ConvTranspose2d(3, 3, 1), IMAGES), (nn.BatchNorm2d(3), IMAGES), (nn.Linear(4, 4, bias=False), ROWS),
    (nn.SiLU(), ROWS), (nn.Conv1d(3, 3, 1), SIGNALS), (nn.PReLU(), ROWS), (nn.Linear(4, 4), ROWS)])
def test_int8_in_a_float_layer_names_it_and_its_type(head: nn.Module, inputs: Tensor) -> None:
    model = static(Stubbed(nn.Hardswish(), head=nn.Sequential(head)), inputs)
    finding = explained(model, lambda: model(inputs))
    assert finding is not None
    assert finding.code in ("op-without-int8-kernel", "mixed-dtypes")
    assert (finding.module, "DeQuantStub" in finding.remedy) == ("head.0", True)
    assert type(head).__name__ in finding.message


@pytest.mark.parametrize(("layer", "inputs"), [(nn.Linear(4, 4), ROWS), (nn.LSTM(4, 4), STEPS), (nn.GRU(4, 4), STEPS)])
def test_int8_in_a_dynamic_layer(layer: nn.Module, inputs: Tensor) -> None:
    model = nn.Sequential(tq.quantize_dynamic(nn.Sequential(layer), {type(layer)}))
    int8 = torch.quantize_per_tensor(inputs, 0.1, 0, torch.quint8)
    check(explained(model, lambda: model(int8)), "op-without-int8-kernel", "dynamically", "DeQuantStub", module="0.0")


@pytest.mark.parametrize("method", ["add", "add_relu", "mul", "cat", "matmul"])
def test_int8_and_float_in_one_functional(method: str) -> None:
    model = static(nn.Sequential(Functional(method, mixed=True)), torch.randn(4, 4))
    check(explained(model, lambda: model(torch.randn(4, 4))), "mixed-dtypes")


def test_two_int8_dtypes_that_are_joined() -> None:
    parts = [torch.quantize_per_tensor(ROWS, 0.1, 0, dtype) for dtype in (torch.quint8, torch.qint8)]
    check(explained(nn.Identity(), lambda: torch.cat(parts)), "mixed-dtypes", "dtype")


@pytest.mark.parametrize("cast", [lambda x: x.float(), lambda x: x.to(torch.float16), lambda x: x.double()])
def test_a_cast_of_an_int8_tensor(cast: Callable[[Tensor], Tensor]) -> None:
    int8 = torch.quantize_per_tensor(ROWS, 0.1, 0, torch.quint8)
    check(explained(nn.Identity(), lambda: cast(int8)), "int8-tensor-cast", ".dequantize()")


# -- the output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [
    lambda y: F.softmax(y, 1), lambda y: nn.CrossEntropyLoss()(y, torch.tensor([1])), lambda y: F.mse_loss(y, ROWS),
    lambda y: nn.L1Loss()(y, y), lambda y: y.argmax(1), lambda y: y.numpy(), lambda y: y - ROWS, lambda y: y.sum(),
    lambda y: F.binary_cross_entropy_with_logits(y, ROWS)])
@pytest.mark.parametrize("fx", [False, True])
def test_an_output_that_was_never_dequantized_is_told_as_that(used: Callable[[Tensor], Any], *, fx: bool) -> None:
    if fx:
        custom = PrepareCustomConfig().set_output_quantized_indexes([0])
        model = quantize_fx.convert_fx(by_fx(nn.Sequential(nn.Linear(4, 4)), ROWS, custom=custom))
    else:
        model = static(nn.Sequential(tq.QuantStub(), nn.Linear(4, 4)), ROWS)
    output = model(ROWS)
    finding = check(explained(model, lambda: used(output)), "output-not-dequantized", "DeQuantStub", "output")
    assert finding.module is None


# -- dtypes and shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_an_input_of_another_dtype(dtype: torch.dtype) -> None:
    model = static(nn.Sequential(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub()), ROWS)
    check(explained(model, lambda: model(ROWS.to(dtype))), "input-not-float32", ".float()", module="0")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("layer", "inputs"), [(nn.Linear(4, 4), ROWS), (nn.LSTM(4, 4), STEPS)])
def test_an_input_of_another_dtype_in_a_dynamic_layer(layer: nn.Module, inputs: Tensor, engine: str) -> None:
    with quantized_engine(engine):
        model = tq.quantize_dynamic(nn.Sequential(copy.deepcopy(layer)), {type(layer)})
        check(explained(model, lambda: model(inputs.double())), "input-not-float32", ".float()", module="0")


def test_a_prepared_model_in_half_precision() -> None:
    model = nn.Sequential(tq.QuantStub(), nn.Linear(4, 4)).train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    prepared = tq.prepare_qat(model)
    check(explained(prepared, lambda: prepared.half()(ROWS.half())), "input-not-float32", module="0")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("layer", "inputs"), [(nn.Linear(4, 4), ROWS), (nn.Conv2d(3, 4, 3), IMAGES)])
@pytest.mark.parametrize("dtype", [torch.qint32, torch.int8])
def test_activations_of_a_dtype_without_kernel(layer: nn.Module, inputs: Tensor, engine: str,
                                               dtype: torch.dtype) -> None:
    qconfig = tq.QConfig(activation=tq.MinMaxObserver.with_args(dtype=dtype), weight=tq.default_weight_observer)
    with quantized_engine(engine):
        model = static(nn.Sequential(tq.QuantStub(), copy.deepcopy(layer)), inputs, qconfig=qconfig)
        check(explained(model, lambda: model(inputs)), "activation-dtype", "torch.quint8")


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "qnnpack"])  # reads past the end instead
@pytest.mark.parametrize(("layer", "inputs", "wrong"), [
    (nn.Linear(4, 4), ROWS, torch.randn(1, 5)), (nn.Conv2d(3, 4, 3), IMAGES, torch.randn(1, 5, 8, 8)),
    (nn.Conv1d(3, 4, 3), SIGNALS, torch.randn(1, 4, 8)), (nn.Conv2d(3, 4, 3), IMAGES, torch.randn(3, 8, 8)),
    (nn.Conv3d(3, 4, 3), VOLUMES, torch.randn(1, 3, 8, 8))])
def test_a_shape_that_does_not_fit_the_int8_layer(layer: nn.Module, inputs: Tensor, wrong: Tensor, engine: str) -> None:
    with quantized_engine(engine):
        model = static(nn.Sequential(tq.QuantStub(), copy.deepcopy(layer), tq.DeQuantStub()), inputs, engine=engine)
        check(explained(model, lambda: model(wrong)), "int8-shape", "takes", "of shape", module="1")


@pytest.mark.parametrize("use", [lambda model: model(IMAGES).sum().backward(),
                                 lambda model: torch.optim.SGD(model.parameters(), 0.1)])
def test_training_a_converted_model(use: Callable[[nn.Module], Any]) -> None:
    model = quantize_fx.convert_fx(by_fx(Net(stubs=False), IMAGES))
    check(explained(model, lambda: use(model)), "training-converted", "train the prepared model")


PUBLISHED = [  # no GPU is needed to read them
    "Could not run 'quantized::conv2d.new' with arguments from the 'CUDA' backend. This could be because ...",
    "Could not run 'quantized::linear' with arguments from the 'QuantizedCUDA' backend. This could be because ...",
    ("Didn't find kernel to dispatch to for operator 'quantized::conv_prepack'. Tried to look up kernel for dispatch "
     "key 'CUDATensorId'. Registered dispatch keys are: [QuantizedCPUTensorId]"),
    "Could not run 'quantized::conv2d_relu.new' with arguments from the 'MPS' backend.",
]


@pytest.mark.parametrize("text", PUBLISHED)
def test_a_converted_model_on_a_gpu(text: str) -> None:
    check(explain(NotImplementedError(text), model=nn.Identity(), stage="convert"), "int8-on-gpu", "CPU", "quantized::")


def test_a_missing_kernel_of_the_gpu_is_not_quantization() -> None:
    error = NotImplementedError("Could not run 'aten::foo' with arguments from the 'CUDA' backend.")
    assert explain(error, model=nn.Identity(), stage="convert") is None
