"""Convert a prepared model, and try at once whether that works: what fails is left out before any training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from pytest_qat.core.batches import call
from pytest_qat.core.forked import crash_of
from pytest_qat.workflows.fx.graphs import convert_graph
from pytest_qat.workflows.fx.parts import Part, naming_part
from pytest_qat.workflows.observers import switch_fake_quantize, switch_observers, take_over_ranges

__all__ = ["int8_form", "try_int8"]


def int8_form(prepared: nn.Module) -> nn.Module:
    """Return the int8 form of a copy of a prepared model, a graph or one with parts that are graphs."""
    module: nn.Module = copy.deepcopy(prepared).eval()
    if isinstance(module, GraphModule):
        return convert_graph(module)
    for part in [part for part in module.modules() if isinstance(part, Part)]:
        with naming_part(part.name):
            assert isinstance(part.graph, GraphModule), "unreachable because parts are prepared as graphs"
            part.graph = convert_graph(part.graph)
    return module.eval()


def try_int8(prepared: nn.Module, inputs: Any) -> None:
    """Convert a copy of a prepared model after one batch, and call it on the same.

    A kernel that kills its process is none of this function's business: the first call of what ships tells of it.

    Raises whatever torch raises.
    """
    trial = copy.deepcopy(prepared).eval()
    switch_observers(trial, on=True)
    switch_fake_quantize(trial, on=False)
    with torch.no_grad():
        call(trial, _plain_copy(inputs))
        switch_fake_quantize(trial, on=True)
        take_over_ranges(trial)
        converted = int8_form(trial)
        if crash_of(converted, [inputs]) is None:
            call(converted, _plain_copy(inputs))


def _plain_copy(inputs: Any) -> Any:
    return copy.deepcopy(inputs)
