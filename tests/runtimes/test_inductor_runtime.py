"""A compiled conv net with one skipped linear layer (oneDNN's quantized linear kernel crashes on some machines)."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils import fuse_conv_bn_eval

from pytest_qat.case import QATCase
from pytest_qat.core.forked import Crash
from pytest_qat.core.torch_state import threads
from pytest_qat.errors import CheckFailed, MeasurementError, MissingPackage
from pytest_qat.finetune import calibrate
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import Deployed, DeployedPair, DeploySettings, Kernel, inductor, load_runtime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.runtimes.inductor import InductorRuntime
from tests.answers import quietly, sqnr_db

pytestmark = pytest.mark.slow

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAMED = (Kernel(int8=False, op="conv2d", module="conv", macs=100), Kernel(int8=False, op="linear", module="fc", macs=9))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.wide = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(self.wide(self.relu(self.bn(self.conv(x)))).mean((2, 3)))}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    pytest.importorskip("torchao")
    from pytest_qat.workflows import pt2e

    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    recipe = get_recipe("pt2e-inductor")
    with quietly():
        fp32 = Net().eval()
        twin = copy.deepcopy(fp32)  # torchao looks half a minute for BatchNorms to fold
        twin.conv, twin.bn = fuse_conv_bn_eval(twin.conv, twin.bn), nn.Identity()  # type: ignore[assignment]
        prepared = pt2e.prepare(QATCase(model=twin, example_inputs=(IMAGES,), skip=("fc",)), recipe)
        calibrate(prepared.module, [(IMAGES,)])
        return {"fp32": fp32, "int8": pt2e.convert(prepared, recipe).module}


@pytest.fixture(scope="module")
def runtime() -> InductorRuntime:
    return InductorRuntime()


@pytest.fixture(scope="module")
def pair(runtime: InductorRuntime, models: dict[str, nn.Module],
         tmp_path_factory: pytest.TempPathFactory) -> DeployedPair:
    with quietly():
        return runtime.deploy(models["fp32"], models["int8"], (IMAGES,), tmp_path_factory.mktemp("inductor"),
                               DeploySettings(engine=None, threads=1, timeout_s=300))


def form_of(pair: DeployedPair, side: str) -> Deployed:
    return (pair.fp32 if side == "fp32" else pair.int8)["contiguous"]


def run(form: Deployed, images: Tensor) -> Tensor:
    with quietly(), form.session():
        found = run_batch(form, (images,))
    assert list(found) == ["logits"]
    logits: Tensor = found["logits"]
    return logits


def answer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)["logits"]
    return logits


def test_the_recipe_finds_it_by_name() -> None:
    assert isinstance(load_runtime(get_recipe("pt2e-inductor").runtime), InductorRuntime)


@pytest.mark.parametrize(("side", "least_db"), [("fp32", 80.0), ("int8", 20.0)])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_compiled_program_answers_as_its_model(models: dict[str, nn.Module], pair: DeployedPair, side: str,
                                                 least_db: float, samples: int) -> None:
    images = torch.randn(samples, 3, 8, 8)
    assert sqnr_db(answer(models[side], images), run(form_of(pair, side), images)) > least_db


def test_deploying_compiles_so_that_nothing_later_does(runtime: InductorRuntime, pair: DeployedPair) -> None:
    assert {form_of(pair, side).artifact for side in ("fp32", "int8")} <= set(runtime._code)


def test_the_program_of_the_int8_model_is_far_smaller(pair: DeployedPair) -> None:
    fp32, int8 = form_of(pair, "fp32"), form_of(pair, "int8")
    assert [form.artifact.name for form in (fp32, int8)] == ["fp32.program.pt2", "int8.program.pt2"]
    assert int8.size_bytes == int8.artifact.stat().st_size < 0.6 * fp32.size_bytes
    largest = max(int8.tensors, key=lambda entry: entry.size_bytes)
    assert (largest.dtype, largest.size_bytes) == ("int8", 64 * 64 * 9)


@pytest.mark.parametrize(("side", "int8"), [("fp32", []), ("int8", ["conv", "wide"])])
def test_kernels_are_those_of_the_generated_code_with_the_user_s_names(pair: DeployedPair, side: str,
                                                                       int8: list[str]) -> None:
    kernels = form_of(pair, side).kernels or ()
    assert {kernel.module: kernel.macs for kernel in kernels} == {
        "conv": 2 * 64 * 64 * 27, "wide": 2 * 64 * 64 * 576, "fc": 2 * 512}
    assert [kernel.module for kernel in kernels if kernel.int8] == int8
    assert all(bool(kernel.reason) is not kernel.int8 for kernel in kernels)


def test_threads_inference_mode_and_its_tensors_do_not_compile_anew(pair: DeployedPair) -> None:
    form = form_of(pair, "fp32")
    run(form, IMAGES)
    before = counters["stats"]["unique_graphs"]
    for count in (1, 2):
        with threads(count):
            run(form, IMAGES)
            with torch.inference_mode():
                run(form, IMAGES)
                run(form, IMAGES.clone())
            assert torch.get_num_threads() == count
    with torch.enable_grad():
        form.run(form.adapt((IMAGES,)))
    assert counters["stats"]["unique_graphs"] == before


def test_a_program_loaded_again_is_frozen_again(pair: DeployedPair) -> None:
    form = form_of(pair, "fp32")
    expected = run(form, IMAGES)
    packed = "mkldnn_conv_weight_pack_matcher_count"
    with quietly():
        before = counters["inductor"][packed]
        (found,) = InductorRuntime().load(form.artifact, threads=1)([IMAGES])
        assert torch.allclose(found, expected, atol=1e-5)
        if before:
            assert counters["inductor"][packed] > before


def test_memory_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"int8\.program"):
        InductorRuntime().load_program(tmp_path / "int8.program")


def test_without_a_compiler_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingPackage, match=r"C\+\+ compiler") as caught:
        InductorRuntime().deploy(Net(), Net(), (IMAGES,), tmp_path, DeploySettings(engine=None, threads=1, timeout_s=1))
    assert "g++" in caught.value.hint


# -- a kernel that crashes --------------------------------------------------------------------------------------------


class Quantized(nn.Module):
    """A linear layer between quantize and dequantize, as PT2E converts it."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(rows, columns, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        codes = ops.quantize_per_tensor(x, 0.1, 0, 0, 255, torch.uint8)
        return nn.functional.linear(ops.dequantize_per_tensor(codes, 0.1, 0, 0, 255, torch.uint8),
                                    ops.dequantize_per_tensor(self.weight, 0.1, 0, -127, 127, torch.int8))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.first, self.fc = nn.Linear(6, 6), Quantized(6, 6), Quantized(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.first(self.plain(x)))


def test_the_shapes_of_int8_linear_layers_are_tried_and_the_one_that_crashes_is_named(
        monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.ao.quantization.fx._decomposed

    tried = []

    def crash_of(model: Any, batches: Any) -> Crash | None:
        tried.append((tuple(model.weight.shape), tuple(batches[0][0].shape)))
        return Crash(signal_name="SIGILL", meaning="Illegal instruction", module=None) if len(tried) == 2 else None

    monkeypatch.setattr(inductor, "crash_of", crash_of)
    program = torch.export.export(Head().eval(), (torch.randn(2, 5, 6),))
    with pytest.raises(CheckFailed) as caught:
        InductorRuntime().check_program(program)
    assert tried == [((6, 6), (10, 6)), ((4, 6), (10, 6))]
    (finding,) = caught.value.findings
    assert (finding.code, finding.module) == ("native-crash", "fc")
    assert finding.evidence == {"signal": "SIGILL", "input": [10, 6], "weight": [4, 6]}


def test_the_kernel_that_is_tried_computes_a_product() -> None:
    if torch.backends.mkldnn.is_available():
        found = inductor._Int8Linear(16, 8)(torch.full((2, 8), 3, dtype=torch.uint8))
        assert torch.equal(found, torch.full((2, 16), 24.0))


# -- reading generated code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "int8", "op"), [
    ("buf1 = torch.ops.onednn.qconv_pointwise.tensor(x, 0.1)", True, "onednn.qconv_pointwise"),
    ("buf1 = torch.ops.onednn.qlinear_pointwise.default(x)", True, "onednn.qlinear_pointwise"),
    ("extern_kernels._int_mm(x, y, out=buf1)", True, "extern_kernels._int_mm"),
    ("cpp_fused__int_mm_0(x, y)", True, "cpp_fused__int_mm_0"),
    ("buf1 = torch.ops.mkldnn._convolution_pointwise.default(x)", False, "mkldnn._convolution_pointwise"),
    ("buf1 = torch.ops.mkldnn._linear_pointwise.default(x)", False, "mkldnn._linear_pointwise"),
    ("buf1 = torch.ops.mkl._mkl_linear.default(x)", False, "mkl._mkl_linear"),
    ("extern_kernels.addmm(bias, x, y)", False, "extern_kernels.addmm"),
    ("buf1 = extern_kernels.convolution(x, y)", False, "extern_kernels.convolution"),
])
def test_every_known_call_is_a_kernel(line: str, int8: bool, op: str) -> None:
    (kernel,) = inductor._kernels_of_code(f"def call(args):\n    {line}\n", ())
    assert (kernel.int8, kernel.op, bool(kernel.reason)) == (int8, op, not int8)


def test_comments_asserts_and_code_before_the_call_are_not_kernels() -> None:
    code = """
extern_kernels.mm(a, b)  # while the module is loaded
def call(args):
    # extern_kernels.mm(x, y)
    buf1 = torch.ops.mkldnn._convolution_pointwise.default(x, y)
    assert_size_stride(buf1, (2, 3), 'torch.ops.mkldnn._convolution_pointwise.default')
    cpp_fused_mean_0(buf1)
    buf2 = torch.ops.mkl._mkl_linear.default(buf1)
"""
    assert [(kernel.module, kernel.macs) for kernel in inductor._kernels_of_code(code, NAMED)] == [
        ("conv", 100), ("fc", 9)]
