"""Recurrent layers are counted in the graph, and refused where writing their steps out would take too long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.errors import CheckFailed
from pytest_qat.exported.program import export_program
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import load_runtime
from pytest_qat.runtimes.exported import ExportedRuntime
from pytest_qat.runtimes.unrolled import check_steps, recurrences
from pytest_qat.workflows import pt2e


class Recurrent(nn.Module):
    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 6, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def graph_of(model: nn.Module, length: int = 20, batch: int = 2, *, first: bool = True) -> torch.fx.Graph:
    shape = (batch, length, 8) if first else (length, batch, 8)
    return export_program(model.eval(), (torch.randn(shape),), any_batch=False).graph


@pytest.mark.parametrize(("kind", "name"), [
    (nn.LSTM, "LSTM"), pytest.param(nn.GRU, "GRU", marks=pytest.mark.slow), (nn.RNN, "RNN")])
def test_steps_are_the_length_times_layers_times_directions(kind: Any, name: str) -> None:
    graph = graph_of(Recurrent(kind, num_layers=3, bidirectional=True, batch_first=True))
    (found,) = recurrences(graph)
    assert (found.module, found.kind, found.steps) == ("rnn", name, 120)
    assert found.line.startswith("test_unrolled.py:")


def test_the_length_is_where_the_layer_takes_it() -> None:
    (found,) = recurrences(graph_of(Recurrent(), length=7, batch=3, first=False))
    assert found.steps == 7


def test_models_without_recurrence_are_not_counted() -> None:
    assert list(recurrences(graph_of(nn.Sequential(nn.Linear(8, 8))))) == []


def test_too_many_steps_are_refused_with_layer_line_and_estimate() -> None:
    graph = graph_of(Recurrent(batch_first=True), length=160)
    with pytest.raises(CheckFailed) as caught:
        check_steps(graph, runtime="this", seconds_per_step={"LSTM": 2.0}, timeout_s=300)
    (finding,) = caught.value.findings
    assert (finding.code, finding.module) == ("unrolled-recurrence", "rnn")
    assert finding.evidence == {"steps": 160, "estimate_s": 320.0, "timeout_s": 300}
    assert "94%" in finding.remedy
    check_steps(graph, runtime="this", seconds_per_step={"LSTM": 2.0}, timeout_s=330)
    check_steps(graph, runtime="this", seconds_per_step={"GRU": 2.0}, timeout_s=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "refused"), [
    ("pt2e-executorch", True), ("pt2e-litert", True), ("pt2e-onnxruntime", False), ("pt2e-inductor", True)])
def test_each_runtime_says_what_a_step_costs_it(name: str, *, refused: bool) -> None:
    recipe = get_recipe(name)
    if name != "pt2e-inductor":
        pytest.importorskip({"pt2e-executorch": "executorch", "pt2e-litert": "litert_torch"}.get(name, "onnxruntime"))
    model = Recurrent(nn.GRU, num_layers=2, batch_first=True).eval()
    case = QATCase(model=nn.Sequential(nn.Linear(8, 8), model), example_inputs=(torch.randn(2, 500, 8),))
    prepared: Any = pt2e.prepare(case, recipe).module
    runtime = load_runtime(recipe.runtime)
    assert isinstance(runtime, ExportedRuntime)
    if not refused:
        runtime.check_graph(prepared.graph_module.graph, timeout_s=200)
        return
    with pytest.raises(CheckFailed) as caught:
        runtime.check_graph(prepared.graph_module.graph, timeout_s=200)
    assert [finding.module for finding in caught.value.findings] == ["1.rnn"]
