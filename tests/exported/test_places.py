"""Which line of the user's a node comes from, and which node an error is about."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.core.tracebacks import line_of_trace
from pytest_qat.exported.places import blamed_node, described, line_of, nodes_of_op, op_of
from pytest_qat.exported.program import export_program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return torch.matmul(y, self.weight)


HERE = Path(__file__).name
LINE = inspect.getsourcelines(Net.forward)[1]
GRAPH = export_program(Net().eval(), (torch.randn(2, 4),), any_batch=False).graph
(LINEAR,), (PRODUCT,) = nodes_of_op(GRAPH, "aten::linear"), nodes_of_op(GRAPH, "aten::matmul")


def test_a_node_tells_its_module_and_the_line_that_asked_for_it() -> None:
    assert (line_of(LINEAR), line_of(PRODUCT)) == (f"{HERE}:{LINE + 1}", f"{HERE}:{LINE + 2}")
    assert described(LINEAR) == f"linear in layer ({HERE}:{LINE + 1})"
    assert described(PRODUCT) == f"matmul ({HERE}:{LINE + 2})"
    assert op_of(GRAPH.output_node()) == ""


def test_the_innermost_line_of_the_user_is_told_and_failing_that_the_innermost_outside_of_torch() -> None:
    torch_file, library = torch.nn.functional.__file__, str(Path(torch.__file__).parents[1] / "timm" / "layers.py")
    frames = ['File "/home/me/net.py", line 3, in forward', f'File "{library}", line 7, in forward',
              f'File "{torch_file}", line 9, in linear']
    assert line_of_trace("\n".join(frames)) == "net.py:3"
    assert line_of_trace("\n".join(frames[1:])) == "layers.py:7"
    assert line_of_trace(frames[2]) == ""
    assert line_of_trace("") == ""


def raised(text: str, *, cause: str = "") -> BaseException:
    try:
        try:
            raise ValueError(cause or "nothing")
        except ValueError as error:
            raise RuntimeError(text) from error
    except RuntimeError as error:
        return error


def test_an_error_is_about_the_node_that_was_executed() -> None:
    assert blamed_node(raised(f"failed\n\nWhile executing %{PRODUCT.name} : [num_users=1]"), GRAPH) is PRODUCT
    assert blamed_node(raised("advice", cause=f"While executing %{LINEAR.name} : x"), GRAPH) is LINEAR


def test_an_error_is_about_the_op_that_it_names() -> None:
    assert blamed_node(raised("Lowering not found: aten.matmul.default"), GRAPH) is PRODUCT
    assert blamed_node(raised("no kernel for aten::linear"), GRAPH) is LINEAR
    assert blamed_node(raised("no kernel for aten::cdist"), GRAPH) is None
    assert blamed_node(raised("Didn't find op for builtin opcode 'STABLEHLO_MATMUL' version '1'."), GRAPH) is PRODUCT


def test_an_error_is_about_the_node_that_its_code_worked_on() -> None:
    def work(graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            if node is PRODUCT:
                raise IndexError("list index out of range")

    with pytest.raises(IndexError) as caught:
        work(GRAPH)
    assert blamed_node(caught.value, GRAPH) is PRODUCT


def test_nothing_is_blamed_without_a_sign() -> None:
    assert blamed_node(raised("list index out of range"), GRAPH) is None
