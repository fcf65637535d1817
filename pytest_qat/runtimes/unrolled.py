"""Recurrent layers that a runtime has no operator for: its converter writes every step of the sequence out.

A step is a dozen operators, which are exported, partitioned and compiled one by one, so that a long sequence takes
minutes to hours. How long is estimated from the graph before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_qat.errors import CheckFailed
from pytest_qat.exported.places import line_of, op_of
from pytest_qat.exported.program import module_of
from pytest_qat.findings import Finding

__all__ = ["Recurrence", "check_steps", "recurrences"]

_OPS = {"aten::lstm": "LSTM", "aten::gru": "GRU", "aten::rnn_tanh": "RNN", "aten::rnn_relu": "RNN"}
_LAYERS, _BIDIRECTIONAL, _BATCH_FIRST = "num_layers", "bidirectional", "batch_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A recurrent layer of a graph.

    Attributes:
        module: Name of the user's module.
        kind: Such as `LSTM`.
        line: `file:line` of the user's code that calls it; empty if unknown.
        steps: Steps that would be written out: length of the sequence, times layers, times directions.
    """

    module: str
    kind: str
    line: str
    steps: int


def recurrences(graph: torch.fx.Graph) -> Iterator[Recurrence]:
    """Yield the recurrent layers of an exported graph."""
    for node in graph.nodes:
        if (kind := _OPS.get(op_of(node))) is None:
            continue
        given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))  # noqa: SLF001
        given.update(node.kwargs)
        made = node.meta.get("val")
        value = made[0] if isinstance(made, (tuple, list)) else None  # observers before it have no shape
        if not isinstance(value, Tensor) or value.dim() != 3:  # packed sequences have no length of their own
            continue
        length = value.shape[1 if given.get(_BATCH_FIRST) else 0]
        directions = 2 if given.get(_BIDIRECTIONAL) else 1
        yield Recurrence(module=module_of(node), kind=kind, line=line_of(node),
                         steps=int(length) * int(given[_LAYERS]) * directions)


def check_steps(graph: torch.fx.Graph, *, runtime: str, seconds_per_step: Mapping[str, float],
                timeout_s: float) -> None:
    """Refuse a model whose steps would take longer to build than there is time.

    Args:
        graph: An exported graph.
        runtime: Name of the runtime, for messages.
        seconds_per_step: What one step of each kind of layer takes to build, in seconds of one processor; kinds that
            are left out are not written out. Measured on one core of an AMD EPYC with 5 to 40 steps of 16 units: the
            time grows with the steps and hardly with the units.
        timeout_s: Most seconds for building.

    Raises:
        CheckFailed: the estimate is over the time; the findings name the layers.
    """
    found = [each for each in recurrences(graph) if each.kind in seconds_per_step]
    steps = sum(each.steps for each in found)
    estimate_s = sum(each.steps * seconds_per_step[each.kind] for each in found)
    if estimate_s <= timeout_s:
        return
    raise CheckFailed(
        [(f"building for {runtime} would take about {estimate_s:,.0f} s, over the {timeout_s:g} s of a stage: "
          f"it writes {steps} recurrent steps out.")],
        findings=[Finding(
            code="unrolled-recurrence", severity="error", module=each.module or None,
            message=f"{runtime} has no operator for {each.kind}, and writes its {each.steps} steps out"
                    f"{f' ({each.line})' if each.line else ''}.",
            remedy=f"shorten the sequence to {timeout_s / estimate_s:.0%} of its length, or give "
                   f"--qat-stage-timeout={math.ceil(estimate_s)}.",
            evidence={"steps": each.steps, "timeout_s": timeout_s,
                      "estimate_s": round(each.steps * seconds_per_step[each.kind], 1)}) for each in found])
