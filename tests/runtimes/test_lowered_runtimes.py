"""ExecuTorch, LiteRT and ONNX Runtime on one small model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase
from pytest_qat.errors import MissingPackage
from pytest_qat.finetune import calibrate
from pytest_qat.measure.coverage import coverage_of_kernels
from pytest_qat.measure.macs import count_macs
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import Deployed, DeployedPair, DeploySettings, load_runtime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.runtimes.exported import ExportedRuntime
from pytest_qat.runtimes.flat import leaves_of
from pytest_qat.runtimes.graph_kernels import REFERENCE_REASON, kernels_of
from tests.answers import agree, answer, assert_op_is_timed, quietly, skip_where_kernels_saturate

pytestmark = pytest.mark.slow

RECIPES = ["pt2e-executorch", "pt2e-litert", "pt2e-onnxruntime"]
SUFFIX = {"pt2e-executorch": ".pte", "pt2e-litert": ".tflite", "pt2e-onnxruntime": ".onnx"}
SETTINGS = DeploySettings(engine=None, threads=1, timeout_s=300)
SIDES = ["fp32", "int8"]
INT8 = ["conv", "wide", "fc"]
SKIPPED = "side"


class Found(NamedTuple):
    """What the model returns: in no order of the alphabet or of numbers, and with something that is no tensor."""

    levels: dict[str, Tensor]
    kind: str
    logits: Tensor


class Net(nn.Module):
    """Two inputs, and three outputs of which two look alike: whoever mixes them up is seen."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 8)
        self.side = nn.Linear(6, 8)
        nn.init.uniform_(self.bn.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
        nn.init.uniform_(self.bn.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, images: Tensor, extra: Tensor) -> Found:
        pooled = self.wide(self.relu(self.bn(self.conv(images)))).mean((2, 3))
        logits = self.fc(pooled)
        return Found(levels={"p5": self.side(extra), "p4": extra - 1}, kind="raw", logits=logits)


def tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def batch(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 3, 8, 8, generator=generator), torch.randn(samples, 6, generator=generator)


EXAMPLE = batch(2)


class Models:
    """The float model, its converted forms, and what was deployed of them: each made once, on first need."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prepared: Any = None
        self._converted: dict[bool, nn.Module] = {}
        self._pairs: dict[str, DeployedPair] = {}
        with quietly():
            self.fp32 = Net().eval()

    def converted(self, *, fold: bool) -> nn.Module:
        """Convert a twin whose BatchNorm is folded before: torchao looks half a minute for what to fold itself."""
        from pytest_qat.workflows import pt2e

        if self._prepared is None:
            twin = copy.deepcopy(self.fp32)
            twin.conv, twin.bn = fuse_conv_bn_eval(twin.conv, twin.bn), nn.Identity()  # type: ignore[assignment]
            with quietly():
                self._prepared = pt2e.prepare(QATCase(model=twin, example_inputs=EXAMPLE, skip=(SKIPPED,)),
                                              get_recipe("pt2e-torch"))
                calibrate(self._prepared.module, [EXAMPLE, batch(3), batch(5)])
        if fold not in self._converted:
            recipe = get_recipe("pt2e-torch" if fold else "pt2e-litert")
            assert recipe.fold_quantize is fold
            with quietly():
                self._converted[fold] = pt2e.convert(self._prepared, recipe).module
        return self._converted[fold]

    def reference(self, side: str, name: str) -> nn.Module:
        return self.fp32 if side == "fp32" else self.converted(fold=get_recipe(name).fold_quantize)

    def deployed(self, name: str) -> DeployedPair:
        recipe = get_recipe(name)
        try:
            recipe.require_packages()
        except MissingPackage as error:
            pytest.skip(error.message)
        if name not in self._pairs:
            folder = self._folder / name
            folder.mkdir()
            int8 = self.converted(fold=recipe.fold_quantize)
            with quietly():
                self._pairs[name] = load_runtime(recipe.runtime).deploy(self.fp32, int8, EXAMPLE, folder, SETTINGS)
        return self._pairs[name]

    def form(self, side: str, name: str) -> Deployed:
        return (self.deployed(name).fp32 if side == "fp32" else self.deployed(name).int8)["contiguous"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    pytest.importorskip("torchao")
    return Models(tmp_path_factory.mktemp("artifacts"))


# -- what ships -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("side", "least_db"), [("fp32", 80.0), ("int8", 20.0)])
def test_an_artifact_answers_as_the_model_it_is_made_from(models: Models, name: str, side: str,
                                                          least_db: float) -> None:
    skip_where_kernels_saturate(name, side)
    form = models.form(side, name)
    with form.session():
        found = form.run(form.adapt(EXAMPLE))
    assert agree(answer(models.reference(side, name), EXAMPLE), found, least_db=least_db)
    assert type(found) is Found
    assert (list(found.levels), found.kind) == (["p5", "p4"], "raw")


@pytest.mark.parametrize("name", RECIPES)
def test_the_artifacts_are_files_and_the_int8_one_is_far_smaller(models: Models, name: str) -> None:
    fp32, int8 = (models.form(side, name) for side in SIDES)
    assert [form.artifact.name for form in (fp32, int8)] == [f"fp32{SUFFIX[name]}", f"int8{SUFFIX[name]}"]
    assert [form.size_bytes for form in (fp32, int8)] == [form.artifact.stat().st_size for form in (fp32, int8)]
    assert int8.size_bytes < 0.4 * fp32.size_bytes
    assert (int8.batch, int8.layout) == (2, "contiguous")


@pytest.mark.parametrize("name", RECIPES)
def test_no_draft_of_a_file_stays_beside_the_artifacts(models: Models, name: str) -> None:
    suffixes = {path.suffix for path in models.form("int8", name).artifact.parent.iterdir()}
    assert suffixes == {SUFFIX[name], ".pt2", ".json", ".log"}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("side", SIDES)
def test_kernels_name_the_user_s_modules_with_their_macs(models: Models, name: str, side: str) -> None:
    kernels = models.form(side, name).kernels
    assert kernels is not None
    assert {kernel.module: kernel.macs for kernel in kernels} == count_macs(models.fp32, EXAMPLE).by_module
    assert len(kernels) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_the_float_artifact_runs_float_kernels_alone(models: Models, name: str) -> None:
    kernels = models.form("fp32", name).kernels
    assert kernels is not None
    assert not any(kernel.int8 for kernel in kernels)
    assert all(kernel.reason for kernel in kernels)


@pytest.mark.parametrize("name", RECIPES)
def test_only_the_skipped_module_is_float_in_the_int8_artifact(models: Models, name: str) -> None:
    kernels = {kernel.module: kernel for kernel in models.form("int8", name).kernels or ()}
    assert {module: kernel.int8 for module, kernel in kernels.items()} == {
        **dict.fromkeys(INT8, True), SKIPPED: False}
    assert [kernels[module].reason for module in INT8] == ["", "", ""]
    assert kernels[SKIPPED].reason


@pytest.mark.parametrize("name", RECIPES)
def test_the_skip_is_the_reason_in_the_coverage(models: Models, name: str) -> None:
    found = coverage_of_kernels(models.fp32, models.form("int8", name).kernels or (), EXAMPLE,
                                reasons={SKIPPED: "left in float on purpose (skip)"})
    assert [(left.module, left.macs, left.weights, left.reason) for left in found.leftovers] == [
        (SKIPPED, 2 * 48, 48, "left in float on purpose (skip)")]
    assert (found.weights, found.int8_weights) == (27 * 96 + 9 * 96 * 96 + 96 * 8 + 48, 27 * 96 + 9 * 96 * 96 + 96 * 8)
    assert not found.reference


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("samples", [1, 3, 4, 7])
def test_batches_of_any_size_are_answered_sample_by_sample(models: Models, name: str, side: str, samples: int) -> None:
    skip_where_kernels_saturate(name, side)
    inputs, form = batch(samples), models.form(side, name)
    with form.session():
        found = run_batch(form, inputs)
    assert agree(answer(models.reference(side, name), inputs), found, least_db=20.0)


@pytest.mark.parametrize("name", RECIPES)
def test_what_was_answered_stays_as_it_is_in_the_next_call(models: Models, name: str) -> None:
    form = models.form("int8", name)
    first = form.run(form.adapt(EXAMPLE))
    kept = copy.deepcopy(first)
    form.run(form.adapt((EXAMPLE[0] * 3, EXAMPLE[1] * 3)))
    assert all(torch.equal(*pair) for pair in zip(tensors_of(first), tensors_of(kept), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_keywords_may_come_in_any_order(models: Models, name: str) -> None:
    form = models.form("fp32", name)
    images, extra = EXAMPLE
    found = run_batch(form, {"extra": extra, "images": images})
    assert agree(answer(models.fp32, EXAMPLE), found, least_db=80.0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_program_runs_the_artifact_on_its_inputs(models: Models, name: str, tmp_path: Path) -> None:
    form, runtime = models.form("int8", name), load_runtime(get_recipe(name).runtime)
    form.save_program(EXAMPLE, tmp_path / "int8.program")
    found: Any = runtime.load_program(tmp_path / "int8.program")()
    expected = tensors_of(form.run(form.adapt(EXAMPLE)))
    assert all(torch.allclose(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("side", "dtype"), [("fp32", "float32"), ("int8", "int8")])
def test_the_weights_of_the_file_are_told(models: Models, name: str, side: str, dtype: str) -> None:
    stored = models.form(side, name).tensors
    largest = max(stored, key=lambda entry: entry.size_bytes)
    assert (largest.dtype, largest.size_bytes) == (dtype, 96 * 96 * 9 * (4 if dtype == "float32" else 1))


@pytest.mark.parametrize("name", RECIPES)
def test_scales_are_told_from_tensors_and_all_of_them_fit_into_the_file(models: Models, name: str) -> None:
    form = models.form("int8", name)
    assert {entry.shape for entry in form.tensors if entry.qparams} >= {(96,)}, "a scale for each filter"
    assert sum(entry.size_bytes for entry in form.tensors) < form.size_bytes


@pytest.mark.parametrize("name", RECIPES)
def test_artifacts_loaded_for_other_threads_do_not_disturb_each_other(models: Models, name: str) -> None:
    form, runtime = models.form("fp32", name), load_runtime(get_recipe(name).runtime)
    assert isinstance(runtime, ExportedRuntime)
    calls = [runtime.load(form.artifact, threads=threads) for threads in (2, 1)]
    expected = tensors_of(answer(models.fp32, EXAMPLE))
    for call in [*calls, *calls]:
        found = call(leaves_of(EXAMPLE))
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "side", "op"), [
    ("pt2e-executorch", "fp32", "Convolution"), ("pt2e-executorch", "int8", "Convolution"),
    ("pt2e-onnxruntime", "fp32", "Conv"), ("pt2e-onnxruntime", "int8", "QLinearConv")])
def test_convolutions_of_an_artifact_are_timed_by_name(models: Models, name: str, side: str, op: str,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    assert_op_is_timed(models.form(side, name), EXAMPLE, op, capfd)


def test_a_runtime_that_does_not_tell_what_its_ops_take_says_so_by_nothing(models: Models) -> None:
    form = models.form("int8", "pt2e-litert")
    assert form.op_times(form.adapt(EXAMPLE)) == ()


# -- converted, but not lowered -------------------------------------------------------------------------------------


def test_the_reference_form_has_no_int8_kernel_and_says_why(models: Models, tmp_path: Path) -> None:
    recipe = get_recipe("pt2e-torch")
    with quietly():
        pair = load_runtime(recipe.runtime).deploy(models.fp32, models.converted(fold=True), EXAMPLE, tmp_path,
                                                   SETTINGS)
    kernels = pair.int8["contiguous"].kernels or ()
    assert {kernel.module: (kernel.int8, kernel.reason) for kernel in kernels} == {
        **dict.fromkeys(INT8, (False, REFERENCE_REASON)), SKIPPED: (False, "its inputs are not quantized")}
    found = coverage_of_kernels(models.fp32, kernels, EXAMPLE, reasons={})
    assert (found.reference, found.int8_macs, found.int8_weights, found.int8_modules) == (True, 0, 0, 0)


def test_a_float_program_names_its_kernels(tmp_path: Path) -> None:
    with quietly():
        exported = torch.export.export(Net(4).eval(), EXAMPLE)
    assert [kernel.module for kernel in kernels_of(exported.graph_module)] == ["conv", "wide", "fc", "side"]
