"""PT2E: what is prepared stays the user's model, what is converted agrees with it, and refusals have names."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantizer import Quantizer

from pytest_qat.case import QATCase
from pytest_qat.diagnosis.ranges import collapsed_ranges
from pytest_qat.errors import CheckFailed, MissingPackage
from pytest_qat.finetune import calibrate, fine_tune, untrained_copy
from pytest_qat.isolation import preserved_torch_state
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import pt2e, quantizers
from pytest_qat.workflows.base import PreparedModel
from pytest_qat.workflows.exported import ExportedModel, module_of
from pytest_qat.workflows.observers import fake_quantizers, switch_fake_quantize, switch_observers
from pytest_qat.workflows.quantizers import make_quantizer

XNNPACK, INDUCTOR = get_recipe("pt2e-torch"), get_recipe("pt2e-inductor")
RECIPES = pytest.mark.parametrize("recipe", [XNNPACK, INDUCTOR], ids=["xnnpack", "x86-inductor"])
EPS, MOMENTUM = 0.01, 0.3
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(16, 6, generator=GENERATOR)
IMAGES = torch.randn(8, 3, 6, 6, generator=GENERATOR)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.relu = nn.ReLU()
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


class Twice(nn.Module):
    """Calls a part twice."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.part(x)))


class Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU for both places. Variances are as small as eps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3, eps=EPS, momentum=MOMENTUM)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3, eps=EPS, momentum=MOMENTUM)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(3, 2)
        for batchnorm in (self.bn1, self.bn2):
            nn.init.constant_(batchnorm.running_var, 0.01)
        for conv in (self.conv1, self.conv2):
            nn.init.uniform_(conv.weight, -0.03, 0.03)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + x)
        return self.fc(self.drop(y.mean((2, 3))))


class Pooled(nn.Module):
    """XNNPACK's quantizer gives the values before and after the mean one range."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Refusing(Quantizer):
    """A user's quantizer with a fault."""

    def annotate(self, model: Any) -> Any:
        raise ValueError("no pattern fits.\nsecond line")

    def validate(self, model: Any) -> None:
        """Accept anything."""


def made(model: nn.Module, inputs: Any = ROWS, **changes: Any) -> QATCase:
    return QATCase(model=model.eval(), example_inputs=(inputs,), **changes)


def prepared_for(case: QATCase, recipe: Any, batches: Sequence[Any] | None = None) -> PreparedModel:
    """Prepare and calibrate."""
    prepared = pt2e.prepare(case, recipe)
    calibrate(prepared.module, [case.example_inputs] if batches is None else batches)
    prepared.module.eval()
    switch_observers(prepared.module, on=False)
    return prepared


def graph_of(module: nn.Module) -> torch.fx.Graph:
    assert isinstance(module, ExportedModel)
    return module.graph_module.graph


def ops(module: nn.Module, name: str) -> list[torch.fx.Node]:
    return [node for node in graph_of(module).nodes if f".{name}." in f".{node.target}."]


def quantized_modules(module: nn.Module) -> list[str]:
    """The user's modules whose weight passes a fake-quantizer."""
    return [module_of(node) for node in ops(module, "linear")
            if isinstance(node.args[1], torch.fx.Node) and node.args[1].op == "call_module"]


@pytest.fixture(scope="module", params=[XNNPACK, INDUCTOR], ids=["xnnpack", "x86-inductor"])
def mlp(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A small model, prepared only and calibrated; tests that change it take a copy."""
    with preserved_torch_state(seed=0):
        model = Mlp().train()
        before = copy.deepcopy(model.state_dict())
        case = QATCase(model=model, example_inputs=(ROWS[:1],))
        fresh = pt2e.prepare(case, request.param)
        calibrated = PreparedModel(module=copy.deepcopy(fresh.module), float_modules={})
        calibrate(calibrated.module, [ROWS])
        switch_observers(calibrated.module, on=False)
        return SimpleNamespace(case=case, model=model, before=before, recipe=request.param, fresh=fresh,
                               calibrated=calibrated, converted=pt2e.convert(calibrated, request.param).module)


@pytest.fixture(scope="module")
def block() -> SimpleNamespace:
    """A residual block through the whole way; each step takes seconds."""
    with preserved_torch_state(seed=0):
        case = made(Block(), IMAGES)
        before = copy.deepcopy(case.model.state_dict())
        fresh = pt2e.prepare(case, INDUCTOR)
        prepared = PreparedModel(module=copy.deepcopy(fresh.module), float_modules={})
        calibrate(prepared.module, [IMAGES])
        untrained = untrained_copy(prepared.module)
        trained = made(case.model, IMAGES, train_data=[(IMAGES, torch.arange(8) % 2)] * 10,
                       loss_fn=nn.functional.cross_entropy)
        done = fine_tune(prepared.module, trained)
        return SimpleNamespace(case=case, before=before, fresh=fresh.module, prepared=prepared, untrained=untrained,
                               done=done, converted=pt2e.convert(prepared, INDUCTOR).module)


# -- prepare --------------------------------------------------------------------------------------------------------

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
    assert vars(own).keys() == before.keys()
    assert own.module_name_qconfig == before["module_name_qconfig"]


def test_what_a_quantizer_raises_becomes_a_finding() -> None:
    with pytest.raises(CheckFailed, match="Refusing cannot prepare the model") as caught:
        pt2e.prepare(made(Mlp(), quantizer=Refusing()), XNNPACK)
    (finding,) = caught.value.findings
    assert (finding.code, finding.severity) == ("quantizer-refused", "error")
    assert finding.message == "Refusing raised ValueError: no pattern fits."
    assert "skip=(...)" in finding.remedy
    assert finding.evidence == {"error": "ValueError"}


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
