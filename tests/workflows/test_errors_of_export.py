"""Errors of torch.export and what it made, of ONNX export, and of saving whole models."""

from __future__ import annotations

import importlib.util
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.workflows.known_errors import explain
from tests.workflows.provoked import IMAGES, ROWS, Net, Then, by_fx, check, explained, static

pytestmark = pytest.mark.slow

TWO = torch.randn(2, 3, 8, 8)
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


def exported(**options: Any) -> nn.Module:
    return torch.export.export(Net(stubs=False).eval(), (TWO,), **options).module()


def pt2e(stage: str) -> nn.Module:
    prepared = prepare_pt2e(exported(), XNNPACKQuantizer().set_global(get_symmetric_quantization_config()))
    prepared(TWO)
    return convert_pt2e(prepared) if stage == "converted" else prepared


GRAPHS: dict[str, Callable[[], nn.Module]] = {
    "exported": exported, "prepared": lambda: pt2e("prepared"), "converted": lambda: pt2e("converted")}


@pytest.mark.parametrize("stage", GRAPHS)
def test_another_batch_size_than_the_example_s(stage: str) -> None:
    graph = GRAPHS[stage]()
    check(explained(graph, lambda: graph(TWO[:1])), "shape-fixed-by-export", "2 rows", 'dynamic_shapes={"x": {0:')


@pytest.mark.parametrize(("inputs", "what"), [(torch.randn(2, 3, 9, 9), "== 8 must hold"), (torch.randn(2, 3, 8, 9),
                                                                                            "== 8")])
def test_another_size_than_the_example_s(inputs: Tensor, what: str) -> None:
    graph = exported()
    check(explained(graph, lambda: graph(inputs)), "shape-fixed-by-export", what, "one shape")


def test_a_batch_that_is_larger_than_the_range() -> None:
    graph = exported(dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=4)}})
    check(explained(graph, lambda: graph(torch.randn(9, 3, 8, 8))), "shape-fixed-by-export", "<= 4 must hold")


@pytest.mark.parametrize("call", [lambda graph: graph(TWO, TWO), lambda graph: graph(), lambda graph: graph({"x": TWO}),
                                  lambda graph: graph(image=TWO)])
def test_other_arguments_than_the_example_s(call: Callable[[nn.Module], Any]) -> None:
    graph = exported()
    check(explained(graph, lambda: call(graph)), "inputs-fixed-by-export", "arguments")


@pytest.mark.parametrize("mode", [lambda graph: graph.eval(), lambda graph: graph.train()])
@pytest.mark.parametrize("stage", GRAPHS)
def test_switching_the_mode_of_a_graph(stage: str, mode: Callable[[nn.Module], Any]) -> None:
    graph = GRAPHS[stage]()
    check(explained(graph, lambda: mode(graph)), "mode-of-exported-graph", "move_exported_model_to_eval")


def while_small(x: Tensor) -> Tensor:
    while x.sum() < 100:
        x = x + 1
    return x


@pytest.mark.parametrize("function", [
    lambda x: x if x.sum() > 0 else -x, lambda x: x * float(x.mean()), lambda x: x * int(x.mean()), while_small,
    lambda x: x if x.max().item() > 3 else -x, lambda x: torch.from_numpy(x.numpy())])
def test_code_that_depends_on_values_names_module_and_line(function: Callable[[Tensor], Any]) -> None:
    model = nn.Sequential(nn.Sequential(Then(function)))
    finding = check(explained(model, lambda: torch.export.export(model, (ROWS,))), "not-exportable", module="0.0")
    assert "test_errors_of_export.py:" in finding.message


@pytest.mark.parametrize(("function", "dimension"), [
    (lambda x: x * len(x), 0), (lambda x: sum(x + i for i in range(x.shape[0])), 0), (lambda x: x, 1)])
def test_a_dynamic_dimension_that_the_model_fixes(function: Callable[[Tensor], Any], dimension: int) -> None:
    model, shapes = Then(function), ({dimension: torch.export.Dim("size")},)
    check(explained(model, lambda: torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=shapes)),
         "dynamic-dimension-fixed", "size")


@pytest.mark.parametrize("dimension", [torch.export.Dim("batch"), torch.export.Dim.DYNAMIC])
def test_a_dynamic_batch_whose_example_has_one_row(dimension: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    check(explained(model, lambda: torch.export.export(model, (ROWS,), dynamic_shapes=({0: dimension},))),
         "dynamic-dimension-fixed", "2 or more")


def int8(workflow: str) -> nn.Module:
    if workflow == "fx":
        return quantize_fx.convert_fx(by_fx(Net(stubs=False), IMAGES))
    if workflow == "dynamic":
        return tq.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {nn.Linear})
    return static(Net(), IMAGES)


@pytest.mark.parametrize("workflow", ["eager", "fx", "dynamic"])
def test_torch_export_of_an_int8_model(workflow: str) -> None:
    model = int8(workflow)
    check(explained(model, lambda: torch.export.export(model, (IMAGES,))), "int8-model-exported", "PT2E")


@needs_onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workflow", ["eager", "fx"])
def test_onnx_export_of_an_int8_model(workflow: str, tmp_path: Path) -> None:
    model = int8(workflow)
    check(explained(model, lambda: torch.onnx.export(
        model, (IMAGES,), tmp_path / "x.onnx", dynamo=True, verbose=False)), "int8-model-exported", "ONNX", "PT2E")


@needs_onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_export_of_fake_quantize(tmp_path: Path, *, dynamo: bool) -> None:
    model = Net().train()
    model.qconfig = tq.get_default_qat_qconfig("x86")
    model = tq.prepare_qat(model).eval()
    check(explained(model, lambda: torch.onnx.export(model, (IMAGES,), tmp_path / "x.onnx", dynamo=dynamo,
                                                    verbose=False)),
         "onnx-export-of-quantized", "fused_moving_avg_obs", "PT2E")


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_onnx_export_of_an_unfused_int8_model(tmp_path: Path) -> None:
    model = int8("eager")
    check(explained(model, lambda: torch.onnx.export(model, (IMAGES,), tmp_path / "x.onnx", dynamo=False,
                                                    verbose=False)),
         "onnx-export-of-quantized", "quantized::batch_norm2d")


@pytest.mark.parametrize("op", ["quantized::conv1d_relu", "aten::quantize_per_channel",
                                "aten::fake_quantize_per_channel_affine"])
def test_published_refusals_of_onnx_export(op: str) -> None:
    error = RuntimeError(f"Exporting the operator '{op}' to ONNX opset version 15 is not supported. Please feel free "
                         f"to ...")
    check(explain(error, model=nn.Identity(), stage="export"), "onnx-export-of-quantized", op)


@pytest.mark.parametrize("text", ["Exporting the operator 'aten::fft_rfft' to ONNX opset version 15 is not supported.",
                                  "No ONNX function found for <OpOverload(op='aten.grid_sampler')>"])
def test_other_refusals_of_onnx_export_are_left_alone(text: str) -> None:
    assert explain(RuntimeError(text), model=nn.Identity(), stage="export") is None


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_a_file(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize(("make", "copied"), [
    (lambda: int8("fx"), pickled), (lambda: pt2e("prepared"), pickled), (lambda: pt2e("converted"), pickled),
    (lambda: tq.prepare_qat(_configured(Net().train())), pickled), (lambda: int8("eager"), through_a_file),
    (lambda: int8("fx"), through_a_file), (lambda: pt2e("converted"), through_a_file)])
def test_pickling_a_whole_model(make: Callable[[], nn.Module], copied: Callable[[nn.Module], Any]) -> None:
    model = make()
    check(explained(model, lambda: copied(model)), "model-not-picklable", "state_dict")


def _configured(model: nn.Module) -> nn.Module:
    model.qconfig = tq.get_default_qat_qconfig("x86")
    return model


@pytest.mark.parametrize("work", [
    lambda: pickle.dumps(lambda: None), lambda: through_a_file(nn.Sequential(Then(lambda x: x))),
    lambda: through_a_file(Net(stubs=False)), lambda: torch.load("no/such/file.pt")])
def test_other_errors_of_pickling_are_left_alone(work: Callable[[], Any]) -> None:
    assert explained(nn.Identity(), work) is None


