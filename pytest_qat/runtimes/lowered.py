"""What runtimes outside of torch share: export for one batch, build in child processes, call with flat tensors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.batches import sample_count
from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.findings import Finding
from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings, Kernel
from pytest_qat.runtimes.child import Built, build
from pytest_qat.workflows.exported import ExportedModel, export_program

__all__ = ["Call", "deploy_lowered", "load_exported", "load_flat_program"]

Call = Callable[[Sequence[Tensor]], list[Tensor]]
"""One call of a loaded artefact: input tensors in order, output tensors in order."""

SUFFIX = {"executorch": ".pte", "litert": ".tflite", "onnxruntime": ".onnx",
          "inductor": ".program.pt2"}
MOST_BYTES = {"litert": 2**31, "onnxruntime": 2**31}
"""Flatbuffers and protobufs end at 2 GiB."""


def deploy_lowered(runtime: ModuleType, name: str, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...],
                   folder: Path, settings: DeploySettings) -> DeployedPair:
    """Export both sides for the example's batch, build their artefacts in child processes, and load them here.

    Args:
        runtime: The runtime's module: `load(path, threads=...)` gives a `Call`.
        name: Its name.
        fp32: The float model.
        int8: The converted model.
        example_inputs: One batch, for which the artefact is made.
        folder: Where the artefacts go.
        settings: How.

    Raises:
        CheckFailed: the model is too large or has inputs that the runtime does not take, or the runtime crashed.
        StageError: it raised.
    """
    _refuse_unfit(name, fp32, example_inputs)
    programs: dict[str, Path] = {}
    exported: dict[str, torch.export.ExportedProgram] = {}
    for side, module in (("fp32", fp32), ("int8", int8)):
        plain = module.graph_module if isinstance(module, ExportedModel) else module
        exported[side] = export_program(plain, example_inputs, any_batch=False)
        programs[side] = folder / f"{side}.pt2"
        try:
            torch.export.save(exported[side], programs[side])
        except OSError as error:
            raise StageError(f"cannot write the exported {side} model: {error.strerror or error}",
                             hint="Free some space, or set TMPDIR to a folder with room.") from error
    artefacts = {side: folder / f"{side}{SUFFIX[name]}" for side in programs}
    built = build(name, programs, artefacts, threads=settings.threads, timeout_s=settings.timeout_s)
    forms = {side: _form(runtime, name, built[side], exported[side], settings.threads, sample_count(example_inputs),
                         example_inputs) for side in built}
    return DeployedPair(fp32={"contiguous": forms["fp32"]}, int8={"contiguous": forms["int8"]})


def _refuse_unfit(name: str, model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    wide = [leaf for leaf in pytree.tree_leaves(example_inputs)
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.float64, torch.complex64, torch.complex128)]
    if wide:
        raise CheckFailed([f"an input is {str(wide[0].dtype).removeprefix('torch.')}, which {name} does not take."],
                          findings=[Finding(
                              code="unsupported-dtype", severity="error",
                              message=f"{name} computes in float32 and int8.",
                              remedy="call .float() on the model and its inputs.")])
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    limit = MOST_BYTES.get(name)
    if limit is not None and size >= limit:
        raise CheckFailed([f"the float model holds {size:,} bytes, over the {limit:,} of a {SUFFIX[name]} file."],
                          findings=[Finding(
                              code="artefact-too-large", severity="error",
                              message=f"a {SUFFIX[name]} file cannot be larger.",
                              remedy="split the model, or use a recipe with another runtime.")])


def _form(runtime: ModuleType, name: str, built: Built, exported: torch.export.ExportedProgram, threads: int,
          batch: int, example_inputs: tuple[Any, ...]) -> Deployed:
    call: Call = runtime.load(built.artefact, threads=threads)
    spec = exported.call_spec.out_spec
    outputs = spec.num_leaves if spec is not None else None

    def run(inputs: list[Tensor]) -> Any:
        made = call(inputs)
        return made if spec is None or len(made) != outputs else pytree.tree_unflatten(made, spec)

    def save_program(inputs: Any, target: Path) -> None:
        torch.save({"inputs": leaves_of(inputs)}, target.with_suffix(".inputs"))
        target.write_text(json.dumps({"artefact": str(built.artefact), "threads": threads}), encoding="utf-8")

    del example_inputs
    return Deployed(
        artefact=built.artefact, size_bytes=built.artefact.stat().st_size, tensors=built.tensors, layout="contiguous",
        adapt=leaves_of, run=run, session=contextlib.nullcontext, save_program=save_program, batch=batch,
        kernels=built.kernels)


def leaves_of(inputs: Any) -> list[Tensor]:
    """Return the tensors of a batch in order; anything else was made a constant by the export."""
    return [leaf.contiguous() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def load_flat_program(runtime: ModuleType, path: Path) -> Callable[[], object]:
    """Return one call of the artefact that a `save_program` noted, for a process of its own."""
    told = json.loads(path.read_text(encoding="utf-8"))
    inputs = torch.load(path.with_suffix(".inputs"))["inputs"]
    call: Call = runtime.load(Path(told["artefact"]), threads=told["threads"])
    return lambda: call(inputs)


def load_exported(path: Path) -> torch.export.ExportedProgram:
    """Load a program in the child; importing torchao registers the ops that it may hold."""
    import torch.ao.quantization.fx._decomposed

    with contextlib.suppress(ImportError):
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers ops
    return torch.export.load(path)


def in_order(kernels: Sequence[Kernel], named: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Name kernels after those of the graph that they were made from, if there are as many, in order."""
    if len(kernels) != len(named):
        return tuple(kernels)
    return tuple(Kernel(int8=kernel.int8, op=kernel.op, module=other.module, macs=kernel.macs or other.macs,
                        reason=kernel.reason) for kernel, other in zip(kernels, named, strict=True))
