"""Programs in a plainer form: what they compute stays the same, and nothing is hidden from quantizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_qat.exported.program import export_program, module_of
from pytest_qat.exported.rewrites import frozen_parameters

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, inputs: Any = IMAGES) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return export_program(model.eval(), (inputs,), any_batch=True).module()  # type: ignore[return-value]


def targets(graph_module: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("kernel", [1, 3, 4, (2, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_becomes_numbers(kernel: Any, dilation: int, padding: str) -> None:
    model = nn.Conv2d(3, 4, kernel, padding=padding, dilation=dilation)
    graph_module = exported(model)
    assert not [name for name in targets(graph_module) if name.endswith(".padding")]
    assert torch.equal(graph_module(IMAGES), model(IMAGES))


@pytest.mark.parametrize(("model", "inputs"), [
    (nn.Conv1d(3, 4, 4, padding="same", groups=1, bias=False), torch.randn(2, 3, 8)),
    (nn.Conv3d(2, 4, (2, 3, 4), padding="same"), torch.randn(2, 2, 5, 5, 5)),
    (nn.Conv2d(3, 6, 4, padding="same", groups=3), IMAGES),
    (nn.Conv2d(3, 4, 4, padding="same", padding_mode="reflect"), IMAGES),
], ids=["1-D", "3-D", "groups", "reflect"])
def test_padding_by_name_in_other_convolutions(model: nn.Module, inputs: Tensor) -> None:
    graph_module = exported(model, inputs)
    assert not [name for name in targets(graph_module) if name.endswith(".padding")]
    assert torch.equal(graph_module(inputs), model(inputs))


class Parts(nn.Module):
    """A frozen part, one before it, one that is also used outside, and a head."""

    def __init__(self, mode: Any) -> None:
        super().__init__()
        self.before, self.frozen, self.both, self.head = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.register_buffer("shift", torch.ones(1))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        with self.mode():
            y = self.frozen(y) + self.shift
            y, z = self.both(y), y + torch.ones(3, 1, 1)
        return self.head(F.relu(y)) + self.both(z)


def test_a_region_without_gradient_is_a_part_of_the_graph_and_its_parameters_do_not_learn() -> None:
    model = Parts(torch.no_grad)
    graph_module = exported(model)
    assert not [name for name in targets(graph_module) if "wrap" in name]
    assert [module_of(node) for node in graph_module.graph.nodes if "conv2d" in str(node.target)] == [
        "before", "frozen", "both", "head", "both"]
    assert torch.equal(graph_module(IMAGES), model(IMAGES))
    assert frozen_parameters(graph_module) >= {"before.weight", "before.bias", "frozen.weight", "frozen.bias"}
    assert not frozen_parameters(graph_module) & {"both.weight", "both.bias", "head.weight", "head.bias"}


def test_a_model_without_any_gradient_learns_all_the_same() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    graph_module = exported(Whole())
    assert targets(graph_module)[-1] == "aten.conv2d.default"
    assert frozen_parameters(graph_module) == frozenset()


def test_switched_off_autocast_is_a_part_of_the_graph() -> None:
    model = Parts(lambda: torch.autocast("cpu", enabled=False))
    graph_module = exported(model)
    assert not [name for name in targets(graph_module) if "wrap" in name]
    assert torch.equal(graph_module(IMAGES), model(IMAGES))
    assert frozen_parameters(graph_module) == frozenset()


def test_the_result_of_a_region_may_be_the_output() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 4, padding="same")

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.conv(x)
            with torch.no_grad():
                label = y.mean((2, 3))
                return {"map": y, "label": label, "best": label.argmax(1)}

    model = Last()
    found, expected = exported(model)(IMAGES), model(IMAGES)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_views_survive_decompositions_that_change_strides() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, -1)

    assert "aten.view.default" not in targets(exported(Views()))


def test_what_nobody_reads_is_gone() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dead = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.dead(x).relu_()
            y = self.conv(x).relu_()
            y[:, 0].add_(1)
            return y

    model = Dead()
    graph_module = exported(model)
    assert {module_of(node) for node in graph_module.graph.nodes if "conv2d" in str(node.target)} == {"conv"}
    assert torch.equal(graph_module(IMAGES), model(IMAGES))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 5)])
@pytest.mark.parametrize("slopes", [1, 3])
def test_a_prelu_gets_images_whatever_the_dimensions(shape: tuple[int, ...], slopes: int) -> None:
    model, inputs = nn.PReLU(slopes), torch.randn(shape)
    nn.init.uniform_(model.weight)
    graph_module = exported(model, inputs)
    (node,) = [node for node in graph_module.graph.nodes if "prelu" in str(node.target)]
    assert node.args[0].meta["val"].dim() == 4
    assert torch.equal(graph_module(inputs), model(inputs))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_size_become_rows_and_their_reduction(mode: str) -> None:
    model, bags = nn.EmbeddingBag(20, 6, mode=mode), torch.randint(0, 20, (4, 3))
    graph_module = exported(model, bags)
    assert not [name for name in targets(graph_module) if "embedding_bag" in name]
    assert torch.allclose(graph_module(bags), model(bags), atol=1e-6)
    assert torch.allclose(graph_module(bags[:3]), model(bags[:3]), atol=1e-6)


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"include_last_offset": True}])
def test_other_bags_stay(options: dict[str, Any]) -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(20, 6, mode="sum", **options)

        def forward(self, flat: Tensor) -> Tensor:
            return self.table(flat, torch.tensor([0, 3, 4]))

    model, flat = Bags(), torch.randint(0, 20, (8,))
    graph_module = exported(model, flat)
    assert [name for name in targets(graph_module) if "embedding_bag" in name]
    assert torch.allclose(graph_module(flat), model(flat), atol=1e-6)
