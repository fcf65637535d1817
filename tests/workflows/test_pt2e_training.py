"""A prepared PT2E model calibrated, trained and converted."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.diagnosis.training import collapsed_ranges
from pytest_qat.finetune import calibrate, fine_tune
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import pt2e
from pytest_qat.workflows.observers import fake_quantizers
from tests.workflows.pt2e_models import (
    EPS,
    IMAGES,
    INDUCTOR,
    ROWS,
    XNNPACK,
    Block,
    Pooled,
    graph_of,
    made,
    ops,
    prepared_for,
)

pytestmark = pytest.mark.slow

# -- calibrate and train --------------------------------------------------------------------------------------------

def test_values_that_share_a_range_are_calibrated_on_the_widest_of_them() -> None:
    case = made(Pooled(), IMAGES)
    module = prepared_for(case, XNNPACK).module
    convolved = torch.relu(case.model.get_submodule("conv")(IMAGES)).detach()
    (reader,) = ops(module, "mean")
    assert isinstance(reader.args[0], torch.fx.Node)
    shared: Any = graph_of(module).owning_module.get_submodule(str(reader.args[0].target))  # type: ignore[union-attr]
    assert float(shared.activation_post_process.max_val) == pytest.approx(float(convolved.max()), rel=1e-5)
    assert sqnr_db(case.model(IMAGES), module(IMAGES)) > 25


def test_training_changes_weights_and_statistics_of_a_prepared_model_only(block: SimpleNamespace) -> None:
    assert (block.done.kind, block.done.steps) == ("data", 10)
    before, after = block.untrained.state_dict(), block.prepared.module.state_dict()
    for name in ("conv1.weight", "fc.weight", "bn1.running_mean", "bn2.running_var"):
        assert not torch.equal(before[f"graph_module.{name}"], after[f"graph_module.{name}"]), name
    assert all(torch.equal(block.before[name], tensor) for name, tensor in block.case.model.state_dict().items())


def test_a_calibrated_model_keeps_the_users_weights(block: SimpleNamespace) -> None:
    state = block.untrained.state_dict()
    assert torch.equal(state["graph_module.conv1.weight"], block.before["conv1.weight"])
    assert torch.equal(state["graph_module.bn1.running_mean"], block.before["bn1.running_mean"])
    assert fine_tune(copy.deepcopy(block.untrained), block.case).kind == "none"


def test_training_freezes_observers_and_then_batchnorm(block: SimpleNamespace) -> None:
    module = copy.deepcopy(block.fresh)
    calibrate(module, [IMAGES])
    _, fake = next(iter(fake_quantizers(module)))
    seen: list[tuple[bool, bool]] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append((bool(int(fake.observer_enabled)), bool(ops(module, "batch_norm")[0].args[5])))
        return nn.functional.cross_entropy(output, target)

    fine_tune(module, made(block.case.model, IMAGES, train_data=[(IMAGES, torch.arange(8) % 2)] * 10, loss_fn=loss))
    assert seen == [(True, True)] * 6 + [(False, True)] * 2 + [(False, False)] * 2
    assert not module.training
    assert torch.equal(module(IMAGES), module(IMAGES))


def test_a_copy_of_a_prepared_model_learns_ranges_of_its_own(mlp: SimpleNamespace) -> None:
    first, second = copy.deepcopy(mlp.fresh.module), copy.deepcopy(mlp.fresh.module)
    calibrate(first, [ROWS])
    calibrate(second, [ROWS * 10])
    scales = [next(fake.scale for _, fake in fake_quantizers(module) if not fake.is_per_channel)
              for module in (first, second)]
    assert float(scales[1]) == pytest.approx(10 * float(scales[0]), rel=0.01)


def test_a_collapsed_range_is_told_with_the_users_module() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Sequential(nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].weight.mul_(1e-9)
    prepared = prepared_for(made(model), INDUCTOR)
    (finding,) = collapsed_ranges(prepared.module)
    assert (finding.code, finding.module) == ("range-collapsed", "0")
    assert finding.evidence == {"modules": ["0"]}


def test_a_small_range_that_the_smallest_scale_still_resolves_is_no_finding() -> None:
    """XNNPACKQuantizer gives no scale below 2^-12, which a range of 0.02 has 80 steps of."""
    prepared = prepared_for(made(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), ROWS * 0.01), XNNPACK)
    assert collapsed_ranges(prepared.module) == ()


def test_a_range_that_is_wide_enough_is_no_finding(mlp: SimpleNamespace) -> None:
    assert collapsed_ranges(mlp.calibrated.module) == ()


# -- convert --------------------------------------------------------------------------------------------------------

def test_the_converted_form_agrees_with_the_prepared_one(mlp: SimpleNamespace) -> None:
    assert sqnr_db(mlp.calibrated.module(ROWS), mlp.converted(ROWS)) > 20
    assert not mlp.converted.training
    assert list(fake_quantizers(mlp.calibrated.module))
    assert not list(fake_quantizers(mlp.converted))


def test_converting_leaves_the_prepared_model_as_it_was(mlp: SimpleNamespace) -> None:
    before = copy.deepcopy(mlp.calibrated.module.state_dict())
    pt2e.convert(mlp.calibrated, mlp.recipe)
    after = mlp.calibrated.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_trained_residual_block_converts_with_batchnorm_folded(block: SimpleNamespace) -> None:
    assert float(block.prepared.module.get_buffer("graph_module.bn1.running_var").max()) < 2 * EPS
    assert sqnr_db(block.prepared.module(IMAGES), block.converted(IMAGES)) > 30
    assert not ops(block.converted, "batch_norm")
    assert len(ops(block.converted, "conv2d")) == 2
    batch = torch.randn(3, 3, 6, 6)
    assert sqnr_db(block.prepared.module(batch), block.converted(batch)) > 30
    assert torch.equal(block.converted(batch), block.converted(batch))


def test_the_converted_form_is_the_reference_form_with_int8_weights_only(block: SimpleNamespace) -> None:
    for node in (*ops(block.converted, "conv2d"), *ops(block.converted, "linear")):
        assert "dequantize" in str(node.args[0])
        assert "dequantize" in str(node.args[1])
    weights = {tuple(tensor.shape): tensor.dtype for tensor in block.converted.state_dict().values()
               if tensor.dim() > 1}
    assert weights == {(3, 3, 3, 3): torch.int8, (2, 3): torch.int8}


def test_without_folding_float_weights_stand_beside_their_quantize_ops(mlp: SimpleNamespace) -> None:
    folded, unfolded = mlp.converted, pt2e.convert(mlp.calibrated, get_recipe("pt2e-litert")).module
    assert torch.equal(folded(ROWS), unfolded(ROWS))
    floats = {tuple(tensor.shape) for tensor in unfolded.state_dict().values()
              if tensor.dim() > 1 and tensor.dtype == torch.float32}
    assert floats == {(8, 6), (2, 8)}
    assert len(ops(unfolded, "quantize_per_channel")) == 2
    assert not ops(folded, "quantize_per_channel")


def test_the_float_twin_is_a_copy_in_eval_mode() -> None:
    model = Block().train()
    twin = pt2e.float_twin(QATCase(model=model, example_inputs=(IMAGES,)))
    assert not twin.training
    assert model.training
    assert twin.get_parameter("fc.weight") is not model.fc.weight
    assert torch.equal(twin(IMAGES), model.eval()(IMAGES))
