"""Multiply-accumulates by module, on layers whose counts are known by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pytest_qat.measure.macs import count_macs


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
    assert count_macs(Spare(), inputs).called == {"", "used"}


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


def test_only_products_of_integers_are_int8() -> None:
    found = count_macs(Integers(), (torch.randn(32, 16),)).products
    assert [(product.module, product.op, product.macs, product.int8) for product in found] == [
        ("fc", "addmm", 32 * 16 * 16, False), ("exact", "_int_mm", 16 * 32 * 16, True),
        ("", "mm", 32 * 16 * 16, False)]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count_the_products_of_every_step_and_layer(kind: type[nn.Module], gates: int) -> None:
    batch, steps, width, hidden = 2, 5, 8, 16
    count = count_macs(nn.Sequential(kind(width, hidden, 2, batch_first=True)), torch.randn(batch, steps, width))
    assert count.by_module == {"0": batch * steps * gates * hidden * (width + 3 * hidden)}


# -- weights, lines, and what is read -------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Weights on every way into a product, and tensors that go into none."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.plain = nn.Embedding(10, 4), nn.Linear(4, 4)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.own, self.position = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3, 4))
        self.register_buffer("fixed", torch.randn(4, 4))
        self.dead = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.normed(self.plain(self.table(ids) + self.position))
        x = torch.einsum("bld,de->ble", x, self.own * 2)  # line of einsum
        return x @ self.fixed @ self.plain.weight.t()


def test_products_know_the_weights_that_they_are_made_of() -> None:
    found = count_macs(Mixed().eval(), (torch.tensor([[1, 2, 3]]),))
    assert [tuple(name for name in product.weights if "bias" not in name) for product in found.products] == [
        ("table.weight",), ("plain.weight",),
        ("normed.parametrizations.weight.original0", "normed.parametrizations.weight.original1"), ("own",), ("fixed",),
        ("plain.weight",)]
    assert "position" in found.read
    assert not any(name.startswith("dead") for name in found.read)
    assert sum(product.macs for product in found.products) == 5 * 3 * 16


def test_products_of_a_model_s_own_code_come_with_its_line() -> None:
    places = [product.place for product in count_macs(Mixed().eval(), (torch.tensor([[1, 2, 3]]),)).products]
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if text.strip().startswith("x = torch.einsum(")]
    assert places[3] == f"test_macs.py:{line}"


def test_a_tensor_that_is_written_over_is_no_weight_any_more() -> None:
    class Scratch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.zeros(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.state.copy_(x)
            return x @ self.state

    assert [product.weights for product in count_macs(Scratch(), (torch.randn(4, 4),)).products] == [()]


# -- what the outputs depend on -------------------------------------------------------------------------------------


class Found:
    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second


def nowhere(net: Branches, side: Tensor, y: Tensor) -> Tensor:
    torch.tanh(side).add_(1)
    return y


def into_an_attribute(net: Branches, side: Tensor, y: Tensor) -> Tensor:
    net.last = side
    return y


def through_a_view(net: Branches, side: Tensor, y: Tensor) -> Tensor:
    y.view(-1)[:8].copy_(side.flatten())
    return y


def into_a_buffer(net: Branches, side: Tensor, y: Tensor) -> Tensor:
    net.state.copy_(side)
    return y


def into_a_tensor_that_is_no_result(net: Branches, side: Tensor, y: Tensor) -> Tensor:
    mean = torch.zeros(4)
    functional.batch_norm(side, mean, torch.ones(4), training=True)
    return y + mean


def into_the_next_call(net: Branches, side: Tensor, y: Tensor) -> Tensor:
    y, net.seen = y + net.seen, side
    return y


UNREAD = (nowhere, into_an_attribute)
READ: tuple[Callable[[Branches, Tensor, Tensor], object], ...] = (
    through_a_view, into_a_buffer, into_a_tensor_that_is_no_result, into_the_next_call,
    lambda net, side, y: {"out": [y, {"side": side.t()}]},
    lambda net, side, y: torch.add(y, side, out=y),
    lambda net, side, y: y * side.sum().item(),
    lambda net, side, y: y if side.sum() > 0 else -y,
    lambda net, side, y: y * len(side[side > 0]),
    lambda net, side, y: y + torch.from_numpy(side.numpy()),
    lambda net, side, y: y + torch.tensor(side.tolist()),
    lambda net, side, y: Found(y, side),
    lambda net, side, y: [y, Found(side, side)],
)


class Branches(nn.Module):
    """A layer that counts, and one whose result is used as said."""

    def __init__(self, use: Callable[[Branches, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(8, 4), nn.Linear(8, 4)
        self.register_buffer("state", torch.zeros(2, 4))
        self.use, self.seen, self.last = use, torch.zeros(2, 4), torch.zeros(2, 4)

    def forward(self, x: Tensor) -> object:
        return self.use(self, self.side(x), self.main(x))


@pytest.mark.parametrize(("use", "counts"), [*((use, False) for use in UNREAD), *((use, True) for use in READ)])
def test_a_layer_counts_where_the_outputs_depend_on_it(use: Any, counts: bool) -> None:
    found = count_macs(Branches(use).eval(), (torch.randn(2, 8),))
    assert set(found.by_module) == ({"main", "side"} if counts else {"main"})
    assert ("side.weight" in found.read) is counts


def test_memory_that_is_used_again_ties_nothing_to_a_layer_that_nobody_reads() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead = nn.Linear(64, 64)
            self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                self.dead(x)
                x = layer(x)
            return x

    assert set(count_macs(Deep().eval(), (torch.randn(64, 64),)).by_module) == {f"layers.{index}" for index in range(8)}
