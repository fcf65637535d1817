"""Where in the user's code a node of an exported graph comes from, and which node an error of others is about."""

from __future__ import annotations

import re

import torch

from pytest_qat.core.tracebacks import line_of_trace
from pytest_qat.exported.program import module_of

__all__ = ["blamed_node", "described", "line_of", "nodes_of_op", "op_of"]

_EXECUTED = re.compile(r"While executing %(\w+) :")
_OP = re.compile(r"\b(?:torch\.ops\.)?(aten|quantized_decomposed|torchvision|torchao)(?:\.|::)(\w+)(?:\.\w+)?")
_OPCODE = re.compile(r"builtin opcode '(?:STABLEHLO_)?(\w+)'")
"""How LiteRT's interpreter names what it does not have."""
_NODE_NAMES = ("node", "n", "conv_node", "fx_node", "current_node", "source_node")
"""What the tools call the node that they are working on."""


def line_of(node: torch.fx.Node) -> str:
    """Return `file:line` of the user's code that asked for a node; empty if the graph does not tell."""
    return line_of_trace(str(node.meta.get("stack_trace") or ""))


def described(node: torch.fx.Node) -> str:
    """Return what a node does and where, such as `conv3d in encoder.down (net.py:12)`."""
    module, line = module_of(node), line_of(node)
    what = op_of(node).rpartition("::")[2] or node.name
    return what + (f" in {module}" if module else "") + (f" ({line})" if line else "")


def op_of(node: torch.fx.Node) -> str:
    """Return the name of a node's op without its overload, such as `aten::conv2d`; empty for nodes that call none."""
    schema = getattr(node.target, "_schema", None)  # executorch's wrappers of torch's ops have one, too
    return str(schema.name) if schema is not None else ""


def nodes_of_op(graph: torch.fx.Graph, op: str) -> list[torch.fx.Node]:
    """Return the nodes that call an op, such as `aten::conv2d`, in any of its overloads."""
    return [node for node in graph.nodes if node.op == "call_function" and op_of(node) == op]


def blamed_node(error: BaseException, graph: torch.fx.Graph) -> torch.fx.Node | None:
    """Return the node of a graph that an error is about, or None if nothing tells.

    What tells: the words of torch's interpreter, an op that the message names, and the node that the code which raised
    was working on.

    Args:
        error: As caught, with its traceback and its causes.
        graph: The graph that was being transformed or lowered.
    """
    chain = _chain(error)
    by_name: dict[str, torch.fx.Node] = {each.name: each for each in graph.nodes}
    for each in chain:
        executed = _EXECUTED.search(_text_of(each))
        node = by_name.get(executed[1]) if executed else None
        if node is not None and line_of(node):
            return node
    for each in chain:
        for namespace, op in _OP.findall(_text_of(each)):
            if found := nodes_of_op(graph, f"{namespace}::{op}"):
                return found[0]
        if opcode := _OPCODE.search(_text_of(each)):
            named: list[torch.fx.Node] = [
                node for node in graph.nodes if op_of(node).rpartition("::")[2] == opcode[1].lower()]
            if named:
                found_node: torch.fx.Node = named[0]
                return found_node
    worked_on = (_worked_on(each) for each in chain)
    return next((node for node in worked_on if node is not None and (line_of(node) or module_of(node))), None)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and what it was raised from, the first cause first."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.insert(0, link)
        link = link.__cause__ or link.__context__
    return found


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception whose text raises
        return ""


def _worked_on(error: BaseException) -> torch.fx.Node | None:
    """Return the node that the innermost frame with one was working on."""
    trace, found = error.__traceback__, None
    while trace is not None:
        for name in _NODE_NAMES:
            value = trace.tb_frame.f_locals.get(name)
            if isinstance(value, torch.fx.Node) and value.op == "call_function":
                found = value
                break
        trace = trace.tb_next
    return found
