"""Exported graphs: modes are switched by flags alone, any batch fits where it can, modules keep the user's names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_qat.core.batches import with_batch
from pytest_qat.errors import CheckFailed, DataError
from pytest_qat.exported.model import ExportedModel, always_on_nodes, as_module
from pytest_qat.exported.program import export_program, module_of, without_spare_tensors
from pytest_qat.workflows.names import user_names

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
SIZES = (1, 3, 8)


class Regular(nn.Module):
    """BatchNorm and dropout with values that are not the defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.bn = nn.BatchNorm1d(6, eps=0.02, momentum=0.3)
        self.drop = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.bn(self.fc(x)))


class AlwaysDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.own = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.own(self.drop(self.fc(x))), 0.5, training=True)


class Named(nn.Module):
    """Takes keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        return self.fc(x) * scale


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.fc(parts[0] + parts[1])


class RowByRow(nn.Module):
    """Fixes its batch without an error: torch.export unrolls the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(row) for row in x])


class Fixed(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(self.size, 6))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Reading(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * int(x.sum().item() + 3)


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() + 1)


class Shared(nn.Module):
    """Calls one module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.graph_module_head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.graph_module_head(self.block(self.block(x))) + 1


def graph_of(model: nn.Module, inputs: Any = (ROWS,), *, any_batch: bool = True) -> Any:
    return export_program(model.eval(), inputs, any_batch=any_batch).module()


def exported(model: nn.Module, inputs: Any = (ROWS,)) -> ExportedModel:
    graph_module = graph_of(model, inputs)
    return ExportedModel(graph_module, always_on=always_on_nodes(graph_module))


def op(model: ExportedModel | Any, name: str) -> torch.fx.Node:
    graph = getattr(model, "graph_module", model).graph
    return next(node for node in graph.nodes if str(node.target).startswith(f"aten.{name}."))


def sample(size: int) -> Tensor:
    return torch.randn(size, 6)


# -- modes ----------------------------------------------------------------------------------------------------------

def test_eps_momentum_and_p_stay_as_the_user_set_them_in_both_modes() -> None:
    model = exported(Regular())
    for mode in (True, False, True):
        model.train(mode)
        assert op(model, "batch_norm").args[5:8] == (mode, 0.3, 0.02)
        assert op(model, "dropout").args[1:] == (0.7, mode)


def test_train_mode_computes_what_the_users_model_does_in_train_mode() -> None:
    ours, theirs = exported(user := Regular()), copy.deepcopy(user).train()
    ours.train()
    for batch in (sample(4), sample(7)):
        torch.manual_seed(1)
        got = ours(batch)
        torch.manual_seed(1)
        assert torch.allclose(got, theirs(batch), atol=1e-6)
    assert torch.allclose(ours.state_dict()["graph_module.bn.running_var"], theirs.bn.running_var)
    assert torch.allclose(ours.eval()(ROWS), theirs.eval()(ROWS), atol=1e-6)


def test_a_switch_back_to_eval_mode_is_complete() -> None:
    model = exported(Regular()).train().eval()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model(ROWS), model(ROWS))
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_mode_of_a_parent_reaches_an_exported_model() -> None:
    parent = nn.Sequential(exported(Regular()))
    parent.train()
    assert op(parent[0], "dropout").args[2] is True
    parent.eval()
    assert op(parent[0], "dropout").args[2] is False


def test_what_is_always_in_train_mode_stays_so_in_eval_mode() -> None:
    model = exported(AlwaysDropping()).train().eval()
    flags = [node.args[2] for node in model.graph_module.graph.nodes if str(node.target).startswith("aten.dropout")]
    assert flags == [False, True]
    assert op(model, "batch_norm").args[5] is True  # no running statistics to use instead
    assert not torch.equal(model(ROWS), model(ROWS))


def test_frozen_batchnorm_keeps_its_statistics_while_gradients_flow_and_dropout_drops() -> None:
    model = exported(Regular()).train()
    model(sample(16))
    model.freeze_batchnorm()
    before = copy.deepcopy(dict(model.named_buffers()))
    out = model(sample(16))
    out.square().sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for name, parameter
               in model.named_parameters() if name != "graph_module.fc.bias")
    assert (out == 0).any()
    assert op(model, "dropout").args[2] is True


def test_batchnorm_stays_frozen_through_later_switches() -> None:
    model = exported(Regular()).train()
    model.freeze_batchnorm()
    model.eval().train()
    assert op(model, "batch_norm").args[5] is False


def test_a_copy_is_independent_of_its_original() -> None:
    model = exported(Regular()).eval()
    twin = copy.deepcopy(model).train()
    twin.freeze_batchnorm()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    model.train()
    assert op(model, "batch_norm").args[5] is True
    assert op(twin, "batch_norm").args[5] is False
    assert all(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if "bn.bias" not in name)


def test_a_recurrent_layer_switches_its_own_dropout() -> None:
    lstm = nn.LSTM(6, 4, 2, dropout=0.5, batch_first=True)
    model = ExportedModel(graph_of(lstm, (torch.randn(2, 5, 6),)))
    assert op(model.train(), "lstm").args[6] is True
    assert op(model.eval(), "lstm").args[6] is False


def test_only_exported_graphs_are_wrapped() -> None:
    plain = Regular()
    assert as_module(plain) is plain
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    assert as_module(traced) is traced
    assert isinstance(as_module(graph_of(Regular())), ExportedModel)


# -- export ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("model", "inputs"), [
    (Regular(), (ROWS,)),
    (Several(), (ROWS, ROWS)),
    (Named(), {"x": ROWS, "scale": ROWS[:, :1]}),
], ids=["one-tensor", "several", "keywords"])
def test_any_batch_fits_a_model_exported_on_one_of(model: nn.Module, inputs: Any, size: int) -> None:
    program = exported(model, with_batch(inputs, size))
    for other in SIZES:
        batch = with_batch(inputs, other)
        expected, got = ((part(**batch) if isinstance(batch, dict) else part(*batch)) for part in (model, program))
        assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", [Fixed, RowByRow])
def test_a_model_that_fixes_its_batch_is_exported_for_that_batch(kind: Any, size: int) -> None:
    model = kind(size) if kind is Fixed else kind()
    program = exported(model, (batch := sample(size),))
    assert program.batch == size
    assert torch.allclose(program(batch), model(batch), atol=1e-6)
    program.train()
    with pytest.raises(DataError, match=f"fixed the batch size of this model at {size}, but a batch has {size + 1}"):
        program(sample(size + 1))


def test_a_model_that_fixes_its_batch_answers_others_in_parts() -> None:
    model = RowByRow()
    program = exported(model, (sample(4),)).eval()
    for size in (1, 3, 4, 9):
        batch = sample(size)
        assert torch.allclose(program(batch), model(batch), atol=1e-6)
        assert torch.allclose(program(x=batch), model(batch), atol=1e-6)


def test_a_program_for_one_batch_refuses_others_also_after_an_export_for_any() -> None:
    batch, model = sample(4), Regular()
    graph_of(model, (batch,))
    with pytest.raises(AssertionError, match="Guard failed"):
        graph_of(model, (batch,), any_batch=False)(sample(3))


def test_arguments_exported_by_position_may_be_given_by_name() -> None:
    model = Named()
    program = exported(model, (ROWS[:, :1], ROWS))
    expected = model(ROWS[:, :1], ROWS)
    assert torch.allclose(program(x=ROWS, scale=ROWS[:, :1]), expected)
    assert torch.allclose(program(ROWS[:, :1], x=ROWS), expected)


def test_arguments_exported_by_name_come_in_any_order() -> None:
    model = Named()
    program = exported(model, {"x": ROWS, "scale": ROWS[:, :1]})
    assert torch.allclose(program(scale=ROWS[:, :1], x=ROWS), model(ROWS[:, :1], ROWS))


@pytest.mark.parametrize("kind", [Branching, Reading])
def test_control_flow_by_values_is_named_with_its_module(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(kind()))
    with pytest.raises(CheckFailed, match=r"torch\.export refuses the model") as caught:
        graph_of(model)
    (finding,) = caught.value.findings
    assert (finding.code, finding.severity, finding.module) == ("not-exportable", "error", "1.0")
    assert "values of a tensor" in finding.message
    assert finding.evidence["line"].startswith("test_model.py:")
    assert "recipe" not in finding.remedy
    assert finding.evidence["error"] == "GuardOnDataDependentSymNode"


def test_other_refusals_do_not_claim_to_know_the_cause() -> None:
    with pytest.raises(CheckFailed) as caught:
        graph_of(nn.Sequential(nn.Linear(6, 6), Leaving()))
    (finding,) = caught.value.findings
    assert finding.module == "1"
    assert "values of a tensor" not in finding.message
    assert finding.evidence["line"].startswith("test_model.py:")


def test_a_refusal_by_the_model_itself_names_no_module() -> None:
    class Top(Regular):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CheckFailed) as caught:
        graph_of(Top())
    assert caught.value.findings[0].module is None


# -- names ----------------------------------------------------------------------------------------------------------

def test_nodes_know_the_users_module_also_when_it_is_called_twice() -> None:
    nodes = [node for node in graph_of(Shared()).graph.nodes if str(node.target).startswith("aten.")]
    assert [module_of(node) for node in nodes] == [
        "block.0", "block.1", "block.0", "block.1", "graph_module_head", ""]


def test_the_wrappers_own_level_is_no_part_of_a_name() -> None:
    again = graph_of(exported(Shared()))
    assert {module_of(node) for node in again.graph.nodes if str(node.target).startswith("aten.")} == {""}
    node = op(graph_of(Shared()), "relu")
    node.meta["nn_module_stack"] = {"a": ("graph_module.block@1.1", nn.ReLU)}
    assert module_of(node) == "block.1"
    node.meta["nn_module_stack"] = {}
    assert module_of(node) == ""


def test_modules_inside_a_graph_answer_to_what_they_look_at() -> None:
    graph_module = graph_of(Shared())
    last = op(graph_module, "linear")
    graph_module.add_submodule("activation_post_process_0", nn.Identity())
    with graph_module.graph.inserting_after(last):
        graph_module.graph.call_module("activation_post_process_0", (last,))
    names = user_names(nn.Sequential(ExportedModel(graph_module)))
    assert names["0.graph_module.activation_post_process_0"] == "block.0.activation_post_process"
    assert names["0.graph_module"] == ""


# -- tensors --------------------------------------------------------------------------------------------------------

def test_only_tensors_that_the_graph_does_not_read_are_dropped() -> None:
    graph_module = graph_of(Regular())
    expected = graph_module(ROWS)
    graph_module.register_buffer("spare", torch.ones(3))
    graph_module.fc.register_parameter("folded", nn.Parameter(torch.ones(3)))
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    without_spare_tensors(graph_module)
    assert set(graph_module.state_dict()) == {
        "fc.weight", "fc.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}
    assert torch.equal(graph_module(ROWS), expected)


def test_tensors_of_modules_that_the_graph_calls_or_hands_on_stay() -> None:
    root = nn.Module()
    root.called, root.handed = nn.BatchNorm1d(6), nn.Sequential(nn.Linear(6, 2))
    root.spare = nn.Linear(6, 2)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    body = graph.get_attr("handed")
    graph.output((graph.call_module("called", (x,)), body))
    graph_module = torch.fx.GraphModule({"called": root.called, "handed": root.handed}, graph)
    graph_module.add_submodule("spare", root.spare)
    without_spare_tensors(graph_module)
    assert {name.partition(".")[0] for name in graph_module.state_dict()} == {"called", "handed"}


def test_a_tensor_with_two_names_stays_under_the_one_that_is_read() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    graph_module = graph_of(model)
    expected = graph_module(ROWS)
    without_spare_tensors(graph_module)
    assert torch.equal(graph_module(ROWS), expected)
