"""What an error and its traceback tell: text, module, the user's line, and which of torch's functions were running."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pytest_qat.core.tracebacks import Step, line_of_trace, locate_module, steps_of
from pytest_qat.workflows.names import observed, user_names

__all__ = ["Raised", "holds_int8"]

_INT8_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_WRITTEN_BY_FX = "<eval_with_key>"


@dataclass(frozen=True)
class Raised:
    """An error, and what can be read off its traceback.

    Attributes:
        error: As caught, with its traceback.
        model: The module that was being called or transformed.
        stage: What was going on.
    """

    error: BaseException
    model: nn.Module
    stage: str

    @cached_property
    def text(self) -> str:
        """The message."""
        return str(self.error)

    @cached_property
    def steps(self) -> list[Step]:
        """The frames, the outermost first."""
        return steps_of(self.error)

    @cached_property
    def owners(self) -> list[nn.Module]:
        """The modules whose methods were running, the outermost first."""
        return [step.module for step in self.steps if step.module is not None]

    @cached_property
    def owner(self) -> nn.Module | None:
        """The innermost module that was running; what torch.fx wrote counts as its graph module."""
        return self.owners[-1] if self.owners else None

    @cached_property
    def module(self) -> str | None:
        """The user's own name of the innermost module of the model that was running."""
        found = locate_module(self.error, self.model)
        name = user_names(self.model).get(found) if found else self._converted
        return observed(name) if name and "activation_post_process" in name else name or None

    @cached_property
    def line(self) -> str:
        """The user's own line inside of a module that was running, as `file:line`; empty where there is none."""
        inside = [index for index, step in enumerate(self.steps) if step.module is not None]
        below = self.steps[inside[0]:] if inside else []
        own = [step.place for step in below if step.origin == "own"]
        if own:
            return own[-1]
        if self._node is not None:
            return line_of_trace(self._node.stack_trace or "")
        return line_of_trace(self.text.partition("Original traceback:")[2])

    @cached_property
    def outside(self) -> bool:
        """Whether it happened behind an int8 model and not in it: no method of a module of the model was running."""
        inner = {id(module) for module in self.model.modules()}
        called = type(self.model).__name__
        return holds_int8(self.model) and not any(
            id(owner) in inner or type(owner).__name__ == called for owner in self.owners)

    @property
    def in_quantization_code(self) -> bool:
        """Whether torch.ao or torchao was running when it was raised; its calls into torch itself count."""
        last = [step.frame.f_globals.get("__name__", "") for step in self.steps if step.origin == "machinery"]
        return any(name.startswith(("torch.ao.", "torchao.")) for name in last[-3:])

    @property
    def in_int8_layer(self) -> bool:
        """Whether the innermost module that was running is an int8 one, static or dynamic."""
        return self.owner is not None and type(self.owner).__module__.startswith(_INT8_MODULES)

    def within(self, *functions: str) -> Step | None:
        """Return the innermost frame of one of these functions of torch or torchao; None if none was running."""
        for step in reversed(self.steps):
            home = step.frame.f_globals.get("__name__", "")
            if step.function in functions and home.startswith(("torch.", "torchao.")):
                return step
        return None

    def local(self, name: str, *functions: str) -> Any:
        """Return the value of a name in the innermost frame of one of these functions; None without one."""
        step = self.within(*functions)
        return None if step is None else step.frame.f_locals.get(name)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the tensors that the frames hold, those in lists, tuples and dicts included."""
        for step in self.steps:
            for value in step.frame.f_locals.values():
                parts = value.values() if type(value) is dict else value if isinstance(value, (list,
                                                                                               tuple)) else [value]
                yield from (part for part in parts if isinstance(part, torch.Tensor))

    @cached_property
    def _node(self) -> torch.fx.Node | None:
        """The node of a traced model that was running, by the line of the code that torch.fx wrote for it."""
        for step in reversed(self.steps):
            code = step.frame.f_code
            if code.co_filename.startswith(_WRITTEN_BY_FX) and isinstance(step.module, torch.fx.GraphModule):
                assigned = re.match(r"\s*(\w+)\s*=", linecache.getline(code.co_filename, step.line))
                nodes = {node.name: node for node in step.module.graph.nodes}
                return nodes.get(assigned[1]) if assigned else None
        return None

    @cached_property
    def _converted(self) -> str | None:
        """The module that prepare or convert was at: eager ones walk down by names, torch.fx from node to node."""
        prefix = self.local("prefix", "_propagate_qconfig_helper")
        if prefix:
            return str(prefix)
        names = [str(step.frame.f_locals.get("name")) for step in self.steps if step.function == "_convert"
                 and step.frame.f_globals.get("__name__") == "torch.ao.quantization.quantize"]
        node = self.local("node", "convert_weighted_module")
        return ".".join(names) or (str(node.target) if isinstance(node, torch.fx.Node) else None)


def holds_int8(model: nn.Module) -> bool:
    """Return whether a model was converted to int8 modules, or to a graph with int8 operations."""
    for module in model.modules():
        if type(module).__module__.startswith(_INT8_MODULES) and not isinstance(
                module, torch.ao.nn.quantized.FloatFunctional):
            return True
        if isinstance(module, torch.fx.GraphModule) and any(
                node.target is torch.quantize_per_tensor or str(node.target).startswith("quantized")
                for node in module.graph.nodes):
            return True
    return False
