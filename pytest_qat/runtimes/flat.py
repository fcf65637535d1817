"""Models, inputs and outputs as flat lists of tensors, which is what runtimes outside of torch exchange.

Names and containers stay in Python: no file format keeps them in a way that every runtime returns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.exported.fixes import with_own_biases
from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.outputs import tensors_in
from pytest_qat.runtimes.graph_kernels import bias_place

__all__ = ["Container", "InputOrder", "flat_model", "leaves_of"]


def flat_model(module: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """Return a model that takes and returns a flat sequence of tensors; other arguments are those of the example.

    An exported graph stays a graph, because only its nodes keep the names of the user's modules.
    """
    if not isinstance(module, ExportedModel):
        return _FlatModule(module, example_inputs)
    graph = copy.deepcopy(module.graph_module.graph)
    graph.set_codegen(torch.fx.graph.CodeGen())
    for node in graph.nodes:
        if node.op == "call_module" and not node.users:  # torch.export's check of the arguments, which uses them all
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


class _FlatModule(nn.Module):
    """The flat form of a model that is not an exported graph."""

    def __init__(self, model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.training = False
        self.graph_module = model  # `without_wrapper` and `module_of` remove this name
        self._inputs = Container(example_inputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_in(self.graph_module(*self._inputs.around(tensors))))


class Container:
    """The structure around the tensors of a batch, and its leaves that are not tensors.

    Args:
        value: The batch.
    """

    def __init__(self, value: Any) -> None:
        leaves, self._form = pytree.tree_flatten(value)
        self._others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def around(self, tensors: Sequence[Tensor]) -> Any:
        """Return the same structure with other tensors in it."""
        given = iter(tensors)
        return pytree.tree_unflatten([next(given) if other is None else other[0] for other in self._others],
                                     self._form)


class InputOrder:
    """The order of an artifact's inputs: that of the example, whatever the order of keywords and keys in a batch.

    Args:
        example_inputs: The batch that the artifact was built for.
        names: The parameters of the model's `forward`, in order.
    """

    def __init__(self, example_inputs: Any, *, names: Sequence[str]) -> None:
        self._example = example_inputs
        self._names = names

    def leaves(self, inputs: Any) -> list[Tensor]:
        """Return the tensors of a batch; its other values are constants of the artifact."""
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
    """Return contiguous copies of the tensors in a nested value."""
    return [leaf.clone(memory_format=torch.contiguous_format)  # contiguous() keeps odd strides of dimensions of size 1
            for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
