"""PT2E's first step: what is exported, annotated and prepared, and what of the user's model stays as it was."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_qat.errors import CheckFailed, MissingPackage
from pytest_qat.exported.program import module_of
from pytest_qat.finetune import calibrate
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.workflows import pt2e, quantizers
from pytest_qat.workflows.observers import fake_quantizers, switch_fake_quantize
from pytest_qat.workflows.quantizers import make_quantizer
from tests.workflows.pt2e_models import (
    EPS,
    IMAGES,
    INDUCTOR,
    MOMENTUM,
    RECIPES,
    ROWS,
    XNNPACK,
    Block,
    Mlp,
    Refusing,
    Twice,
    made,
    ops,
    prepared_for,
    quantized_modules,
)


def test_preparing_leaves_the_users_model_as_it_was(mlp: SimpleNamespace) -> None:
    assert list(mlp.model.state_dict()) == list(mlp.before)
    assert all(torch.equal(mlp.before[name], tensor) for name, tensor in mlp.model.state_dict().items())
    assert not list(fake_quantizers(mlp.model))
    assert mlp.model.training
    own = {parameter.data_ptr() for parameter in mlp.model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in mlp.fresh.module.parameters()}


def test_inputs_weights_and_activations_get_fake_quantizers(mlp: SimpleNamespace) -> None:
    fakes = [fake for _, fake in fake_quantizers(mlp.fresh.module)]
    assert len(fakes) == (5 if mlp.recipe is XNNPACK else 4)  # XNNPACK also quantizes what comes out
    assert sum(fake.is_per_channel for fake in fakes) == 2
    assert quantized_modules(mlp.fresh.module) == ["first", "last"]
    assert mlp.fresh.module.training
    assert mlp.fresh.float_modules == {}


def test_a_calibrated_model_is_close_to_the_float_one_and_the_same_without_fake_quantize(mlp: SimpleNamespace) -> None:
    module = copy.deepcopy(mlp.calibrated.module)
    assert 25 < sqnr_db(mlp.model(ROWS), module(ROWS)) < math.inf
    switch_fake_quantize(module, on=False)
    assert torch.allclose(module(ROWS), mlp.model(ROWS), atol=1e-6)


def test_batches_of_any_size_and_by_name_fit(mlp: SimpleNamespace) -> None:
    prepared = mlp.calibrated.module
    for size in (1, 3, 8):
        batch = ROWS[:size]
        assert prepared(batch).shape == mlp.converted(batch).shape == (size, 2)
        assert torch.equal(prepared(x=batch), prepared(batch))
        assert torch.equal(mlp.converted(x=batch), mlp.converted(batch))


def test_calibration_takes_batches_by_name(mlp: SimpleNamespace) -> None:
    positional, named = copy.deepcopy(mlp.fresh.module), copy.deepcopy(mlp.fresh.module)
    calibrate(positional, [ROWS, (ROWS[:3],)])
    calibrate(named, [{"x": ROWS}, {"x": ROWS[:3]}])
    assert torch.equal(positional(ROWS), named(ROWS))


def test_batchnorm_keeps_its_eps_and_momentum_through_prepare(block: SimpleNamespace) -> None:
    nodes = ops(block.fresh, "batch_norm")
    assert [node.args[5:8] for node in nodes] == [(True, MOMENTUM, EPS)] * 2
    plain = copy.deepcopy(block.fresh).eval()
    switch_fake_quantize(plain, on=False)
    assert torch.allclose(plain(IMAGES), block.case.model(IMAGES), atol=1e-5)


def test_weights_are_scaled_for_folding_with_the_users_own_eps(block: SimpleNamespace) -> None:
    scales = [node.args[1] for node in ops(block.fresh, "add") if "running_var" in str(node.args[0])]
    assert scales == [EPS] * 2


def test_dropout_keeps_its_p(block: SimpleNamespace) -> None:
    assert [node.args[1:] for node in ops(block.fresh, "dropout")] == [(0.3, True)]


def test_a_module_called_twice_is_told_apart_for_the_quantizer(
        block: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [module_of(node) for node in ops(block.fresh, "relu")] == ["relu", "relu"]
    monkeypatch.setattr(pt2e, "_tell_calls_apart", lambda graph_module, **_: None)
    with pytest.raises(CheckFailed, match="X86InductorQuantizer cannot prepare the model") as caught:
        pt2e.prepare(block.case, INDUCTOR)
    (finding,) = caught.value.findings
    assert finding.code == "quantizer-refused"
    assert "Input partition has more than one output node" in finding.message


@RECIPES
def test_skipped_modules_stay_float(recipe: Any) -> None:
    case = made(Mlp(), skip=("first",))
    prepared = prepared_for(case, recipe)
    assert prepared.float_modules == {"first": "left in float on purpose (skip)"}
    assert quantized_modules(prepared.module) == ["last"]
    state = pt2e.convert(prepared, recipe).module.state_dict()
    assert torch.equal(state["graph_module.first.weight"], case.model.state_dict()["first.weight"])
    assert [tuple(tensor.shape) for tensor in state.values() if tensor.dtype == torch.int8] == [(2, 8)]


@RECIPES
def test_a_skipped_module_stays_float_in_every_call(recipe: Any) -> None:
    assert quantized_modules(pt2e.prepare(made(Twice(), skip=("part",)), recipe).module) == ["last"]


def test_a_module_called_twice_is_quantized_in_every_call() -> None:
    assert quantized_modules(pt2e.prepare(made(Twice()), INDUCTOR).module) == ["part.0", "part.0", "last"]


def test_a_skipped_convolution_before_batchnorm_stays_as_the_user_wrote_it() -> None:
    module = pt2e.prepare(made(Block(), IMAGES, skip=("conv1",)), INDUCTOR).module
    first, second = ops(module, "conv2d")
    assert (module_of(first), str(first.args[1])) == ("conv1", "conv1_weight")
    assert ops(module, "batch_norm")[0].args[0] is first
    assert "activation_post_process" in str(second.args[1])
    assert not ops(module, "alias")


def test_a_case_may_bring_a_quantizer_of_its_own() -> None:
    own = make_quantizer("x86-inductor")
    own.set_module_name_qconfig("last", None)
    before = copy.deepcopy(vars(own))
    for _ in range(2):  # it is copied, so that it can be used again
        prepared = pt2e.prepare(made(Mlp(), quantizer=own), XNNPACK)
        assert quantized_modules(prepared.module) == ["first"]
    told = pt2e.prepare(made(Mlp(), quantizer=own, skip=("first",)), XNNPACK)  # which is for the other recipes
    assert (quantized_modules(told.module), told.float_modules) == (["first"], {})
    assert vars(own).keys() == before.keys()
    assert own.module_name_qconfig == before["module_name_qconfig"]


def test_what_a_quantizer_raises_becomes_a_finding() -> None:
    with pytest.raises(CheckFailed, match="Refusing cannot prepare the model") as caught:
        pt2e.prepare(made(Mlp(), quantizer=Refusing()), XNNPACK)
    (finding,) = caught.value.findings
    assert (finding.code, finding.severity) == ("quantizer-refused", "error")
    assert finding.message.startswith("Refusing raised ValueError: no pattern fits")
    assert not finding.remedy, "what helps is tried, not guessed"
    assert finding.evidence["error"] == "ValueError"


def test_what_torch_export_refuses_does_not_reach_a_quantizer() -> None:
    class Branching(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CheckFailed, match=r"torch\.export refuses the model") as caught:
        pt2e.prepare(made(Branching(), quantizer=Refusing()), XNNPACK)
    assert caught.value.findings[0].code == "not-exportable"


def test_xnnpacks_quantizer_is_found_in_either_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "_XNNPACK", ("pytest_qat.not_there", *quantizers._XNNPACK[1:]))
    copied = make_quantizer("xnnpack", skip=("first",))
    assert type(copied).__name__ == "XNNPACKQuantizer"
    assert type(copied).__module__.startswith("torchao.")
    monkeypatch.setattr(quantizers, "_XNNPACK", ("pytest_qat.not_there",))
    with pytest.raises(MissingPackage, match="neither in executorch nor in torchao") as caught:
        make_quantizer("xnnpack")
    assert "pytest-qat[executorch]" in caught.value.hint
