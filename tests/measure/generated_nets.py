"""Nets drawn from a seed, each part of which knows what it multiplies: by weights, by no weights, or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 8
WIDTHS = (11, 13, 17, 19, 23, 29)
"""Each used once in a net, so that the number of a weight's elements tells whose it is."""


@dataclass
class Work:
    """What one part does for a batch of 1 and a length of 1, but for products of activations.

    Attributes:
        weighted: MACs at each position, by the number of the weight's elements.
        products: How often it multiplies each position by each other.
        dead: Elements of weights that the output does not depend on.
        unread: MACs at each position whose results nothing reads.
    """

    weighted: dict[int, int] = field(default_factory=dict)
    products: int = 0
    dead: int = 0
    unread: int = 0


class OwnForward(nn.Linear):
    """A subclass with a forward of its own, as LoRA has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Bottleneck(nn.Module):
    """Up and back, by layers of a kind, as often as said."""

    def __init__(self, width: int, kind: type[nn.Linear] = nn.Linear, *, times: int = 1) -> None:
        super().__init__()
        self.up, self.back, self.times = kind(WIDTH, width), kind(width, WIDTH), times
        self.act = nn.ReLU()
        self.work = Work(weighted={WIDTH * width: 2 * times * WIDTH * width})

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.back(self.act(self.up(x)))
        return x


class Functional(nn.Module):
    """The same by functions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.back = nn.Parameter(torch.randn(width, WIDTH) / 3), nn.Parameter(torch.randn(WIDTH, width) / 3)
        self.work = Work(weighted={WIDTH * width: 2 * WIDTH * width})

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.up)), self.back)


class Convolutions(nn.Module):
    """One over three positions and one over one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.act = nn.Conv1d(WIDTH, width, 3, padding=1), nn.ReLU()
        self.back = nn.Conv1d(width, WIDTH, 1)
        self.work = Work(weighted={3 * WIDTH * width: 3 * WIDTH * width, WIDTH * width: WIDTH * width})

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.act(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Depthwise(nn.Module):
    """Each channel by itself; the length of the kernel is unique to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, width, padding=width // 2, groups=WIDTH)
        self.work = Work(weighted={WIDTH * width: WIDTH * width})

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def by_matmul(x: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(x @ x.transpose(1, 2), -1), x)


def by_attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def by_einsum(x: Tensor) -> Tensor:
    return torch.einsum("blm,bmd->bld", torch.softmax(torch.einsum("bld,bmd->blm", x, x), -1), x)


class Products(nn.Module):
    """Two products of activations."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.work = Work(products=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class WithDeadLayer(nn.Module):
    """A layer beside one that nothing calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.dead = Bottleneck(width), nn.Linear(width, width)
        self.work = Work(weighted=self.used.work.weighted, dead=width * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class WithUnreadLayer(WithDeadLayer):
    """A layer beside one whose result nobody reads."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.dead = nn.Linear(WIDTH, 31)
        self.work = Work(weighted=self.used.work.weighted, dead=WIDTH * 31, unread=WIDTH * 31)

    def forward(self, x: Tensor) -> Tensor:
        self.dead(x)
        return self.used(x)


MODULES: dict[str, Callable[[int], Any]] = {
    "linear": Bottleneck, "repeated": lambda width: Bottleneck(width, times=2), "convolutions": Convolutions,
    "depthwise": Depthwise, "dead": WithDeadLayer,
    "unread": WithUnreadLayer}
FUNCTIONS: dict[str, Callable[[int], Any]] = {
    "subclass": lambda width: Bottleneck(width, OwnForward), "functional": Functional,
    "matmul": lambda width: Products(by_matmul), "attention": lambda width: Products(by_attention),
    "einsum": lambda width: Products(by_einsum)}


@dataclass(frozen=True, kw_only=True)
class Net:
    """A net and what it does on its inputs: MACs by the number of a weight's elements, and by none (0).

    Those of layers whose results nobody reads stand apart.
    """

    model: nn.Sequential
    inputs: tuple[Tensor, ...]
    macs: dict[int, int]
    dead: int
    unread: int


def net_of(seed: int, *, functions: bool = True) -> Net:
    """Draw a net; without functions, of modules alone."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, length = draw.randint(1, 3), draw.randint(4, 7)
    kinds = {**MODULES, **(FUNCTIONS if functions else {})}
    widths = draw.sample(WIDTHS, len(WIDTHS))
    model = nn.Sequential()
    for place, name in enumerate(draw.choices(list(kinds), k=draw.randint(3, len(WIDTHS)))):
        model.add_module(f"{name}_{place}", kinds[name](widths[place]))
    macs: dict[int, int] = {}
    for part in model:
        for size, each in part.work.weighted.items():
            macs[size] = macs.get(size, 0) + batch * length * each
        macs[0] = macs.get(0, 0) + part.work.products * batch * length * length * WIDTH
    return Net(model=model.eval(), inputs=(torch.randn(batch, length, WIDTH),), macs=macs,
               dead=sum(part.work.dead for part in model),
               unread=batch * length * sum(part.work.unread for part in model))
