"""What runtimes outside of torch share: export for one batch, build in child processes, call with flat tensors."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import sample_count
from pytest_qat.core.files import save_whole, write_whole
from pytest_qat.errors import CheckFailed
from pytest_qat.exported.fixes import with_own_biases
from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.program import export_program
from pytest_qat.findings import Finding
from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings, Kernel
from pytest_qat.runtimes.build import Built, build
from pytest_qat.runtimes.graph_kernels import bias_place

__all__ = ["Call", "InputOrder", "deploy_lowered", "in_order", "load_exported", "load_flat_program", "named_after",
           "without_wrapper"]

Call = Callable[[Sequence[Tensor]], list[Tensor]]
"""One call of a loaded artifact: input tensors in order, output tensors in order."""

SUFFIX = {"executorch": ".pte", "litert": ".tflite", "onnxruntime": ".onnx",
          "inductor": ".program.pt2"}
MOST_BYTES = {"litert": 2**31, "onnxruntime": 2**31}
"""Flatbuffers and protobufs end at 2 GiB."""


def deploy_lowered(runtime: ModuleType, name: str, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...],
                   folder: Path, settings: DeploySettings, *,
                   inspect_program: Callable[[torch.export.ExportedProgram], None] | None = None) -> DeployedPair:
    """Export both sides for the example's batch, build their artifacts in child processes, and load them here.

    Args:
        runtime: The runtime's module: `load(path, threads=...)` gives a `Call`.
        name: Its name.
        fp32: The float model.
        int8: The converted model.
        example_inputs: One batch, for which the artifact is made.
        folder: Where the artifacts go.
        settings: How.
        inspect_program: Looks at each exported program before any time goes into building; may raise CheckFailed.

    Raises:
        CheckFailed: the model is too large or has inputs that the runtime does not take, or the runtime crashed.
        StageError: it raised.
    """
    _refuse_unfit(name, fp32, example_inputs)
    with torch.no_grad():
        made = fp32(*example_inputs)
    _refuse_opaque(made)
    outputs = _Container(made)
    programs: dict[str, Path] = {}
    exported: dict[str, torch.export.ExportedProgram] = {}
    for side, module in (("fp32", fp32), ("int8", int8)):
        exported[side] = export_program(_flat(module, example_inputs), tuple(leaves_of(example_inputs)),
                                        any_batch=False)
        if inspect_program is not None:
            inspect_program(exported[side])
        programs[side] = folder / f"{side}.pt2"
        content = io.BytesIO()
        torch.export.save(exported[side], content)
        write_whole(content.getvalue(), programs[side])
    artifacts = {side: folder / f"{side}{SUFFIX[name]}" for side in programs}
    built = build(name, programs, artifacts, module=runtime.__name__, threads=settings.threads,
                  timeout_s=settings.timeout_s)
    order = InputOrder(example_inputs, names=tuple(inspect.signature(fp32.forward).parameters))
    forms = {side: _form(runtime, built[side], outputs, threads=settings.threads, order=order,
                         example_inputs=example_inputs) for side in built}
    if getattr(runtime, "COMPILES", False):  # now, so that nobody times it
        for form in forms.values():
            form.run(form.adapt(example_inputs))
    return DeployedPair(fp32={"contiguous": forms["fp32"]}, int8={"contiguous": forms["int8"]})


def _flat(module: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """Return a model that takes and gives tensors in a row, as runtimes do; other arguments are those of the example.

    Names and containers stay on this side: files keep neither in a way that all runtimes tell again. A graph stays a
    graph, because only then its nodes keep the names of the user's modules.
    """
    if not isinstance(module, ExportedModel):
        return _Flat(module, example_inputs)
    graph = copy.deepcopy(module.graph_module.graph)
    graph.set_codegen(torch.fx.graph.CodeGen())
    for node in graph.nodes:
        if node.op == "call_module" and not node.users:  # checks the arguments, and would hold on to all of them
            graph.erase_node(node)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, leaf in zip(placeholders, pytree.tree_leaves(example_inputs), strict=True):
        if not isinstance(leaf, Tensor):
            graph.erase_node(node)
    output = graph.output_node()
    output.args = (tuple(leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, torch.fx.Node)),)
    flat = torch.fx.GraphModule(module.graph_module, graph)
    with_own_biases(flat, bias_place)
    return flat


class _Flat(nn.Module):
    """Such a model around one that is no graph."""

    def __init__(self, model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.training = False
        self.graph_module = model  # the name that modules are told without
        self._inputs = _Container(example_inputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.graph_module(*self._inputs.around(tensors))
        return tuple(leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor))


class _Container:
    """What lies around the tensors of a nested value, and its leaves that are no tensors."""

    def __init__(self, value: Any) -> None:
        leaves, self._form = pytree.tree_flatten(value)
        self._others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self.single = self._form.is_leaf()

    def around(self, tensors: Sequence[Tensor]) -> Any:
        """Return such a value with other tensors in their places."""
        given = iter(tensors)
        return pytree.tree_unflatten([next(given) if other is None else other[0] for other in self._others],
                                     self._form)


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
                              code="artifact-too-large", severity="error",
                              message=f"a {SUFFIX[name]} file cannot be larger.",
                              remedy="split the model, or use a recipe with another runtime.")])


def _refuse_opaque(outputs: Any) -> None:
    known = (Tensor, int, float, str, type(None))
    strange = next((leaf for leaf in pytree.tree_leaves(outputs) if not isinstance(leaf, known)), None)
    if strange is not None:
        kind = type(strange).__name__
        raise CheckFailed([f"the model returns {kind}, which torch.export does not look into."], findings=[Finding(
            code="opaque-output", severity="error", message=f"the tensors inside {kind} would be lost.",
            remedy=f"return a tuple or dict of tensors, or call torch.export.register_dataclass({kind}) once if it is "
                   "a dataclass.")])


def _form(runtime: ModuleType, built: Built, outputs: _Container, *, threads: int, order: InputOrder,
          example_inputs: tuple[Any, ...]) -> Deployed:
    call: Call = runtime.load(built.artifact, threads=threads)
    single = outputs.single

    def run(inputs: list[Tensor]) -> Any:
        made = call(inputs)
        return made[0] if single else outputs.around(made)  # calls are timed: the usual case comes first

    def adapt(inputs: Any) -> list[Tensor]:
        return order.leaves(inputs)

    def save_program(inputs: Any, target: Path) -> None:
        save_whole({"inputs": adapt(inputs)}, target.with_suffix(".inputs"))
        target.write_text(json.dumps({"artifact": str(built.artifact), "threads": threads}), encoding="utf-8")

    return Deployed(
        artifact=built.artifact, size_bytes=built.artifact.stat().st_size, tensors=built.tensors, layout="contiguous",
        adapt=adapt, run=run, session=contextlib.nullcontext, save_program=save_program, kernels=built.kernels,
        batch=sample_count(example_inputs), shapes=frozenset(tuple(leaf.shape) for leaf in leaves_of(example_inputs)))


class InputOrder:
    """The order of an artifact's inputs: that of the example, whatever the order of keywords and keys."""

    def __init__(self, example_inputs: Any, *, names: Sequence[str]) -> None:
        self._example = example_inputs
        self._names = names

    def leaves(self, inputs: Any) -> list[Tensor]:
        """Return the tensors of a batch; anything else is a constant of the artifact."""
        if isinstance(inputs, Mapping):
            known = [name for name in self._names if name in inputs]
            inputs = [inputs[name] for name in (*known, *(name for name in inputs if name not in known))]
        return leaves_of(_arranged(self._example, inputs))


def _arranged(example: Any, value: Any) -> Any:
    """Return a nested value with its mappings in the order of the example's."""
    if isinstance(example, Mapping) and isinstance(value, Mapping) and set(example) == set(value):
        return {key: _arranged(example[key], value[key]) for key in example}
    plain = (list, tuple)
    if isinstance(example, plain) and isinstance(value, plain) and len(example) == len(value):
        return [_arranged(*pair) for pair in zip(example, value, strict=True)]
    return value


def leaves_of(inputs: Any) -> list[Tensor]:
    """Return copies of the tensors in a nested value, contiguous."""
    return [leaf.clone(memory_format=torch.contiguous_format)  # contiguous() keeps odd strides of sides of 1
            for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def load_flat_program(runtime: ModuleType, path: Path) -> Callable[[], object]:
    """Return one call of the artifact that a `save_program` noted, for a process of its own."""
    told = json.loads(path.read_text(encoding="utf-8"))
    inputs = torch.load(path.with_suffix(".inputs"))["inputs"]
    call: Call = runtime.load(Path(told["artifact"]), threads=told["threads"])
    return lambda: call(inputs)


def load_exported(path: Path) -> torch.export.ExportedProgram:
    """Load a program in the child; importing torchao registers the ops that it may hold."""
    import torch.ao.quantization.fx._decomposed

    with contextlib.suppress(ImportError):
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers ops
    try:
        return torch.export.load(path)
    except Exception:  # an op that torchvision registers, say deform_conv2d, is unknown until it is imported
        if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules:
            raise
        importlib.import_module("torchvision")
        return torch.export.load(path)


def without_wrapper(name: str) -> str:
    """Return the name of a tensor as the user's model has it."""
    return name.removeprefix("graph_module.")


def in_order(kernels: Sequence[Kernel], named: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Name kernels after those of the graph that they were made from, if there are as many.

    Each takes the first name left that fits its MACs, or its kind where it does not know them: independent branches
    may have changed places.
    """
    if len(kernels) != len(named):
        return tuple(kernels)
    left, found = list(named), []
    for kernel in kernels:
        other = next((each for each in left if _alike(kernel, each)), left[0])
        left.remove(other)
        found.append(named_after(kernel, other))
    return tuple(found)


def named_after(kernel: Kernel, other: Kernel) -> Kernel:
    """Return a kernel with the module of another, and its MACs where it has none."""
    return replace(kernel, module=other.module, macs=kernel.macs or other.macs)


def _alike(kernel: Kernel, other: Kernel) -> bool:
    if kernel.macs and other.macs:
        return kernel.macs == other.macs
    return ("conv" in kernel.op.lower()) == ("conv" in other.op.lower())
