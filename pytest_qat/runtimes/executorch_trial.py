"""Try a lowered program before it ships, and name the operator that ExecuTorch has no kernel for or that fails.

The runtime itself answers with a number such as 0x12 or 0x14, and tells the rest on the standard error output.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_qat.errors import CheckFailed
from pytest_qat.exported.places import described, line_of
from pytest_qat.exported.program import module_of
from pytest_qat.findings import Finding

__all__ = ["try_program"]

_FAILED_CALL = re.compile(r"KernelCall failed at instruction \d+:(\d+) in operator (\S+?): 0x\w+")
_FAILED_NODE = re.compile(r"Failed to create ([^\n]*?) node (\d+),? with code: (\w+)")
_REASON = re.compile(r"^\[[\w.]+:\d+\] Check failed \(.*?\): ([^\n:]+)$", re.MULTILINE)
_LAST_LINES = 3


def try_program(manager: Any, example: Sequence[Tensor], *, runtime: Any) -> None:
    """Load a program and run it once.

    Args:
        manager: What `to_executorch` returned.
        example: The tensors of one batch.
        runtime: ExecuTorch's own.

    Raises:
        CheckFailed: an operator has no kernel, or a kernel does not take its values; the finding names the operator,
            the user's module and line.
    """
    plan = manager.executorch_program.execution_plan[0]
    graph_module = manager.exported_program().graph_module
    known = set(runtime.operator_registry.operator_names)
    missing = [_full_name(operator) for operator in plan.operators if _full_name(operator) not in known]
    if missing:
        raise CheckFailed([f"ExecuTorch has no kernel for {', '.join(missing)}."], findings=[
            _finding("no-kernel", f"ExecuTorch has no kernel for {name}", _calls_of(name, graph_module))
            for name in missing])
    with _overheard() as log:
        try:
            method = runtime.load_program(bytes(manager.buffer)).load_method("forward")
            if method is not None:
                method.execute(list(example))
        except RuntimeError as error:
            raise _refused(error, log(), graph_module, plan) from error


def _full_name(operator: Any) -> str:
    return f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)


def _calls_of(name: str, graph_module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph_module.graph.nodes if _name_of(node) == name]


def _name_of(node: torch.fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return ""
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else str(schema.name)


def _refused(error: RuntimeError, log: str, graph_module: torch.fx.GraphModule, plan: Any) -> CheckFailed:
    """Return what the runtime's own words say about a program that does not load or run."""
    why = "; ".join(dict.fromkeys(found.strip().rstrip(".") for found in _REASON.findall(log)))
    if call := _FAILED_CALL.search(log):
        name = call[2]
        nodes = _calls_of(name, graph_module)
        nodes = nodes[_place_among_calls(int(call[1]), name, plan):][:1] or nodes
        text = f"its kernel for {name} does not take these values{f': {why}' if why else ''}"
        return CheckFailed([f"ExecuTorch cannot run {name}."], findings=[_finding("kernel-refused", text, nodes)])
    if created := _FAILED_NODE.search(log):
        nodes = [node for node in _delegated(graph_module) if node.meta.get("debug_handle") == int(created[2])]
        text = f"XNNPACK cannot make its {created[1]} operator ({created[3].removeprefix('xnn_status_')}" + (
            f": {why})" if why else ")")
        return CheckFailed([f"XNNPACK refuses a {created[1]}."], findings=[_finding("kernel-refused", text, nodes)])
    last = "; ".join(line.partition("] ")[2] or line for line in log.strip().splitlines()[-_LAST_LINES:])
    return CheckFailed([f"ExecuTorch cannot run the program: {error}."], findings=[_finding(
        "runtime-refused", f"ExecuTorch said: {last or error}", [])])


def _place_among_calls(instruction: int, name: str, plan: Any) -> int:
    """Return how many calls of an operator come before an instruction."""
    calls = [getattr(each.instr_args, "op_index", None) for each in plan.chains[0].instructions[:instruction]]
    return sum(index is not None and _full_name(plan.operators[index]) == name for index in calls)


def _delegated(graph_module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """Yield the nodes inside of delegates."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and hasattr(delegate := getattr(graph_module, str(node.target)), "original_module"):
            yield from delegate.original_module.graph_module.graph.nodes


def _finding(code: str, text: str, nodes: Sequence[torch.fx.Node]) -> Finding:
    places = list(dict.fromkeys(described(node) for node in nodes))
    modules = list(dict.fromkeys(module_of(node) for node in nodes))
    lines = [line for node in nodes if (line := line_of(node))]
    where = f" ({places[0]})" if len(places) == 1 else f" (in {len(places)} places: {'; '.join(places[:5])})"
    return Finding(
        code=code, severity="error", module=(modules[0] or None) if len(modules) == 1 else None,
        message=f"{text}{where if places else ''}.", evidence={"places": places[:20], "lines": lines[:20]})


@contextlib.contextmanager
def _overheard() -> Iterator[Callable[[], str]]:
    """Collect what native code writes to the standard error output; what is called returns it."""
    with tempfile.TemporaryFile() as heard:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(heard.fileno(), 2)

        def said() -> str:
            heard.seek(0)
            return heard.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
