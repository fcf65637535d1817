"""Exported graphs as modules: they train and evaluate, are exported for any batch, and know the user's names.

torchao's own train/eval switch replaces BatchNorm and dropout by patterns that carry default eps and p; here the
switch only turns the flag of each op, so that everything else stays as the user set it.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.batches import in_parts, sample_count, with_batch
from pytest_qat.errors import CheckFailed, DataError
from pytest_qat.findings import Finding
from pytest_qat.locate import headline, locate_module

__all__ = ["ExportedModel", "always_on_nodes", "as_module", "export_program", "module_of", "without_spare_tensors",
           "workflow_of"]

_FLAGS = ("training", "train")


class ExportedModel(nn.Module):
    """An exported graph that can be switched between train and eval mode.

    Attributes:
        batch: The one batch size that it was exported for; None: any. Others are run in parts in eval mode.

    Args:
        graph_module: What `ExportedProgram.module()` gave, prepared or converted or neither.
        always_on: Names of nodes that are in train mode whatever the model's mode is, as the user wrote them.
    """

    def __init__(self, graph_module: torch.fx.GraphModule, *, always_on: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.always_on = always_on
        self.batch = _fixed_batch(graph_module)
        self._shapes = _shapes_of(graph_module) if self.batch is not None else frozenset()
        self._batchnorm_frozen = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; arguments that were exported by position may also be given by name.

        Raises:
            DataError: in train mode, the batch has another size than the graph was exported for.
        """
        if self.batch is None or (samples := sample_count((args, kwargs))) in (self.batch, 0):
            return self._run(*args, **kwargs)
        if self.training:
            raise DataError(f"torch.export has fixed the batch size of this model at {self.batch}, but a batch has "
                            f"{samples}.", hint=f"Give batches of {self.batch} (drop_last=True), or use an fx recipe.")
        return in_parts(lambda part: self._run(*part[0], **part[1]), (args, kwargs), size=self.batch,
                        whole=self._shapes)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs and not self._takes_keywords():
            bound = inspect.signature(self.graph_module.forward).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        return self.graph_module(*args, **kwargs)

    def _takes_keywords(self) -> bool:
        spec = getattr(self.graph_module, "_in_spec", None)
        return spec is None or spec.num_children != 2 or spec.child(1).num_children > 0

    def train(self, mode: bool = True) -> ExportedModel:
        """Switch every op that has a training flag."""
        self.training = mode
        self._switch()
        return self

    def freeze_batchnorm(self) -> None:
        """Keep BatchNorm statistics as they are, also in train mode."""
        if not self._batchnorm_frozen:
            self._batchnorm_frozen = True
            self._switch()

    def _switch(self) -> None:
        changed = False
        for node in self.graph_module.graph.nodes:
            place = _flag_place(node)
            if place is None or node.name in self.always_on:
                continue
            wanted = self.training and not (self._batchnorm_frozen and "batch_norm" in str(node.target))
            if node.args[place] != wanted:
                node.args = (*node.args[:place], wanted, *node.args[place + 1:])
                changed = True
        if changed:
            self.graph_module.recompile()


def as_module(model: Any) -> Any:
    """Return a model that can be switched between train and eval mode: exported graphs are wrapped."""
    return ExportedModel(model) if _is_exported(model) else model


def _is_exported(model: Any) -> bool:
    return isinstance(model, torch.fx.GraphModule) and any(
        node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)  # noqa: SLF001 - no public name
        for node in model.graph.nodes)


def workflow_of(prepared: nn.Module) -> str:
    """Return which workflow a prepared model seems to come from: `pt2e`, `fx`, or `eager` for plain modules."""
    if isinstance(prepared, ExportedModel) or _is_exported(prepared):
        return "pt2e"
    return "fx" if isinstance(prepared, torch.fx.GraphModule) else "eager"


def _flag_place(node: torch.fx.Node) -> int | None:
    """Return where among a node's arguments its training flag stands, if it has one."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - no public name
        return None
    for place, argument in enumerate(node.target._schema.arguments):  # noqa: SLF001 - torch's way to tell arguments
        if argument.name in _FLAGS and place < len(node.args):
            return place
    return None


def always_on_nodes(graph_module: torch.fx.GraphModule) -> frozenset[str]:
    """Return the ops of a graph exported in eval mode whose training flag is set all the same."""
    return frozenset(node.name for node in graph_module.graph.nodes
                     if (place := _flag_place(node)) is not None and node.args[place] is True)


def export_program(model: nn.Module, inputs: Any, *, any_batch: bool) -> torch.export.ExportedProgram:
    """Export a model in eval mode.

    Args:
        model: In eval mode.
        inputs: One batch.
        any_batch: Leave the batch size open where the model allows it; else the program is made for this batch.

    Raises:
        CheckFailed: torch.export refuses the model.
    """
    if any_batch and (samples := sample_count(inputs)):
        wider = with_batch(inputs, 2) if samples == 1 else inputs  # a size of 1 would be taken for a constant
        size = sample_count(wider)

        def side(leaf: Any) -> Any:
            fits = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            return {0: torch.export.Dim.AUTO} if fits else None

        try:
            program = _export(model, wider, shapes=side)
            if wider is inputs or _fixed_batch(program.graph_module) is None:
                return program
        except Exception:  # noqa: S110 - whatever it is, it shows again below if it is not the open batch
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
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)


def _fixed_batch(graph_module: torch.fx.GraphModule) -> int | None:
    """Return the first side of the first input, or None if an input may have another one.

    torch.export fixes it silently where the model does.
    """
    sides = [str(side) for node in graph_module.graph.nodes if node.op == "placeholder"
             for side in getattr(node.meta.get("val"), "shape", ())[:1]]
    return int(sides[0]) if sides and all(side.isdigit() for side in sides) else None  # fixed symbols show as numbers


def _shapes_of(graph_module: torch.fx.GraphModule) -> frozenset[tuple[int, ...]]:
    """Return the shapes of the inputs that are fixed as a whole."""
    shapes = [tuple(map(str, getattr(node.meta.get("val"), "shape", ("?",)))) for node in graph_module.graph.nodes
              if node.op == "placeholder"]
    return frozenset(tuple(map(int, shape)) for shape in shapes if all(side.isdigit() for side in shape))


def _by_position(model: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """Return the arguments' shapes as torch.export wants them: those of `*args` in a tuple of their own."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], shapes[first:])


def _refusal(error: BaseException, model: nn.Module) -> Finding:
    text = headline(error)
    depends = any(word in str(error) for word in ("data-dependent", "Could not guard", "GuardOnDataDependent"))
    cause = "its forward depends on values" if depends else "torch.export cannot follow its forward"
    return Finding(
        code="not-exportable", severity="error", module=locate_module(error, model) or None,
        message=f"{cause}: {text.rstrip('.')}.",
        remedy="decide by shapes and attributes instead of tensor values (or with torch.cond), keep that part out of "
               "the model, or use an eager or fx recipe such as --qat-recipe=fx-x86.",
        evidence={"error": type(error).__name__})


def module_of(node: torch.fx.Node) -> str:
    """Return the name of the user's module that made a node; "" is the model itself."""
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
