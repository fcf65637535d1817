"""What the runtimes outside of torch share: structure, refusals and files, on a stand-in."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections import UserDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.program import export_program, load_exported
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes import Deployed, DeploySettings, Kernel, load_runtime
from pytest_qat.runtimes import exported as exported_runtime
from pytest_qat.runtimes.base import StoredTensor
from pytest_qat.runtimes.build import Built
from pytest_qat.runtimes.chunks import run_batch
from pytest_qat.runtimes.exported import Call, ExportedRuntime, Lowered
from pytest_qat.runtimes.graph_kernels import kernels_of
from tests.answers import agree, answer, quietly


class Shapes(nn.Module):
    """Takes what `forms` of inputs it is asked to, and answers with nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor, more: dict[str, Tensor], pair: list[Tensor]) -> dict[str, Any]:
        return {"z": self.fc(x), "a": [more["q"] - more["p"], (pair[0] * 2, pair[1] - x)]}


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(left), left - 2 * right


class Standin(ExportedRuntime):
    """Runs exported programs as they are, on flat tensors, as the runtimes do."""

    name: ClassVar[RuntimeName] = "onnxruntime"
    suffix: ClassVar[str] = ".standin.pt2"

    def __init__(self) -> None:
        self.threads: list[int] = []

    def load(self, path: Path, *, threads: int) -> Call:
        self.threads.append(threads)
        program = load_exported(path)
        takes = program.call_spec.in_spec
        assert takes is not None
        module = program.module()

        def call(values: Sequence[Tensor]) -> list[Tensor]:
            args, kwargs = pytree.tree_unflatten(list(values), takes)
            with torch.no_grad():
                return pytree.tree_leaves(module(*args, **kwargs))

        return call

    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        raise NotImplementedError("nothing is built in another process here")

    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        raise NotImplementedError("nothing is built in another process here")

    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        raise NotImplementedError("nothing is built in another process here")


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Standin:
    def build(runtime: RuntimeName, programs: Mapping[str, Path], artifacts: Mapping[str, Path], *, threads: int,
              timeout_s: float) -> dict[str, Built]:
        assert (runtime, threads, timeout_s) == ("onnxruntime", 3, 300)
        for side, program in programs.items():
            artifacts[side].write_bytes(program.read_bytes())
        return {side: Built(artifact=artifacts[side], kernels=(), tensors=()) for side in programs}

    monkeypatch.setattr(exported_runtime, "build", build)
    return Standin()


def deployed(standin: ExportedRuntime, model: nn.Module, inputs: tuple[Any, ...], folder: Path) -> Deployed:
    settings = DeploySettings(engine=None, threads=3, timeout_s=300)
    with quietly():
        return standin.deploy(model.eval(), model.eval(), inputs, folder, settings).int8["contiguous"]


def rows(samples: int) -> Tensor:
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(samples))


@pytest.mark.parametrize("samples", [1, 2, 4, 5])
def test_nested_inputs_and_outputs_keep_their_structure(standin: Standin, tmp_path: Path, samples: int) -> None:
    def inputs(count: int) -> tuple[Any, ...]:
        return rows(count), {"q": rows(count) + 1, "p": rows(count) - 1}, [rows(count) * 3, rows(count) * 5]

    model = Shapes()
    form = deployed(standin, model, inputs(2), tmp_path)
    found, expected = run_batch(form, inputs(samples)), answer(model, inputs(samples))
    assert list(found) == ["z", "a"]
    assert agree(expected, found, least_db=100.0)


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 1) -> Tensor:
        assert mask is None
        return self.fc(x) * times


def test_arguments_that_are_no_tensors_are_constants_of_the_artifact(standin: Standin, tmp_path: Path) -> None:
    model = Flagged()
    form = deployed(standin, model, (rows(2), None, 3), tmp_path)
    expected = answer(model, (rows(5), None, 3))  # type: ignore[arg-type]
    assert torch.allclose(run_batch(form, (rows(5), None, 3)), expected)
    assert torch.allclose(run_batch(form, rows(5)), expected)
    kernels = kernels_of(load_exported(tmp_path / "int8.pt2").graph_module)
    assert [kernel.module for kernel in kernels] == ["fc"]


def test_flags_are_constants_of_an_exported_graph_too_and_its_nodes_keep_their_names(standin: Standin,
                                                                                     tmp_path: Path) -> None:
    model, inputs = Flagged().eval(), (rows(2), None, 3)
    with quietly():
        graph = export_program(model, inputs, any_batch=True).module()
    form = deployed(standin, ExportedModel(graph).eval(), inputs, tmp_path)
    assert torch.allclose(run_batch(form, rows(5)), answer(model, (rows(5), None, 3)))  # type: ignore[arg-type]
    assert [kernel.module for kernel in kernels_of(load_exported(tmp_path / "int8.pt2").graph_module)] == ["fc"]


def test_runtimes_see_contiguous_examples_whatever_the_user_s_are(standin: Standin, tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(3, 2).T
    model = Single()
    form = deployed(standin, model, (transposed,), tmp_path)
    (example,), _ = load_exported(tmp_path / "int8.pt2").example_inputs
    assert example.is_contiguous()
    assert torch.allclose(run_batch(form, transposed), answer(model, (transposed,)))


def test_a_lone_output_is_a_tensor_and_no_list(standin: Standin, tmp_path: Path) -> None:
    model = Single()
    form = deployed(standin, model, (rows(2),), tmp_path)
    for inputs in (rows(2), (rows(2),), [rows(2)], {"x": rows(2)}):
        assert torch.allclose(run_batch(form, inputs), answer(model, (rows(2),)))


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("names", [("left", "right"), ("right", "left")])
def test_keywords_are_put_in_the_order_of_forward(standin: Standin, tmp_path: Path, kind: Any,
                                                  names: tuple[str, str]) -> None:
    model, values = Two(), {"left": rows(2), "right": rows(2) + 7}
    form = deployed(standin, model, tuple(values.values()), tmp_path)
    found = run_batch(form, kind({name: values[name] for name in names}))
    assert agree(answer(model, tuple(values.values())), found, least_db=100.0)


def test_the_artifact_is_loaded_for_the_threads_of_the_settings(standin: Standin, tmp_path: Path) -> None:
    deployed(standin, Single(), (rows(2),), tmp_path)
    assert standin.threads == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_inputs_wider_than_float32_are_refused(standin: Standin, tmp_path: Path, dtype: torch.dtype) -> None:
    inputs = (rows(2), {"extra": rows(2).to(dtype)})
    with pytest.raises(CheckFailed) as caught:
        deployed(standin, Single(), inputs, tmp_path)
    (finding,) = caught.value.findings
    assert (finding.code, finding.severity) == ("unsupported-dtype", "error")
    assert finding.evidence == {"dtype": str(dtype).removeprefix("torch.")}
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass
class Answer:
    scores: Tensor


class Opaque(Single):
    def forward(self, x: Tensor) -> Any:
        return [Answer(scores=super().forward(x))]


class Locked(Single):
    def forward(self, x: Tensor) -> Any:
        return {"scores": super().forward(x), "lock": threading.Lock()}


def test_an_output_that_cannot_be_taken_apart_is_refused(standin: Standin, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed) as caught:
        deployed(standin, Locked(), (rows(2),), tmp_path)
    (finding,) = caught.value.findings
    assert (finding.code, finding.evidence) == ("opaque-output", {"type": "lock", "error": "TypeError"})
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_torch_export_does_not_know_comes_back_as_it_is(standin: Standin, tmp_path: Path) -> None:
    model = Opaque()
    form = deployed(standin, model, (rows(2),), tmp_path)
    (found,) = form.run(form.adapt((rows(2),)))
    assert isinstance(found, Answer)
    assert torch.allclose(found.scores, model(rows(2))[0].scores)


@dataclasses.dataclass
class Known:
    scores: Tensor
    samples: int


class Registered(Single):
    def forward(self, x: Tensor) -> Any:
        return Known(scores=super().forward(x), samples=2)


def test_a_registered_dataclass_comes_back_with_the_batch_s_own_tensors(standin: Standin, tmp_path: Path) -> None:
    if Known not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(Known)
    model = Registered()
    form = deployed(standin, model, (rows(2),), tmp_path)
    found = form.run(form.adapt((rows(2) + 3,)))
    assert isinstance(found, Known)
    assert torch.allclose(found.scores, answer(model, (rows(2) + 3,)).scores)


@pytest.mark.parametrize(("limit", "fits"), [(32, False), (33, True)])
@pytest.mark.usefixtures("standin")
def test_a_model_too_large_for_its_file_is_refused_before_any_work(tmp_path: Path, limit: int, fits: bool) -> None:
    class Limited(Standin):
        max_bytes: ClassVar[int | None] = limit

    if fits:
        assert deployed(Limited(), Single(), (rows(2),), tmp_path).size_bytes > 0
        return
    with pytest.raises(CheckFailed) as caught:
        deployed(Limited(), Single(), (rows(2),), tmp_path)
    (finding,) = caught.value.findings
    assert finding.code == "artifact-too-large"
    assert finding.evidence == {"size_bytes": 32, "max_bytes": 32}  # a Linear(3, 2) holds 6 + 2 floats
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "suffix", "max_bytes", "compiles"), [
    ("executorch", ".pte", None, False), ("litert", ".tflite", 2**31, False), ("onnxruntime", ".onnx", 2**31, False),
    ("inductor", ".program.pt2", None, True)])
def test_each_runtime_states_its_suffix_its_limit_and_whether_it_compiles(
        name: RuntimeName, suffix: str, max_bytes: int | None, compiles: bool) -> None:
    runtime = load_runtime(name)
    assert isinstance(runtime, ExportedRuntime)
    assert (runtime.name, runtime.suffix, runtime.max_bytes, runtime.compiles) == (name, suffix, max_bytes, compiles)


def test_a_runtime_that_compiles_has_been_called_once_it_is_deployed(standin: Standin, tmp_path: Path) -> None:
    calls: list[int] = []

    class Compiling(Standin):
        compiles: ClassVar[bool] = True

        def load(self, path: Path, *, threads: int) -> Call:
            call = super().load(path, threads=threads)

            def counted(values: Sequence[Tensor]) -> list[Tensor]:
                calls.append(len(values))
                return call(values)

            return counted

    deployed(standin, Single(), (rows(2),), tmp_path)
    assert calls == []
    deployed(Compiling(), Single(), (rows(2),), tmp_path)
    assert calls == [1, 1]


def test_what_a_runtime_refuses_it_refuses_before_anything_is_built(standin: Standin, tmp_path: Path) -> None:
    class Picky(Standin):
        def check_program(self, exported: torch.export.ExportedProgram) -> None:
            raise CheckFailed(["no."], findings=[])

    with pytest.raises(CheckFailed):
        deployed(Picky(), Single(), (rows(2),), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_stage_error_and_leaves_nothing(standin: Standin, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, content: bytes) -> int:
        with io.open(path, "wb") as file:  # noqa: UP020 - as Path would
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StageError, match=r"cannot write fp32\.pt2 \([\d,]+ bytes\): No space left") as caught:
        deployed(standin, Single(), (rows(2),), tmp_path)
    assert "TMPDIR" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_a_stage_error(standin: Standin, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot write fp32"):
        deployed(standin, Single(), (rows(2),), tmp_path / "gone")
