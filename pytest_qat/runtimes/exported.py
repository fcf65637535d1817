"""What the runtimes outside of torch share: export for one batch, build in child processes, call with flat tensors."""

from __future__ import annotations

import contextlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import sample_count
from pytest_qat.core.files import save_whole
from pytest_qat.errors import CheckFailed
from pytest_qat.exported.outputs import OutputForm
from pytest_qat.exported.program import export_program, save_exported
from pytest_qat.findings import Finding
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings, Kernel, OpTime, StoredTensor
from pytest_qat.runtimes.build import Built, build
from pytest_qat.runtimes.flat import InputOrder, flat_model, leaves_of
from pytest_qat.runtimes.unrolled import check_steps

__all__ = ["Call", "ExportedRuntime", "Lowered"]

Call = Callable[[Sequence[Tensor]], list[Tensor]]
"""One call of a loaded artifact: input tensors in order, output tensors in order."""
_WIDE = (torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """What a runtime's converter made of an exported program.

    Attributes:
        content: The bytes of the artifact.
        kernels: The products of the graph that it was made from, in order, with the names of the user's modules.
    """

    content: bytes
    kernels: tuple[Kernel, ...]


class ExportedRuntime(ABC):
    """A runtime that builds its artifact from an exported program, in a child process of its own.

    Each runtime states its name and suffix, overrides the limits and checks that differ, and implements `lower`,
    `load`, `kernels_in` and `tensors_in`.

    Attributes:
        max_bytes: Size that the model must stay below for its file format; None: no limit.
        seconds_per_step: Processor seconds that building takes for each step of a recurrent layer, by its kind, where
            the runtime has no operator for it and writes its steps out.
        compiles: Whether the first call of a loaded artifact compiles it, which takes seconds to minutes.
    """

    max_bytes: ClassVar[int | None] = None
    seconds_per_step: ClassVar[Mapping[str, float]] = MappingProxyType({})
    compiles: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> RuntimeName:
        """The name that recipes, messages and reports use, and by which the child process loads the runtime."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """Suffix of its artifacts."""

    @abstractmethod
    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        """Convert an exported program. Runs in the child process, like everything that may crash."""

    @abstractmethod
    def load(self, path: Path, *, threads: int) -> Call:
        """Load an artifact and return a function that calls it.

        Args:
            path: The artifact.
            threads: Intra-op threads.
        """

    @abstractmethod
    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        """Return what an artifact computes, after one call of it in this process.

        Args:
            path: The artifact.
            named: `Lowered.kernels`, for the names of the user's modules.
        """

    @abstractmethod
    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return what is stored in an artifact."""

    def op_times(self, path: Path, call: Call, values: Sequence[Tensor], *, threads: int) -> tuple[OpTime, ...]:
        """Time each op of a call of an artifact, the longest first; the default has no way to, and returns none.

        Args:
            path: The artifact.
            call: What `load` made of it.
            values: Input tensors, in order.
            threads: Intra-op threads.
        """
        return ()

    def require_tools(self) -> None:
        """Check that this machine has the tools that building needs; the default needs none.

        Raises:
            MissingPackage: one is missing; the hint says how to install it.
        """
        return

    def check_inputs(self, example_inputs: tuple[Any, ...]) -> None:
        """Refuse inputs whose dtype the runtime has no kernels for.

        Raises:
            CheckFailed: an input is wider than float32.
        """
        wide = [leaf for leaf in pytree.tree_leaves(example_inputs)
                if isinstance(leaf, Tensor) and leaf.dtype in _WIDE]
        if wide:
            dtype = str(wide[0].dtype).removeprefix("torch.")
            raise CheckFailed([f"an input is {dtype}, but {self.name} takes float32."], findings=[Finding(
                code="unsupported-dtype", severity="error", evidence={"dtype": dtype},
                message=f"{self.name} computes in float32 and int8.",
                remedy="call .float() on the model and on its inputs.")])

    def check_program(self, exported: torch.export.ExportedProgram) -> None:
        """Refuse an exported program before any time goes into building it; the default accepts all.

        Raises:
            CheckFailed: the runtime cannot run it.
        """
        return

    def check_graph(self, graph: torch.fx.Graph, *, timeout_s: float) -> None:
        """Refuse an exported graph, quantized or not, that cannot be built in time.

        Args:
            graph: An exported graph.
            timeout_s: Most seconds for building.

        Raises:
            CheckFailed: it cannot; the findings name the layers.
        """
        check_steps(graph, runtime=self.name, seconds_per_step=self.seconds_per_step, timeout_s=timeout_s)

    def deploy(self, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
               settings: DeploySettings) -> DeployedPair:
        """Export both sides for the example's batch, build their artifacts in child processes, and load them here.

        Args:
            fp32: The float model, in eval mode.
            int8: The converted model, in eval mode.
            example_inputs: One batch; the artifacts accept only batches of its size.
            folder: Where the artifacts go.
            settings: Threads and time limit.

        Raises:
            MissingPackage: building needs a tool that is not installed.
            CheckFailed: the model is too large, has inputs or outputs that cannot be exported, or crashed the runtime.
            StageError: converting or writing failed for another reason.
        """
        self.require_tools()
        self.check_inputs(example_inputs)
        self._check_size(fp32)
        with torch.no_grad():
            outputs = OutputForm(fp32(*example_inputs))
        programs: dict[str, Path] = {}
        for side, module in ({"int8": int8} if settings.int8_only else {"fp32": fp32, "int8": int8}).items():
            exported = export_program(flat_model(module, example_inputs), tuple(leaves_of(example_inputs)),
                                      any_batch=False)
            self.check_program(exported)
            self.check_graph(exported.graph, timeout_s=settings.timeout_s)
            programs[side] = folder / f"{side}.pt2"
            save_exported(exported, programs[side])
        built = build(self.name, programs, {side: folder / f"{side}{self.suffix}" for side in programs},
                      threads=settings.threads, timeout_s=settings.timeout_s)
        order = InputOrder(example_inputs, names=tuple(inspect.signature(fp32.forward).parameters))
        forms = {side: self._form(built[side], outputs, settings=settings, order=order,
                                  example_inputs=example_inputs) for side in built}
        if self.compiles and settings.load:  # now, so that compiling is never part of a timing
            for form in forms.values():
                form.run(form.adapt(example_inputs))
        by_side = {side: {"contiguous": form} for side, form in forms.items()}
        return DeployedPair(fp32=by_side.get("fp32", {}), int8=by_side["int8"])

    def load_program(self, path: Path) -> Callable[[], object]:
        """Return a function that calls the artifact that `Deployed.save_program` recorded in `path` once."""
        recorded = json.loads(path.read_text(encoding="utf-8"))
        inputs = torch.load(_inputs_of(path))["inputs"]
        call = self.load(Path(recorded["artifact"]), threads=recorded["threads"])
        return lambda: call(inputs)

    def _check_size(self, model: nn.Module) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
        if self.max_bytes is not None and size >= self.max_bytes:
            raise CheckFailed(
                [f"the float model holds {size:,} bytes, and a {self.suffix} file must stay below {self.max_bytes:,}."],
                findings=[Finding(
                    code="artifact-too-large", severity="error",
                    evidence={"size_bytes": size, "max_bytes": self.max_bytes},
                    message=f"the format of {self.suffix} files does not allow larger ones.")])

    def _form(self, built: Built, outputs: OutputForm, *, settings: DeploySettings, order: InputOrder,
              example_inputs: tuple[Any, ...]) -> Deployed:
        threads = settings.threads
        call = self.load(built.artifact, threads=threads) if settings.load else partial(
            _load_and_call, self, built.artifact, threads)
        single = outputs.single

        def run(inputs: list[Tensor]) -> Any:
            made = call(inputs)
            return made[0] if single else outputs.around(made)  # calls are timed: the usual case comes first

        def adapt(inputs: Any) -> list[Tensor]:
            return order.leaves(inputs)

        def save_program(inputs: Any, target: Path) -> None:
            save_whole({"inputs": adapt(inputs)}, _inputs_of(target))
            target.write_text(json.dumps({"artifact": str(built.artifact), "threads": threads}), encoding="utf-8")

        return Deployed(
            artifact=built.artifact, size_bytes=built.artifact.stat().st_size, tensors=built.tensors,
            layout="contiguous", adapt=adapt, run=run, session=contextlib.nullcontext, save_program=save_program,
            kernels=built.kernels, batch=sample_count(example_inputs),
            shapes=frozenset(tuple(leaf.shape) for leaf in leaves_of(example_inputs)),
            op_times=partial(self.op_times, built.artifact, call, threads=threads))


def _load_and_call(runtime: ExportedRuntime, path: Path, threads: int, inputs: Sequence[Tensor]) -> list[Tensor]:
    return runtime.load(path, threads=threads)(inputs)


def _inputs_of(program: Path) -> Path:
    """Return the file that holds the inputs of a saved program."""
    return program.with_suffix(".inputs")
