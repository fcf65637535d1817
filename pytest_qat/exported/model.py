"""Exported graphs as modules that can be switched between train and eval mode and run batches of any size.

torchao's own train/eval switch replaces BatchNorm and dropout by patterns with the default eps and p. The switch here
only sets the training flag of each op, so that everything else stays as the user set it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from pytest_qat.core.batches import in_parts, sample_count
from pytest_qat.errors import DataError
from pytest_qat.exported.outputs import OutputForm
from pytest_qat.exported.program import fixed_batch, fixed_shapes, module_of

__all__ = ["ExportedModel", "always_on_nodes", "as_module", "training_nodes", "workflow_of"]

_FLAGS = ("training", "train")


class ExportedModel(nn.Module):
    """An exported graph that can be switched between train and eval mode.

    Attributes:
        batch: The one batch size that it was exported for; None: any. In eval mode, other sizes are run in parts.

    Args:
        graph_module: What `ExportedProgram.module()` returned, possibly prepared or converted.
        always_on: Names of nodes that the user wrote so that they are in train mode whatever the model's mode is.
        outputs: The form of what the model returns, where the graph gives its tensors in a row.
    """

    def __init__(self, graph_module: torch.fx.GraphModule, *, always_on: frozenset[str] = frozenset(),
                 outputs: OutputForm | None = None) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.always_on = always_on
        self.outputs = outputs
        self.batch = fixed_batch(graph_module)
        self._shapes = fixed_shapes(graph_module) if self.batch is not None else frozenset()
        self._batchnorm_frozen = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; arguments that were exported by position can also be passed by name.

        Raises:
            DataError: in train mode, the batch size differs from the one that the graph was exported for.
        """
        made = self._run_batch(*args, **kwargs)
        return made if self.outputs is None else self.outputs.around(made)

    def _run_batch(self, *args: Any, **kwargs: Any) -> Any:
        if self.batch is None or (samples := sample_count((args, kwargs))) in (self.batch, 0):
            return self._run(*args, **kwargs)
        if self.training:
            raise DataError(f"torch.export has fixed the batch size of this model at {self.batch}, but a batch has "
                            f"{samples}.", hint=f"Give batches of {self.batch} (drop_last=True).")
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
        """Stop updating the statistics of BatchNorm in train mode."""
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
    """Return a model that can be switched between train and eval mode, which means wrapping exported graphs."""
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
    """Return the index of a node's training flag among its arguments; None if it has none."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - no public name
        return None
    for place, argument in enumerate(node.target._schema.arguments):  # noqa: SLF001 - torch has no other record
        if argument.name in _FLAGS and place < len(node.args):
            return place
    return None


def always_on_nodes(graph_module: torch.fx.GraphModule) -> frozenset[str]:
    """Return the ops of a graph that was exported in eval mode whose training flag is set anyway."""
    return frozenset(node.name for node in graph_module.graph.nodes
                     if (place := _flag_place(node)) is not None and node.args[place] is True)


def training_nodes(graph_module: torch.fx.GraphModule) -> list[str]:
    """Return the modules whose ops have their training flag set in a graph, by name; "" where it is not known."""
    return list(dict.fromkeys(
        module_of(node) for node in graph_module.graph.nodes
        if (place := _flag_place(node)) is not None and node.args[place] is True
        and not (str(node.target).startswith("aten.dropout") and not node.args[1])))
