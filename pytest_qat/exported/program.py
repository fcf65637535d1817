"""Export a model, for one batch size or any; save and load it; read from the graph what was fixed and its modules."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import sample_count, with_batch
from pytest_qat.core.files import write_whole
from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.core.tracebacks import headline, locate_module, place_of
from pytest_qat.errors import CheckFailed
from pytest_qat.exported.rewrites import rewrite
from pytest_qat.findings import Finding

__all__ = ["export_program", "exported_bytes", "fixed_batch", "fixed_shapes", "load_exported", "module_of",
           "save_exported", "without_spare_tensors"]


def export_program(model: nn.Module, inputs: Any, *, any_batch: bool) -> torch.export.ExportedProgram:
    """Export a model in eval mode.

    Args:
        model: In eval mode.
        inputs: One batch.
        any_batch: Whether to leave the batch size open if the model allows it; else only this batch size is accepted.

    Raises:
        CheckFailed: torch.export refuses the model.
    """
    if any_batch and (samples := sample_count(inputs)):
        wider = with_batch(inputs, 2) if samples == 1 else inputs  # torch.export treats a size of 1 as a constant
        size = sample_count(wider)

        def side(leaf: Any) -> Any:
            fits = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            return {0: torch.export.Dim.AUTO} if fits else None

        try:
            program = _export(model, wider, shapes=side)
            if wider is inputs or fixed_batch(program.graph_module) is None:
                return program
        except Exception:  # noqa: S110 - if the open batch size is not the cause, it is raised again below
            pass
    try:
        return _export(model, inputs, shapes=None)
    except Exception as error:
        raise CheckFailed(["torch.export refuses the model."], findings=[_refusal(error, model)]) from error


def _export(model: nn.Module, inputs: Any, *, shapes: Any) -> torch.export.ExportedProgram:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    dynamic = None
    if shapes is not None:
        dynamic = pytree.tree_map(shapes, kwargs) if kwargs else _by_position(model, pytree.tree_map(shapes, args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own modules, such as nn.LSTM; forward was called before
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    rewrite(program)
    return program


def save_exported(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Write an exported program to a file.

    Raises:
        StageError: the file cannot be written.
    """
    write_whole(exported_bytes(exported), path)


def exported_bytes(exported: torch.export.ExportedProgram) -> bytes:
    """Return the content of a file that holds an exported program."""
    content = io.BytesIO()
    torch.export.save(exported, content)
    return content.getvalue()


def load_exported(path: Path) -> torch.export.ExportedProgram:
    """Load an exported program in a process that may not know its ops yet: torchao and torchvision register theirs."""
    import torch.ao.quantization.fx._decomposed

    with contextlib.suppress(ImportError), quiet_loggers():
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers ops
    try:
        return torch.export.load(path)
    except Exception:  # an op of torchvision, such as deform_conv2d, is unknown until torchvision is imported
        if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules:
            raise
        importlib.import_module("torchvision")
        return torch.export.load(path)


def fixed_batch(graph_module: torch.fx.GraphModule) -> int | None:
    """Return the batch size that the graph was exported for; None if it accepts others.

    It is the first dimension of the first input, which torch.export fixes without notice if the model's code does.
    """
    sides = [str(side) for node in graph_module.graph.nodes if node.op == "placeholder"
             for side in getattr(node.meta.get("val"), "shape", ())[:1]]
    return int(sides[0]) if sides and all(side.isdigit() for side in sides) else None  # fixed symbols show as numbers


def fixed_shapes(graph_module: torch.fx.GraphModule) -> frozenset[tuple[int, ...]]:
    """Return the shapes of the inputs whose dimensions are all fixed."""
    shapes = [tuple(map(str, getattr(node.meta.get("val"), "shape", ("?",)))) for node in graph_module.graph.nodes
              if node.op == "placeholder"]
    return frozenset(tuple(map(int, shape)) for shape in shapes if all(side.isdigit() for side in shape))


def _by_position(model: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """Return the arguments' shapes as torch.export expects them, with those of `*args` in a nested tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], shapes[first:])


def _refusal(error: BaseException, model: nn.Module) -> Finding:
    text = headline(error).split(" (unhinted:")[0]
    depends = any(word in str(error) for word in ("data-dependent", "Could not guard", "GuardOnDataDependent"))
    place = place_of(error)
    at = "" if place == "unknown place" else f" ({place})"
    if depends:
        cause, remedy = "its forward decides by the values of a tensor, and an exported graph has one path", (
            "decide by shapes and attributes instead of tensor values, or with torch.cond")
    else:
        cause, remedy = "torch.export cannot follow its forward", "write this part with plain tensor operations"
    return Finding(
        code="not-exportable", severity="error", module=locate_module(error, model) or None,
        message=f"{cause}{at}: {text.rstrip('.')}.",
        remedy=f"{remedy}{f', at {place}' if at else ''}.",
        evidence={"error": type(error).__name__, "line": place if at else ""})


def module_of(node: torch.fx.Node) -> str:
    """Return the name of the user's module whose code a node comes from; "" is the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [re.sub(r"@\d+", "", str(entry[0])) for entry in stack.values()]
    return re.sub(r"^graph_module(\.|$)", "", names[-1]) if names else ""


def without_spare_tensors(graph_module: torch.fx.GraphModule) -> None:
    """Drop, in place, the parameters and buffers that the graph does not read, such as weights folded to int8."""
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    tensors = [name for name, _ in (*graph_module.named_parameters(remove_duplicate=False),
                                    *graph_module.named_buffers(remove_duplicate=False))]
    for name in tensors:
        if name in used or any(name.startswith(f"{part}.") for part in called | used):
            continue
        parent, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(parent), leaf)
