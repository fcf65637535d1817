"""Multiply-accumulates by module, on layers whose counts are known by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pytest_qat.measure.macs import called_modules, count_macs, integer_multipliers


class Product(nn.Module):
    """3 x 4 by 4 x 3 for every sample, outside of any module."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(-1, -2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x, x, x)[0]


class Deep(nn.Module):
    """A layer, then a product of its own, then another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x @ x.transpose(-1, -2))


@pytest.mark.parametrize(("model", "inputs", "expected"), [
    (nn.Linear(4, 5), torch.randn(2, 4), {"": 2 * 4 * 5}),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), torch.randn(2, 3, 8, 8), {"0": 2 * 64 * 27 * 4}),
    (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), torch.randn(1, 4, 5, 5), {"0": 9 * 9 * 4}),
    (nn.Sequential(nn.Linear(4, 4), Product()), torch.randn(2, 3, 4), {"0": 2 * 3 * 16, "1": 2 * 3 * 4 * 3}),
    (nn.Sequential(Deep()), torch.randn(1, 3, 4), {"0.first": 3 * 16, "0": 3 * 4 * 3, "0.last": 3 * 3 * 2}),
    (nn.ReLU(), torch.randn(3), {}),
], ids=["linear", "conv", "depthwise", "product", "nested", "nothing"])
def test_counts_are_booked_on_the_innermost_module(model: nn.Module, inputs: Tensor, expected: dict[str, int]) -> None:
    assert count_macs(model.eval(), (inputs,)).by_module == expected


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert count_macs(model, (torch.randn(1, 4),)).by_module == {"0": 32}


def test_a_module_that_is_not_called_is_not_among_the_called() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    inputs = (torch.randn(1, 2),)
    assert count_macs(Spare(), inputs).called == called_modules(Spare(), inputs) == {"", "used"}


@pytest.mark.parametrize(("model", "inputs"), [
    (Attention(), torch.randn(2, 5, 8)),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    (nn.GRU(4, 6, batch_first=True), torch.randn(2, 5, 4)),
    (nn.ConvTranspose2d(3, 4, 3, stride=2), torch.randn(1, 3, 5, 5)),
])
def test_the_sum_is_that_of_torch_s_own_counter(model: nn.Module, inputs: Tensor,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model = model.eval()
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    assert sum(count_macs(model, (inputs,)).by_module.values()) == counter.get_total_flops() // 2


def test_attention_counts_also_where_a_fused_kernel_does_all_of_it() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    projections, products, feed_forward = 10 * 8 * 32, 2 * 2 * 2 * 5 * 5 * 4, 2 * 10 * 8 * 16
    counted = count_macs(model, (torch.randn(2, 5, 8),)).by_module
    assert sum(counted.values()) == projections + products + feed_forward
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_raises_leaves_no_hooks_behind() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = nn.Sequential(nn.Linear(2, 2), Broken())
    with pytest.raises(ZeroDivisionError):
        count_macs(model, (torch.randn(1, 2),))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_counting_does_not_import_torch_s_compiler() -> None:
    program = ("import sys, torch; from pytest_qat.measure.macs import count_macs; "
               "count_macs(torch.nn.Conv2d(1, 1, 3), (torch.randn(1, 1, 5, 5),)); "
               "raise SystemExit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_functional_layers_count_on_the_module_around_them() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight)

    assert count_macs(nn.Sequential(Functional()), (torch.randn(2, 4),)).by_module == {"0": 24}


class Integers(nn.Module):
    """A product of integers inside, and two of floats around it."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = Exact()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) @ self.exact(x)


class Exact(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        codes = (x * 10).round().to(torch.int8)
        return torch._int_mm(codes.t().contiguous(), codes).float()


def test_only_modules_that_multiply_integers_are_named() -> None:
    x = torch.randn(32, 16)
    assert integer_multipliers(Integers(), (x,)) == {"exact"}
    assert integer_multipliers(Exact(), (x,)) == {""}
    assert integer_multipliers(nn.Linear(16, 4), (x,)) == frozenset()


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count_the_products_of_every_step_and_layer(kind: type[nn.Module], gates: int) -> None:
    batch, steps, width, hidden = 2, 5, 8, 16
    count = count_macs(nn.Sequential(kind(width, hidden, 2, batch_first=True)), torch.randn(batch, steps, width))
    assert count.by_module == {"0": batch * steps * gates * hidden * (width + 3 * hidden)}
