"""What is observed and what is not, whatever the quantizer inside asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.errors import MissingPackage
from pytest_qat.exported.program import export_program
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import DeploySettings, load_runtime
from pytest_qat.workflows import pt2e
from pytest_qat.workflows.annotations import constants_and_masks
from pytest_qat.workflows.observers import fake_quantizers
from tests.answers import answer
from tests.workflows.pt2e_models import INDUCTOR, RECIPES, XNNPACK, graph_of, made, ops, prepared_for

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, 50, (4, 6), generator=GENERATOR)
HIDDEN = torch.randn(4, 6, 8, generator=GENERATOR)
IMAGES = torch.randn(4, 3, 8, 8, generator=GENERATOR)
KEEP = torch.ones(4, 6, dtype=torch.long)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(6)
INT8_DB = 25.0


class Forward(nn.Module):
    """Two layers around a function."""

    def __init__(self, function: Any, *, first: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first or nn.Linear(8, 8)
        self.last = last or nn.Linear(8, 8)
        self.function = function
        self.register_buffer("hidden", torch.full((6, 6), -1e9).triu(1))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x), *others))


def assert_both_agree(model: nn.Module, inputs: tuple[Any, ...], recipe: Any, *, least_db: float = INT8_DB) -> Any:
    """Prepare and convert; check that prepared agrees with float, and converted with prepared; return the prepared."""
    prepared = prepared_for(QATCase(model=model.eval(), example_inputs=inputs), recipe, [inputs])
    converted = pt2e.convert(prepared, recipe).module
    expected = answer(model, inputs)
    assert sqnr_db(expected, answer(prepared.module, inputs)) > least_db
    assert sqnr_db(answer(prepared.module, inputs), answer(converted, inputs)) > least_db
    return prepared.module


def observed_values(module: nn.Module) -> list[torch.fx.Node]:
    fakes = {name for name, _ in fake_quantizers(module)}
    return [node.args[0] for node in graph_of(module).nodes  # type: ignore[misc]
            if node.op == "call_module" and f"graph_module.{node.target}" in fakes]


# -- integers -------------------------------------------------------------------------------------------------------


@RECIPES
@pytest.mark.parametrize("function", [
    lambda self, x: x[:, torch.arange(5) + 1],
    lambda self, x: x[:, torch.arange(3) * 2],
    lambda self, x: x[:, torch.cat((torch.arange(2), torch.arange(2) + 1))],
    lambda self, x: x * (torch.arange(6) * 0.5).unsqueeze(-1),
    lambda self, x: x * (torch.arange(6) + 1).unsqueeze(-1),
    lambda self, x: x * ((torch.arange(6) > 2) + (torch.arange(6) > 4)).unsqueeze(-1),
], ids=["plus", "times", "cat", "times a float", "into float", "booleans"])
def test_integer_arithmetic_stays_integer_and_unobserved(function: Any, recipe: Any) -> None:
    module = assert_both_agree(Forward(function), (HIDDEN,), recipe)
    assert all(node.meta["val"].dtype == torch.float32 for node in observed_values(module))


@RECIPES
def test_mean_pooling_under_an_integer_mask_is_quantized(recipe: Any) -> None:
    def pool(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(-1).float()
        return (x * kept).sum(1) / kept.sum(1)

    assert_both_agree(Forward(pool), (HIDDEN, KEEP), recipe)


@RECIPES
def test_what_is_computed_from_positions_alone_is_not_observed(recipe: Any) -> None:
    def distances(self: Any, x: Tensor) -> Tensor:
        steps = torch.arange(6).float()
        far = (torch.log(steps / 2.0) * 3.0 + 1.0).clamp_min(0)  # the logarithm of zero, as in T5's buckets
        return x + far.unsqueeze(-1)

    assert_both_agree(Forward(distances), (HIDDEN,), recipe)


# -- masks ----------------------------------------------------------------------------------------------------------


def attention(mask: Any) -> Any:
    def function(self: Any, x: Tensor, *others: Tensor) -> Tensor:
        scores = x @ x.transpose(1, 2)
        return F.softmax(mask(self, scores, *others), -1) @ x
    return function


MASKS = {
    "where": (lambda self, s, keep: s + torch.where(keep[:, None] > 0, 0.0, torch.finfo(s.dtype).min), (KEEP,)),
    "masked_fill": (lambda self, s, keep: s.masked_fill(keep[:, None] == 0, float("-inf")) + 0.5, (KEEP,)),
    "product": (lambda self, s, keep: s + (1.0 - keep[:, None].float()) * -10000.0, (KEEP,)),
    "buffer": (lambda self, s: s + self.hidden, ()),
    "input": (lambda self, s, mask: s + mask, (CAUSAL,)),
    "input and view": (lambda self, s, mask: s + mask.unsqueeze(0).expand(4, -1, -1), (CAUSAL,)),
    "where with a learned bias": (
        lambda self, s, keep: torch.where(keep[:, None] > 0, self.last.bias[:6], -1e9) + s, (KEEP,)),
    "made here": (lambda self, s: s + torch.full((6, 6), float("-inf")).triu(1), ()),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_not_observed(kind: str) -> None:
    mask, others = MASKS[kind]
    module = assert_both_agree(Forward(attention(mask)), (HIDDEN, *others), XNNPACK)
    for _, fake in fake_quantizers(module):
        assert float(fake.scale.max()) < 1, "the range of scores, not that of a mask"


@pytest.mark.parametrize(("function", "others"), [
    (lambda self, x: x - 1000.5, ()), (lambda self, x: x + 3.0, ()), (lambda self, x, y: x + y, (HIDDEN * 1e5,)),
    (lambda self, x: x + torch.full((8,), -100.0), ()),
], ids=["centered", "shifted", "a wide input", "Swin's -100"])
def test_sums_that_hide_nothing_are_no_masks(function: Any, others: tuple[Tensor, ...]) -> None:
    inputs = (HIDDEN, *others)
    graph_module = export_program(Forward(function).eval(), inputs, any_batch=False).module()
    _, masks = constants_and_masks(graph_module, inputs)  # type: ignore[arg-type]
    assert not any("add" in node.name for node in masks)


# -- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "observed"), [(1e-6, 0), (0.001, 0), (0.125, 1), (100.0, 1)])
def test_a_number_too_small_for_eight_bits_is_not_observed(factor: float, observed: int) -> None:
    prepared = pt2e.prepare(made(Forward(lambda self, x: x + x * factor), HIDDEN), XNNPACK)
    seen = {node.target for node in observed_values(prepared.module)
            if node.op == "get_attr" and node.meta["val"].dim() == 0}
    assert len(seen) == observed


@pytest.mark.parametrize("factor", [0.013, 0.125, 100.0])
def test_a_factor_survives(factor: float) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * factor * (1 / factor))

    torch.manual_seed(0)
    assert_both_agree(Scaled(), (HIDDEN,), XNNPACK)


# -- pads and what passes on ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
@RECIPES
@pytest.mark.parametrize("size", [3, 4])
def test_convolutions_that_pad_to_the_same_size_are_int8(size: int, recipe: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, size, padding="same"), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.Conv2d(8, 4, size, padding="same"))
    module = assert_both_agree(model, (IMAGES,), recipe, least_db=20)
    for node in ops(module, "conv2d"):
        assert all(argument.op == "call_module" for argument in node.args[:2])  # type: ignore[union-attr]


def test_a_pad_has_one_range_before_and_behind() -> None:
    model = nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 8, 4), nn.ReLU(), nn.ReflectionPad2d(1),
                          nn.Conv2d(8, 4, 3))
    module = assert_both_agree(model, (IMAGES,), XNNPACK)
    pads = [node for node in graph_of(module).nodes if "pad" in str(node.target)]
    assert len(pads) == 2
    for node in pads:
        before, (behind,) = node.args[0], node.users
        assert before.op == behind.op == "call_module"
        graph_module: Any = module.graph_module
        fakes = [graph_module.get_submodule(str(place.target)) for place in (before, behind)]
        assert fakes[0] is fakes[1]


def test_a_pad_of_another_value_than_zero_keeps_its_value() -> None:
    assert_both_agree(nn.Sequential(nn.ConstantPad2d(1, -8.0), nn.Conv2d(3, 8, 3)), (IMAGES,), XNNPACK)


@pytest.mark.parametrize("between", [
    lambda self, x: x.unsqueeze(1).squeeze(1), lambda self, x: x.flip(1), lambda self, x: x.roll(1, 1),
    lambda self, x: x[:, 2], lambda self, x: x.expand(4, 6, 8), lambda self, x: x.permute(0, 1, 2).clone(),
    lambda self, x: F.dropout(x, 0.5, training=self.training), lambda self, x: torch.cat((x, x[:, :2]), 1),
    lambda self, x: x.chunk(2, 1)[0], lambda self, x: x.repeat(1, 2, 1), lambda self, x: x[:, [0, 2]],
])
@RECIPES
def test_what_lies_between_two_layers_keeps_them_int8(between: Any, recipe: Any) -> None:
    module = assert_both_agree(Forward(between), (HIDDEN,), recipe)
    for node in ops(module, "linear"):
        assert all(argument.op == "call_module" for argument in node.args[:2])  # type: ignore[union-attr]


# -- regions --------------------------------------------------------------------------------------------------------


@RECIPES
def test_a_frozen_part_is_quantized_and_does_not_learn(recipe: Any) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.frozen(x)
            return self.head(F.relu(x))

    torch.manual_seed(0)
    module = assert_both_agree(Frozen(), (IMAGES,), recipe)
    learning = {name.rpartition("graph_module.")[2] for name, parameter in module.named_parameters()
                if parameter.requires_grad}
    assert learning == {"head.weight", "head.bias"}
    assert len(ops(module, "conv2d")) == 2
    assert all(node.args[1].op == "call_module" for node in ops(module, "conv2d"))  # type: ignore[union-attr]


def test_layers_that_nobody_reads_do_not_stop_the_quantizer() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.pooler, self.tanh = nn.Linear(6, 4), nn.Linear(6, 6), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            self.tanh(self.pooler(x))
            return self.linear(x)

    prepared = pt2e.prepare(made(Dead()), INDUCTOR)
    assert [node for node in graph_of(prepared.module).nodes if "pooler" in str(node.meta.get("nn_module_stack"))] == []


# -- LiteRT's kernels of fixed scale --------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "scale", "zero_point"), [
    (lambda net, x: x.sigmoid(), 1 / 256, -128),
    (lambda net, x: F.dropout(x.sigmoid(), 0.1, net.training), 1 / 256, -128),
    (lambda net, x: x.softmax(-1).transpose(1, 2).flatten(1).reshape(4, 6, 8), 1 / 256, -128),
    (lambda net, x: x.tanh()[:, :4], 1 / 128, 0), (lambda net, x: x.log_softmax(-1), 16 / 256, 127),
    (lambda net, x: torch.cat([x.sigmoid(), x.relu()], 1), 1 / 256, -128)])
def test_bounded_values_have_the_scale_of_litert_s_kernels(function: Any, scale: float, zero_point: int) -> None:
    net = assert_both_agree(Forward(function), (HIDDEN,), get_recipe("pt2e-litert"))
    assert (scale, zero_point) in {(round(float(fake.scale), 9), int(fake.zero_point))
                                   for _, fake in fake_quantizers(net) if fake.scale.numel() == 1}
    other = prepared_for(QATCase(model=Forward(function).eval(), example_inputs=(HIDDEN,)), XNNPACK, [(HIDDEN,)])
    assert (scale, zero_point) not in {(round(float(fake.scale), 9), int(fake.zero_point))
                                       for _, fake in fake_quantizers(other.module) if fake.scale.numel() == 1}


def test_a_bounded_value_that_nobody_reads_in_int8_stays_float() -> None:
    net = assert_both_agree(Forward(lambda net, x: x.softmax(-1).cumsum(-1)), (HIDDEN,), get_recipe("pt2e-litert"))
    assert not any(float(fake.scale.reshape(-1)[0]) == 1 / 256 for _, fake in fake_quantizers(net))


@pytest.mark.slow
def test_litert_runs_bounded_values_between_int8_layers(tmp_path: Path) -> None:
    """Its converter makes one int8 kernel of the three, which takes one output scale only and does not load else."""
    recipe = get_recipe("pt2e-litert")
    try:
        recipe.require_packages()
    except MissingPackage as missing:
        pytest.skip(missing.message)

    def all_of_them(net: Forward, x: Tensor) -> Tensor:
        x = F.dropout(net.hidden_layers[0](x.sigmoid()), 0.1, net.training)
        return net.hidden_layers[2](net.hidden_layers[1](x.tanh()).softmax(-1).transpose(1, 2).transpose(1, 2))

    model = Forward(all_of_them)
    model.hidden_layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    case = QATCase(model=model.eval(), example_inputs=(HIDDEN,))
    prepared = prepared_for(case, recipe, [(HIDDEN,)])
    pair = load_runtime(recipe.runtime).deploy(
        model, pt2e.convert(prepared, recipe).module, (HIDDEN,), tmp_path,
        DeploySettings(engine=None, threads=1, timeout_s=300))
    form = pair.int8["contiguous"]
    assert sqnr_db(answer(prepared.module, (HIDDEN,)), form.run(form.adapt((HIDDEN,)))) > INT8_DB
