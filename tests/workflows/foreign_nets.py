"""Small networks written as other people write theirs: masks, scales, dicts, caches, branches, packed weights."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Scaled by a number that is computed from a shape, masked with minus infinity by an integer mask."""

    def __init__(self, scale: str = "power", fill: float = -math.inf) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.scale, self.fill = scale, fill

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scale = x.shape[-1] ** -0.5 if self.scale == "power" else 1 / math.sqrt(x.size(-1))
        scores = torch.matmul(self.q(x), self.k(x).transpose(1, 2)) * scale
        if math.isinf(self.fill):
            scores = scores.masked_fill(mask.unsqueeze(1) == 0, self.fill)
        else:
            scores = scores + (1.0 - mask.unsqueeze(1).float()) * self.fill
        return torch.matmul(scores.softmax(-1), self.v(x))


class Sentence(nn.Module):
    """Positions counted from a shape, tables, mean pooling under an integer mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(20, 16)
        self.out = nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.out(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        kept = mask.unsqueeze(-1).float()
        return (x * kept).sum(1) / kept.sum(1)


class Bags(nn.Module):
    """A list of tensors as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(20, 16), nn.EmbeddingBag(30, 16)])
        self.top = nn.Linear(32, 4)

    def forward(self, ids: list[Tensor]) -> Tensor:
        return self.top(torch.cat([table(part) for table, part in zip(self.tables, ids, strict=True)], 1))


class Named(nn.Module):
    """Keywords in, a mapping out, and an argument that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, *, x: Tensor, weight: Tensor | None = None, **others: Any) -> collections.OrderedDict[str, Any]:
        made = self.fc(x)
        return collections.OrderedDict(logits=made if weight is None else made * weight, hidden=(x, None))


@dataclass
class Found:
    """What a detector returns."""

    boxes: Tensor
    count: int


class Detector(nn.Module):
    """Features and head that trace, and sorting out that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            made = self.head(self.backbone(image.unsqueeze(0)).mean((2, 3)))[0]
            if made[0] > 1e6:
                made = made * 0
            found.append({"boxes": made[:4], "scores": made[4:]})
        return found


class AsksWeights(nn.Module):
    """Reads device, dtype and shape of a weight, which is packed later, or of the first parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.a.weight.dtype) + torch.zeros(1, self.a.weight.shape[0], device=self.a.weight.device)
        if x.dtype != next(self.parameters()).dtype:
            raise ValueError
        return self.b(self.a(x))


class Tied(nn.Module):
    """A layer that is called, and whose weight is used as a tensor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) @ self.a.weight)


class MergesOnFirstCall(nn.Module):
    """A re-parameterized layer: two branches in training, merged in place by the first call in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.merged = nn.Linear(8, 8), nn.Linear(8, 8), False

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.one(x) + self.two(x)
        if not self.merged:
            self.one.weight.data += self.two.weight.data
            self.one.bias.data += self.two.bias.data
            self.merged = True
        return self.one(x)


class Unpacks(nn.Module):
    """Heads as everybody splits them: a shape unpacked into another."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, 8).unbind(-2)
        return F.relu(q + k) * v
