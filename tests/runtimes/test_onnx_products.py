"""What an ONNX model multiplies, against torch's own count, and its activations as uint8, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.exported.program import export_program
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.measure.macs import count_macs
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import onnxruntime as module

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torchao")
from pytest_qat.runtimes.onnxruntime.products import drop_notes, int8_op, original_name, products_of  # noqa: E402
from pytest_qat.runtimes.onnxruntime.unsigned import make_unsigned  # noqa: E402

IMAGE = torch.randn(2, 4, 8, 8)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Attention(nn.Module):
    """Two projections whose products meet: of activations, one of which is in int8, and two of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.query(x), self.key(x)
        return torch.nn.functional.scaled_dot_product_attention(a, b, a) + torch.softmax(a @ b.mT, -1) @ b


class Branches(nn.Module):
    """What goes to several places: a SiLU as sigmoid and product, a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU())
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU())
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.left(x) + x
        return self.head(self.pool(torch.cat([y, self.right(y)], 1)))


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return torch.onnx.export(export_program(model.eval(), inputs, any_batch=False), dynamo=True,
                             verbose=False).model_proto


@pytest.mark.parametrize(("model", "shape"), [
    (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)), (nn.Conv2d(4, 8, 3, groups=2, dilation=2), (2, 4, 9, 9)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1), (1, 4, 5, 5)), (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)), (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    (nn.Linear(8, 3), (4, 8)), (nn.Linear(8, 3), (4, 5, 8)), (nn.Linear(8, 3, bias=False), (4, 8)),
    (Recurrent(nn.LSTM(5, 7, batch_first=True)), (2, 6, 5)), (Recurrent(nn.GRU(5, 7)), (6, 2, 5)),
    (Recurrent(nn.LSTM(5, 7, num_layers=2, bidirectional=True)), (6, 2, 5)),
    (Attention(), (2, 1, 6, 16)), (Branches(), (2, 4, 8, 8)),
    (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (1, 3, 8, 8)),
    (nn.Sequential(nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4))), (1, 3, 8, 8)),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None)
def test_products_are_those_that_torch_counts_by_module(model: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = (torch.randn(shape),)
    counted: Counter[str] = Counter()
    for product in count_macs(model.eval(), inputs).products:
        counted[product.module] += product.macs
    found: Counter[str] = Counter()
    for kernel in products_of(exported(model, inputs).graph):
        assert kernel.module is not None
        assert kernel.macs is not None
        found[kernel.module] += kernel.macs
    assert found == counted


@pytest.mark.parametrize(("name", "original"), [
    ("node_conv2d_1", "node_conv2d_1"), ("node_Conv_3_token_12", "node_Conv_3"),
    ("node_Conv_3_token_12_token_4", "node_Conv_3"), ("node_MatMul_129/MatMulAddFusion", "node_MatMul_129"),
    ("node_MatMul_180/MatMulScaleFusion/", "node_MatMul_180"), ("fused node_Conv_3", "node_Conv_3"),
    ("", "")])
def test_what_is_fused_is_known_by_its_first_name(name: str, original: str) -> None:
    assert original_name(name) == original


def run_of(model: nn.Module, inputs: tuple[Any, ...]) -> ModelRun:
    torch.manual_seed(0)
    batches = [tuple(torch.randn_like(each) for each in inputs) for _ in range(4)]
    return ModelRun(QATCase(model=model.eval(), example_inputs=inputs, calibration_data=batches),
                    get_recipe("pt2e-onnxruntime"), RunSettings(tolerances=Tolerances()), lock=MachineLock())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "inputs", "in_float"), [
    (Branches(), (IMAGE,), {}),
    (Attention(), (torch.randn(2, 1, 6, 16),), {"": 3 * 2 * 6 * 6 * 16}),
    (nn.Sequential(nn.Linear(5, 4), Recurrent(nn.LSTM(4, 6, batch_first=True)), nn.Linear(6, 3)),
     (torch.randn(2, 7, 5),), {"1.layer": 2 * 7 * 4 * 6 * (4 + 6)}),
], ids=["branches", "attention", "lstm"])
def test_each_part_in_float_is_named_with_its_products(model: nn.Module, inputs: tuple[Any, ...],
                                                       in_float: dict[str, int]) -> None:
    run = run_of(model, inputs)
    try:
        found = run.coverage()
        assert {left.module: left.macs for left in found.leftovers} == in_float
        assert found.int8_macs == found.macs - sum(in_float.values())
    finally:
        run.close()


def outputs_of(content: bytes, inputs: np.ndarray, *, optimized: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return found


def shipped(model: nn.Module, inputs: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the model as PT2E quantizes it, and as it ships."""
    run = run_of(model, inputs)
    try:
        int8 = run.converted().int8.module
        program = torch.export.export(int8, inputs)
        signed: list[bytes] = []
        monkeypatch.setattr(module, "make_unsigned", lambda model: (
            signed.append(model.SerializeToString()), make_unsigned(model)))
        content = module.OnnxRuntime().lower(program).content
    finally:
        run.close()
    return onnx.load_from_string(signed[0]), onnx.load_from_string(content)


@pytest.mark.parametrize(("model", "inputs"), [(Branches(), (IMAGE,)), (Attention(), (torch.randn(2, 1, 6, 16),))],
                         ids=["branches", "attention"])
def test_uint8_activations_compute_the_same_and_reach_every_integer_kernel(
        model: nn.Module, inputs: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    signed, unsigned = shipped(model, inputs, monkeypatch)
    for scale in (0.1, 1.0, 30.0):  # saturating, too
        values = (torch.randn_like(inputs[0]) * scale).numpy()
        assert np.array_equal(outputs_of(signed.SerializeToString(), values),
                              outputs_of(unsigned.SerializeToString(), values))
    constants = {tensor.name: tensor.data_type for tensor in unsigned.graph.initializer}
    of_activations = {constants[node.input[2]] for node in unsigned.graph.node if node.op_type == "QuantizeLinear"}
    assert of_activations == {onnx.TensorProto.UINT8}
    read = {name for node in unsigned.graph.node for name in node.input}
    assert set(constants) <= read
    onnx.checker.check_model(unsigned, full_check=True)


def test_nothing_of_the_users_code_is_in_the_file() -> None:
    model = exported(Branches(), (IMAGE,))
    assert Path(__file__).name.encode() in model.SerializeToString()
    drop_notes(model.graph)
    assert Path(__file__).name.encode() not in model.SerializeToString()
    content = module.OnnxRuntime().lower(export_program(Branches().eval(), (IMAGE,), any_batch=False)).content
    assert Path(__file__).name.encode() not in content


def quantized_graph(*, zero_point: Any, readers: list[str], returned: bool) -> Any:
    """Return input -> QuantizeLinear -> readers, by hand."""
    helper = onnx.helper
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])]
    for index, op in enumerate(readers):
        extra = ["scale", "zero"] if op == "DequantizeLinear" else []
        nodes.append(helper.make_node(op, ["q", *extra], [f"y{index}"]))
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in (
        *(f"y{index}" for index in range(len(readers))), *(["q"] if returned else []))]
    return helper.make_model(helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])], outputs,
        [onnx.numpy_helper.from_array(np.float32(0.1), "scale"), onnx.numpy_helper.from_array(zero_point, "zero")]))


@pytest.mark.parametrize(("zero_point", "readers", "returned", "turned"), [
    (np.int8(-128), ["DequantizeLinear"], False, [0]), (np.int8(0), ["DequantizeLinear"], False, [128]),
    (np.int8(127), ["DequantizeLinear"] * 3, False, [255]), (np.uint8(7), ["DequantizeLinear"], False, None),
    (np.int16(7), ["DequantizeLinear"], False, None), (np.int8(3), ["DequantizeLinear", "Identity"], False, None),
    (np.int8(3), ["Identity"], False, None), (np.int8(3), ["DequantizeLinear"], True, None),
    (np.int8(3), [], True, None)])
def test_only_what_is_dequantized_again_is_turned(zero_point: Any, readers: list[str], returned: bool,
                                                  turned: list[int] | None) -> None:
    model = quantized_graph(zero_point=zero_point, readers=readers, returned=returned)
    before = model.SerializeToString()
    make_unsigned(model)
    if turned is None:
        assert model.SerializeToString() == before
        return
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name != "scale"]
    assert onnx.numpy_helper.to_array(tensor) == turned
    assert tensor.data_type == onnx.TensorProto.UINT8
    assert {node.input[2] for node in model.graph.node} == {tensor.name}


def test_every_integer_kernel_counts_as_int8() -> None:
    assert int8_op("QLinearConv") is True
    assert int8_op("Conv") is False
    assert int8_op("Relu") is None
