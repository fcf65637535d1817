"""The traced and frozen module: what is in the file, and that it computes what the model does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.finetune import calibrate
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import DeployedPair, DeploySettings, load_runtime
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.runtimes.torchscript import TorchScriptRuntime, trace
from pytest_qat.workflows import fx

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RECIPE = get_recipe("fx-torchscript")
SETTINGS = DeploySettings(engine=RECIPE.engine, threads=1, timeout_s=60)
LAYOUTS = ["contiguous", "channels_last"]


class Net(nn.Module):
    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.wide(self.relu(self.bn(self.conv(x)))).mean((2, 3)))


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(left), "rest": left - 2 * right}


class Deciding(nn.Module):
    """Answers with what no trace can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.fc(x), "text": "of no use to TorchScript"}


@pytest.fixture(autouse=True)
def _engine_put_back() -> Iterator[None]:
    with preserved_torch_state():
        yield


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    with preserved_torch_state(seed=0), quantized_engine("x86"):
        model = Net().eval()
        prepared = fx.prepare(QATCase(model=model, example_inputs=(IMAGES,)), RECIPE)
        calibrate(prepared.module, [(IMAGES,)])
        return {"fp32": model, "int8": fx.convert(prepared, RECIPE).module}


@pytest.fixture(scope="module")
def pair(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> DeployedPair:
    with preserved_torch_state(seed=0):
        folder = tmp_path_factory.mktemp("ts")
        return TorchScriptRuntime().deploy(models["fp32"], models["int8"], (IMAGES,), folder, SETTINGS)


def sqnr_db(reference: Tensor, found: Tensor) -> float:
    noise = (reference - found).double().square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise.clamp_min(1e-30)))


def answer(model: nn.Module, *inputs: Tensor) -> Any:
    with quantized_engine("x86"), torch.inference_mode():
        return model(*inputs)


def test_the_recipe_finds_it_by_name() -> None:
    assert isinstance(load_runtime(RECIPE.runtime), TorchScriptRuntime)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("side", "least_db"), [("fp32", 80.0), ("int8", 20.0)])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_file_answers_as_its_model_in_every_batch_size(models: dict[str, nn.Module], pair: DeployedPair, side: str,
                                                         least_db: float, layout: str, samples: int) -> None:
    form, inputs = getattr(pair, side)[layout], torch.randn(samples, 3, 8, 8)
    assert (form.layout, form.batch) == (layout, None)
    with form.session():
        found = run_batch(form, (inputs,))
    assert sqnr_db(answer(models[side], inputs), found) > least_db


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_int8_file_is_far_smaller(pair: DeployedPair, layout: str) -> None:
    fp32, int8 = pair.fp32[layout], pair.int8[layout]
    assert {form.artifact.suffix for form in (fp32, int8)} == {".torchscript"}
    assert [form.size_bytes for form in (fp32, int8)] == [form.artifact.stat().st_size for form in (fp32, int8)]
    assert int8.size_bytes < 0.4 * fp32.size_bytes


def test_the_file_is_frozen_and_runs_without_the_model_s_code(pair: DeployedPair) -> None:
    loaded = torch.jit.load(pair.fp32["contiguous"].artifact)  # type: ignore[no-untyped-call]
    assert list(loaded.parameters()) == []
    assert "batch_norm" not in str(loaded.inlined_graph)
    assert torch.equal(loaded(IMAGES), pair.fp32["contiguous"].run((IMAGES,)))


def test_quantized_kernels_are_in_the_int8_file_alone(pair: DeployedPair) -> None:
    fp32, int8 = (str(torch.jit.load(side["contiguous"].artifact).inlined_graph)  # type: ignore[no-untyped-call]
                  for side in (pair.fp32, pair.int8))
    assert "quantized::conv2d" in int8
    assert "quantized::linear" in int8
    assert "quantized::" not in fp32


def test_the_modules_of_the_converted_model_tell_the_coverage(pair: DeployedPair) -> None:
    assert pair.int8["contiguous"].kernels is None
    weights = {entry.dtype for entry in pair.int8["contiguous"].tensors if "weight" in entry.name and not entry.qparams}
    assert weights == {"qint8"}


@pytest.mark.parametrize("side", ["fp32", "int8"])
def test_a_saved_program_runs_the_same_file(pair: DeployedPair, side: str, tmp_path: Path) -> None:
    form = getattr(pair, side)["channels_last"]
    form.save_program((IMAGES,), tmp_path / "a.program")
    found: Any = TorchScriptRuntime().load_program(tmp_path / "a.program")()
    with form.session():
        assert torch.equal(found, form.run(form.adapt((IMAGES,))))


def test_inputs_without_images_have_one_layout_and_outputs_keep_their_structure(tmp_path: Path) -> None:
    model, inputs = Structured().eval(), (torch.randn(2, 3), torch.randn(2, 3))
    found = TorchScriptRuntime().deploy(model, model, inputs, tmp_path, SETTINGS)
    assert list(found.fp32) == ["contiguous"]
    form = found.int8["contiguous"]
    for given in (inputs, list(inputs), {"right": inputs[1], "left": inputs[0]}):
        with form.session():
            made = form.run(form.adapt(given))
        assert all(torch.allclose(made[name], value) for name, value in answer(model, *inputs).items())


def test_the_user_s_model_stays_in_its_mode_and_layout(tmp_path: Path) -> None:
    model = Net(4).train()
    TorchScriptRuntime().deploy(model, model, (IMAGES,), tmp_path, SETTINGS)
    assert model.training
    assert model.wide.weight.is_contiguous()
    assert torch.equal(model.bn.running_mean, torch.zeros(4))  # type: ignore[arg-type]


def test_a_model_that_cannot_be_traced_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed) as caught:
        TorchScriptRuntime().deploy(Deciding().eval(), Deciding().eval(), (torch.randn(2, 3),), tmp_path, SETTINGS)
    assert [finding.code for finding in caught.value.findings] == ["not-traceable"]
    assert list(tmp_path.iterdir()) == []


def test_what_a_trace_fixes_is_no_warning_to_the_user(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = trace(Branching().eval(), torch.randn(2, 3))
    assert isinstance(traced, torch.jit.ScriptModule)


def test_a_full_disk_is_a_stage_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StageError, match=r"cannot write fp32-0\.torchscript .*No space left"):
        TorchScriptRuntime().deploy(Net(4).eval(), Net(4).eval(), (IMAGES,), tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == []
