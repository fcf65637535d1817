"""An exported program in a plainer form that every quantizer and runtime takes; what it computes stays the same.

Each function changes a program in place: regions without gradient become part of the graph, `padding="same"` becomes
numbers, PReLU gets the channels where runtimes look for them, bags of one size become rows and their reduction, and
what nobody reads goes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["frozen_parameters", "rewrite"]

_FROZEN = "pytest_qat_frozen"
_SAME: dict[Any, Any] = {torch.ops.aten.conv1d.padding: torch.ops.aten.conv1d.default,
         torch.ops.aten.conv2d.padding: torch.ops.aten.conv2d.default,
         torch.ops.aten.conv3d.padding: torch.ops.aten.conv3d.default}
_INPUT, _WEIGHT, _BIAS, _STRIDE, _PADDING, _DILATION, _GROUPS = range(7)


def rewrite(program: torch.export.ExportedProgram) -> None:
    """Bring a program into the plain form, in place."""
    inline_regions(program)
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target in _SAME:
            _replace(program, node, lambda made, node=node: _padded_by_numbers(made, node))
        elif node.target is torch.ops.aten.view.default:  # decompositions change strides that it relies on
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.prelu.default and _value(node.args[0]).dim() in (2, 3):
            _replace(program, node, lambda made, node=node: _prelu_of_images(made, node))
        elif node.target is operator.getitem and node.args[1] == 0 and (bags := _bags_of_one_size(node.args[0])):
            _replace(program, node, lambda made, bags=bags: _reduced_rows(made, *bags))
    _drop_what_nobody_reads(graph)
    program.graph_module.recompile()


def frozen_parameters(graph_module: torch.fx.GraphModule) -> frozenset[str]:
    """Return the parameters that only `torch.no_grad()` regions of the user's forward read: they do not learn."""
    return frozenset(str(node.target) for node in graph_module.graph.nodes
                     if node.op == "get_attr" and node.meta.get(_FROZEN))


# -- regions --------------------------------------------------------------------------------------------------------


def inline_regions(program: torch.export.ExportedProgram) -> None:
    """Put the inside of `torch.no_grad()` and of switched-off autocast regions in the place of their calls.

    Quantizers and converters do not look into them. Parameters that are read in no other place are marked, because
    they would learn otherwise.
    """
    graph_module = program.graph_module
    learning = _learning(graph_module.graph)
    while regions := [node for node in graph_module.graph.nodes if _region_of(graph_module, node) is not None]:
        for node in regions:
            region = _region_of(graph_module, node)
            assert region is not None, "unreachable because regions are chosen by it"
            _inline(program, node, *region)
    if learning is None or not any(node.op == "placeholder" and node in learning for node in graph_module.graph.nodes):
        return
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" and node not in learning:
            node.meta[_FROZEN] = True


def _region_of(graph_module: torch.fx.GraphModule,
               node: torch.fx.Node) -> tuple[torch.fx.GraphModule, tuple[Any, ...]] | None:
    """Return what a node wraps and its arguments; None for nodes that wrap nothing that can be inlined."""
    name = str(node.target)
    if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return None
    if name == "wrap_with_autocast" and node.args[2] is not False:
        return None  # it casts
    place = next(index for index, argument in enumerate(node.args) if isinstance(argument, torch.fx.Node))
    inside = operator.attrgetter(str(node.args[place].target))(graph_module)  # type: ignore[union-attr]
    return inside, tuple(node.args[place + 1:])


def _learning(graph: torch.fx.Graph) -> set[torch.fx.Node] | None:
    """Return the nodes from which the output is reached outside of regions without gradient; None: there are none."""
    apart = {node for node in graph.nodes
             if str(node.target) == "wrap_with_set_grad_enabled" and node.args[0] is False}
    if not apart:
        return None
    found: set[torch.fx.Node] = set()
    left = [graph.output_node()]
    while left:
        node = left.pop()
        if node not in found and node not in apart:
            found.add(node)
            left += node.all_input_nodes
    return found


def _inline(program: torch.export.ExportedProgram, node: torch.fx.Node, inside: torch.fx.GraphModule,
            arguments: tuple[Any, ...]) -> None:
    graph = node.graph
    values: dict[torch.fx.Node, Any] = {}
    given = iter(arguments)
    results: Any = None
    with graph.inserting_before(node):
        for inner in inside.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "output":
                results = torch.fx.node.map_arg(inner.args[0], values.__getitem__)
            else:
                values[inner] = graph.node_copy(inner, values.__getitem__)
                if inner.op == "get_attr":
                    values[inner].target = _moved(program.graph_module, inside, str(inner.target))
    for user in list(node.users):
        if user.target is operator.getitem:
            _take_over(program, user, results[user.args[1]])
    if node.users:
        _take_over(program, node, results if isinstance(results, torch.fx.Node) else results[0])
    else:
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _moved(owner: torch.fx.GraphModule, inside: torch.fx.GraphModule, target: str) -> str:
    """Give the outer module what an inner one reads, and return its name there."""
    value = operator.attrgetter(target)(inside)
    name = base = target.replace(".", "_")
    number = 0
    while hasattr(owner, name) and getattr(owner, name) is not value:
        number += 1
        name = f"{base}_{number}"
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)
    return name


# -- single nodes ---------------------------------------------------------------------------------------------------


def _replace(program: torch.export.ExportedProgram, node: torch.fx.Node, make: Any) -> None:
    """Put what `make` builds in the place of a node; everything new is of the same module and line."""
    with node.graph.inserting_before(node):
        _take_over(program, node, make(_Builder(node)))


def _take_over(program: torch.export.ExportedProgram, node: torch.fx.Node, new: torch.fx.Node) -> None:
    node.replace_all_uses_with(new)
    program.graph_signature.replace_all_uses(node.name, new.name)
    node.graph.erase_node(node)


def _drop_what_nobody_reads(graph: torch.fx.Graph) -> None:
    """Take out what has no effect on the output, changes in place of values that nobody else reads included."""
    while True:
        graph.eliminate_dead_code()
        unread = [node for node in graph.nodes if not node.users and _changes_only_its_own(node)]
        for node in unread:
            graph.erase_node(node)
        if not unread:
            return


def _changes_only_its_own(node: torch.fx.Node) -> bool:
    """Whether a node changes in place only what it is the one reader of, made by an op that gives fresh memory."""
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - no public name
        return False
    schema = node.target._schema  # noqa: SLF001 - torch's way to tell arguments
    changed = [value for argument, value in zip(schema.arguments, node.args, strict=False)
               if argument.alias_info is not None and argument.alias_info.is_write]
    return bool(changed) and all(
        isinstance(value, torch.fx.Node) and isinstance(value.target, torch._ops.OpOverload)  # noqa: SLF001
        and len(value.users) == 1 and not any(
            result.alias_info for result in value.target._schema.returns)  # noqa: SLF001
        for value in changed)


class _Builder:
    """Adds nodes that stand for a part of one node."""

    def __init__(self, node: torch.fx.Node) -> None:
        self._node = node
        self._mode = _value(node).fake_mode

    def __call__(self, target: Any, *args: Any) -> torch.fx.Node:
        made = self._node.graph.call_function(target, args)
        made.meta = dict(self._node.meta)
        with self._mode:
            made.meta["val"] = target(*torch.fx.node.map_arg(args, _value))
        return made


def _value(node: Any) -> Any:
    return node.meta["val"]


def _padded_by_numbers(made: _Builder, node: torch.fx.Node) -> torch.fx.Node:
    """Return a convolution with the numbers that "same" or "valid" stand for, as torch itself computes them."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults: dict[str, Any] = {"bias": None, "stride": [1], "padding": "valid", "dilation": [1], "groups": 1}
    given = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    kernel = _value(given["weight"]).shape[2:]
    dilation = _as_many(given["dilation"], kernel)
    whole = [0] * len(kernel) if given["padding"] == "valid" else [
        step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    source = given["input"]
    more = [side % 2 for side in whole]  # an even kernel needs one more on its right
    if any(more):
        ends = [end for side in reversed(more) for end in (0, side)]
        source = made(torch.ops.aten.constant_pad_nd.default, source, ends, 0.0)
    return made(_SAME[node.target], source, given["weight"], given["bias"], _as_many(given["stride"], kernel),
                [side // 2 for side in whole], dilation, given["groups"])


def _as_many(value: Iterable[int], kernel: Any) -> list[int]:
    sides = list(value)
    return sides * len(kernel) if len(sides) == 1 else sides


def _prelu_of_images(made: _Builder, node: torch.fx.Node) -> torch.fx.Node:
    """Return a PReLU over (N, C, H, W): XNNPACK has no other."""
    source, slope = node.args
    missing = 4 - _value(source).dim()
    image = source
    for _ in range(missing):
        image = made(torch.ops.aten.unsqueeze.default, image, -1)
    found = made(torch.ops.aten.prelu.default, image, slope)
    for _ in range(missing):
        found = made(torch.ops.aten.squeeze.dim, found, -1)
    return found


def _bags_of_one_size(node: Any) -> tuple[Any, Any, int] | None:
    """Return table, indices (bags, size) and mode of an embedding bag over a matrix of indices; None for others."""
    if node.target is not torch.ops.aten.embedding_bag.padding_idx:
        return None
    table, flat, offsets, _, mode, _, weights, last, padding = node.args
    if weights is not None or last or padding not in (None, -1):
        return None
    if flat.target is not torch.ops.aten.reshape.default or offsets.target is not torch.ops.aten.arange.start_step:
        return None
    indices = flat.args[0]
    fits = _value(indices).dim() == 2 and offsets.args[0] == 0 and offsets.args[2] == _value(indices).shape[1]
    return (table, indices, mode) if fits else None


def _reduced_rows(made: _Builder, table: torch.fx.Node, indices: torch.fx.Node, mode: int) -> torch.fx.Node:
    """Return the sum, mean or largest value of the rows of each bag: runtimes have no embedding bag."""
    rows = made(torch.ops.aten.embedding.default, table, indices)
    if mode == 0:
        return made(torch.ops.aten.sum.dim_IntList, rows, [1])
    return made(torch.ops.aten.mean.dim if mode == 1 else torch.ops.aten.amax.default, rows, [1])
