"""torch's own runtime: what it writes, how it runs it, and what it leaves as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.finetune import calibrate
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import load_runtime
from pytest_qat.runtimes.base import Deployed, DeploySettings
from pytest_qat.runtimes.stored import stored_tensors
from pytest_qat.runtimes.torch import TorchRuntime, deploy_form
from pytest_qat.workflows import fx
from tests.small_net import Net

IMAGES = torch.randn(2, 3, 8, 8)


class Keywords(nn.Module):
    """Takes keywords, and answers with more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, scale: Tensor, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(images) * scale, "twice": images * 2}


class Noting(nn.Module):
    """Remembers how it was called; its copies share the memory."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append({"engine": torch.backends.quantized.engine, "inference": torch.is_inference_mode_enabled(),
                          "training": self.training, "nhwc": x.is_contiguous(memory_format=torch.channels_last)})
        return x


def deployed(model: nn.Module, folder: Path, *, channels_last: bool = False, engine: str = "x86") -> Deployed:
    return deploy_form(model, folder / "model.pt", engine=engine, channels_last=channels_last)


def run(form: Deployed, inputs: Any) -> Any:
    with form.session():
        return form.run(form.adapt(inputs))


@pytest.fixture(scope="module")
def int8() -> nn.Module:
    recipe = get_recipe("fx-x86")
    with preserved_torch_state(), quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=Net().eval(), example_inputs=(IMAGES,)), recipe)
        calibrate(prepared.module, [(IMAGES,)])
        return fx.convert(prepared, recipe).module


@pytest.fixture
def _engine_put_back() -> Iterator[None]:
    with preserved_torch_state():
        yield


def test_it_is_found_by_name() -> None:
    assert isinstance(load_runtime("torch"), TorchRuntime)


def test_the_artifact_is_the_state_dict(tmp_path: Path) -> None:
    model = Net().eval()
    form = deployed(model, tmp_path)
    assert form.artifact == tmp_path / "model.pt"
    assert form.size_bytes == form.artifact.stat().st_size
    loaded = torch.load(form.artifact)
    assert list(loaded) == list(model.state_dict())
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_layouts_compute_what_the_model_does(tmp_path: Path, int8: nn.Module, channels_last: bool) -> None:
    for model in (Net().eval(), int8):
        with quantized_engine("x86"):
            expected = model(IMAGES)
        form = deployed(model, tmp_path, channels_last=channels_last)
        assert form.layout == ("channels_last" if channels_last else "contiguous")
        assert torch.allclose(run(form, (IMAGES,)), expected, atol=1e-6)


def test_the_layout_leaves_the_file_and_the_user_s_model_as_they_are(tmp_path: Path) -> None:
    model = Net().eval()
    sizes = [deployed(model, tmp_path, channels_last=layout).size_bytes for layout in (False, True)]
    assert sizes[0] == sizes[1]
    assert model.conv.weight.is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_model_is_called_in_its_layout_under_the_engine_without_gradients_in_eval_mode(
        tmp_path: Path, channels_last: bool) -> None:
    form = deployed(Noting().train(), tmp_path, channels_last=channels_last, engine="onednn")
    before = torch.backends.quantized.engine
    Noting.seen.clear()
    run(form, IMAGES)
    assert Noting.seen == [{"engine": "onednn", "inference": True, "training": False, "nhwc": channels_last}]
    assert torch.backends.quantized.engine == before
    assert not torch.is_inference_mode_enabled()


def test_a_session_that_ends_in_an_error_puts_everything_back(tmp_path: Path) -> None:
    form, before = deployed(Net(), tmp_path, engine="qnnpack"), torch.backends.quantized.engine
    with pytest.raises(ZeroDivisionError), form.session():
        raise ZeroDivisionError
    assert torch.backends.quantized.engine == before
    assert not torch.is_inference_mode_enabled()


def test_what_was_deployed_does_not_change_with_the_model(tmp_path: Path) -> None:
    model = Net().eval()
    form, before = deployed(model, tmp_path), model(IMAGES)
    with torch.no_grad():
        model.fc.bias += 1
    assert torch.allclose(run(form, IMAGES), before, atol=1e-6)


@pytest.mark.parametrize(("model", "inputs"), [
    (nn.Linear(3, 2), torch.randn(4, 3)), (nn.Linear(3, 2), (torch.randn(4, 3),)),
    (nn.Bilinear(3, 2, 1), [torch.randn(4, 3), torch.randn(4, 2)]),
    (Keywords(), {"images": torch.randn(4, 3), "scale": torch.tensor(2.0)}),
])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_of_every_form_are_run(tmp_path: Path, model: nn.Module, inputs: Any, channels_last: bool) -> None:
    form = deploy_form(model, tmp_path / "model.pt", engine="x86", channels_last=channels_last)
    found = run(form, inputs)
    assert isinstance(found, dict if isinstance(model, Keywords) else Tensor)


# -- programs for another process -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_engine_put_back")
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_saved_program_computes_what_the_model_does(tmp_path: Path, int8: nn.Module, channels_last: bool) -> None:
    for model in (Net().eval(), int8):
        form = deployed(model, tmp_path, channels_last=channels_last)
        expected = run(form, (IMAGES,))
        form.save_program((IMAGES,), tmp_path / "a.program")
        call = TorchRuntime().load_program(tmp_path / "a.program")
        assert torch.allclose(call(), expected, atol=1e-6)  # type: ignore[arg-type]
        assert torch.equal(call(), call()), "and again"  # type: ignore[arg-type]


@pytest.mark.usefixtures("_engine_put_back")
@pytest.mark.parametrize(("model", "inputs", "shape_of"), [
    (nn.Linear(3, 2), torch.randn(4, 3), lambda found: found),
    (nn.Bilinear(3, 2, 2), (torch.randn(4, 3), torch.randn(4, 2)), lambda found: found),
    (Keywords(), {"images": torch.randn(4, 3), "scale": torch.tensor(2.0)}, lambda found: found["logits"]),
])
def test_a_program_keeps_the_form_of_its_inputs(tmp_path: Path, model: nn.Module, inputs: Any,
                                                shape_of: Callable[[Any], Tensor]) -> None:
    form = deploy_form(model, tmp_path / "model.pt", engine="x86", channels_last=False)
    form.save_program(inputs, tmp_path / "b.program")
    found = shape_of(TorchRuntime().load_program(tmp_path / "b.program")())
    assert torch.allclose(found, shape_of(run(form, inputs)), atol=1e-6)
    assert found.shape == (4, 2)


@pytest.mark.usefixtures("_engine_put_back")
def test_a_program_runs_under_the_engine_it_was_made_for(tmp_path: Path) -> None:
    form = deployed(Net(), tmp_path, engine="qnnpack")
    torch.backends.quantized.engine = "x86"
    form.save_program((IMAGES,), tmp_path / "c.program")
    assert torch.backends.quantized.engine == "x86"
    TorchRuntime().load_program(tmp_path / "c.program")
    assert torch.backends.quantized.engine == "qnnpack"


@pytest.mark.usefixtures("_engine_put_back")
def test_two_programs_in_one_folder_keep_their_own_inputs(tmp_path: Path) -> None:
    form = deployed(Net(), tmp_path)
    for batch in (1, 2):
        form.save_program((IMAGES[:batch],), tmp_path / f"{batch}.program")
    assert [len(TorchRuntime().load_program(tmp_path / f"{batch}.program")()) for batch in (1, 2)] == [1, 2]  # type: ignore[arg-type]


# -- what is stored -------------------------------------------------------------------------------------------------


def test_stored_tensors_have_name_dtype_sides_and_bytes() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int64), "c": torch.zeros(2, dtype=torch.bfloat16)}
    assert [(entry.name, entry.dtype, entry.shape, entry.size_bytes) for entry in stored_tensors(state)] == [
        ("a", "float32", (2, 3), 24), ("b", "int64", (4,), 32), ("c", "bfloat16", (2,), 4)]


def test_a_shared_tensor_is_stored_once_under_its_first_name() -> None:
    weight, same = torch.zeros(2, 3), torch.zeros(2, 3)
    assert [entry.name for entry in stored_tensors({"a": weight, "b": weight.detach(), "c": same})] == ["a", "c"]


def test_what_is_no_tensor_or_empty_is_not_stored() -> None:
    state = {"a": torch.zeros(0, 3), "b": torch.qint8, "c": None, "d": "text", "e": 3, "f": torch.zeros(())}
    assert [(entry.name, entry.shape, entry.size_bytes) for entry in stored_tensors(state)] == [("f", (), 4)]


def test_tensors_inside_a_value_are_told_apart_by_number() -> None:
    state = {"packed": (torch.zeros(2, 2), torch.zeros(2)), "alone": (torch.zeros(3), None)}
    assert [entry.name for entry in stored_tensors(state)] == ["packed[0]", "packed[1]", "alone"]


def test_an_int8_model_stores_its_packed_weights_as_int8(int8: nn.Module) -> None:
    found = {entry.name: entry for entry in stored_tensors(copy.deepcopy(int8).state_dict())}
    assert (found["conv.weight"].dtype, found["conv.weight"].size_bytes) == ("qint8", 8 * 27)
    packed = [entry for entry in found.values() if entry.dtype == "qint8" and entry.name.startswith("fc.")]
    assert [(entry.shape, entry.size_bytes) for entry in packed] == [((4, 8), 32)]


class Viewing(nn.Module):
    """`view` wants contiguous tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(x.size(0), -1))


class Cubes(nn.Module):
    """Images and weights of five dimensions, which have no channels_last form of four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, :, None]).mean((2, 3, 4))


@pytest.mark.parametrize("model", [Viewing(), Cubes()])
@pytest.mark.parametrize("runtime", ["torch", "torchscript"])
def test_a_model_that_cannot_take_channels_last_ships_without_it(model: nn.Module, runtime: str,
                                                                 tmp_path: Path) -> None:
    pair = load_runtime(runtime).deploy(model.eval(), model.eval(), (IMAGES,), tmp_path,
                                        DeploySettings(engine="x86", threads=1, timeout_s=60))
    for side in (pair.fp32, pair.int8):
        assert list(side) == ["contiguous"]
        assert torch.allclose(run(side["contiguous"], (IMAGES,)), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("runtime", ["torch", "torchscript"])
def test_an_int8_model_can_be_called_afresh(int8: nn.Module, runtime: str, tmp_path: Path) -> None:
    """oneDNN's quantized layers keep what their first call had: number of threads, shape of the inputs."""
    settings = DeploySettings(engine="x86", threads=1, timeout_s=60)
    pair = load_runtime(runtime).deploy(Net().eval(), int8, (IMAGES,), tmp_path, settings)
    for form in pair.int8.values():
        assert form.fresh is not None
        with form.session():
            first, second = form.fresh(), form.fresh()
            assert first is not second
            assert torch.equal(first(form.adapt(IMAGES)), form.run(form.adapt(IMAGES)))


def test_a_float_model_settles_nothing_with_its_first_call(tmp_path: Path) -> None:
    assert deployed(Net(), tmp_path).fresh is None
