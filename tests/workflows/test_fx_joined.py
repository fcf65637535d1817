"""FX mode and concatenation: torch's int8 kernel clips every input to the range of the first."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fake_quantize import FakeQuantizeBase
from torch.nn import functional as F

from pytest_qat.measure.parity import sqnr_db
from tests.workflows.fx_made import Made

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _layer(gain: float) -> nn.Conv2d:
    layer = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class Joins(nn.Module):
    """Three layers with outputs around 1, `wide` and `narrow`, that a function joins for two others to read."""

    def __init__(self, join: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.middle, self.wide, self.narrow = _layer(1.0), _layer(50.0), _layer(0.1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.join = join

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.join(self.middle(x), self.wide(x), self.narrow(x))
        return self.left(left), self.right(right)


def _read_by_two(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([middle, wide], 1), torch.cat([narrow, middle], 1)


def _sliced(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([narrow, wide[:, :, ::1]], 1), torch.cat([middle, narrow], 1)


def _pooled(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([narrow, F.max_pool2d(wide, 1)], 1), torch.cat([middle, narrow], 1)


def _upsampled(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return (torch.cat([F.interpolate(middle, scale_factor=2.0), F.interpolate(wide, scale_factor=2.0)], 1),
            torch.cat([narrow, middle], 1))


def _stacked(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([narrow, wide], 1).flatten(1, 2), torch.stack([middle, narrow], 1).flatten(1, 2)


def _joined_twice(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([middle, wide], 1)
    return both, torch.cat([narrow, both], 1)[:, 4:]


def _sigmoid_first(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([middle.sigmoid(), wide], 1), torch.cat([narrow, middle], 1)


def _tanh_last(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([wide, torch.tanh(middle)], 1), torch.cat([middle, narrow], 1)


def _both_fixed(middle: Tensor, wide: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([middle.sigmoid(), torch.tanh(wide)], 1), torch.cat([F.hardsigmoid(narrow), middle], 1)


EACH = [_read_by_two, _sliced, _pooled, _upsampled, _stacked, _joined_twice, _sigmoid_first, _tanh_last, _both_fixed]


@pytest.mark.parametrize("join", EACH)
def test_no_input_of_a_concatenation_is_clipped(join: Callable[..., tuple[Tensor, Tensor]]) -> None:
    made = Made(Joins(join), IMAGES)
    with torch.no_grad():
        simulated = list(made.prepared.module.eval()(IMAGES))
    for wanted, fake, int8 in zip(made.wanted, simulated, made.made, strict=True):
        assert sqnr_db(wanted, int8) > 17
        assert sqnr_db(fake, int8) > 25


@pytest.mark.parametrize("join", EACH)
def test_all_of_it_runs_in_int8(join: Callable[..., tuple[Tensor, Tensor]]) -> None:
    assert Made(Joins(join), IMAGES).int8_layers() == 5


class Dense(nn.Module):
    """Each layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(4 * (index + 1), 4, 1) for index in range(4))
        self.stem = _layer(2.0)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


def test_ranges_that_are_alike_share_a_scale_and_are_not_rounded_again() -> None:
    made = Made(Dense(), IMAGES)
    quantizers = [node for node in made.prepared.module.graph.nodes if node.op == "call_module"
                  and isinstance(made.prepared.module.get_submodule(str(node.target)), FakeQuantizeBase)]
    assert not [node for node in quantizers if node.args[0] in quantizers]
    assert made.sqnr_db > 27


def test_a_narrow_tensor_keeps_its_resolution_for_its_other_reader() -> None:
    class Also(Joins):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            narrow = self.narrow(x)
            return self.left(torch.cat([narrow, self.wide(x)], 1)), self.right(torch.cat([narrow, narrow], 1))

    assert Made(Also(_read_by_two), IMAGES).sqnr_db > 25


def test_a_trained_copy_keeps_one_quantizer_for_all_that_share_it() -> None:
    made = Made(Joins(_read_by_two), IMAGES)
    twin = copy.deepcopy(made.prepared.module)
    ours = [node.target for node in twin.graph.nodes if node.target == "activation_post_process_0"]
    assert ours, "the graph has fake-quantizers under torch's names"
    joined = next(node for node in twin.graph.nodes if node.target is torch.cat)
    assert len({id(twin.get_submodule(str(each.target))) for each in joined.all_input_nodes}) == 1
