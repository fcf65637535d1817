"""Small networks from a list of layers, written so that eager mode, FX and torch.export all accept them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional

from pytest_qat.properties.examples import NetExample

__all__ = ["LAYERS", "Net", "batches_of", "net_of"]

LAYERS = ("conv", "conv_relu", "conv_bn", "conv_bn_relu", "depthwise", "add", "cat", "pool", "linear_relu")
_WIDTH, _SIDE = 4, 8


class _Block(nn.Module):
    """One layer; `add` and `cat` are branches that are joined with the input of the layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.join = FloatFunctional() if kind in ("add", "cat") else None
        self.body = _body(kind)
        self.back = nn.Conv2d(2 * _WIDTH, _WIDTH, 1) if kind == "cat" else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if self.kind == "add":
            assert self.join is not None, "unreachable because of the constructor"
            return self.join.add(x, y)
        if self.kind == "cat":
            assert self.join is not None, "unreachable because of the constructor"
            assert self.back is not None, "unreachable because of the constructor"
            return self.back(self.join.cat([x, y], dim=1))  # type: ignore[no-any-return]
        return y


def _body(kind: str) -> nn.Module:
    if kind == "pool":
        return nn.MaxPool2d(3, stride=1, padding=1)
    groups = _WIDTH if kind == "depthwise" else 1
    layers: list[nn.Module] = [nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, groups=groups)]
    if "bn" in kind:
        layers.append(nn.BatchNorm2d(_WIDTH))
    if "relu" in kind or kind in ("add", "cat"):
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Net(nn.Module):
    """A first convolution, the blocks, mean pooling, and linear layers.

    Args:
        layers: Kinds of blocks, from `LAYERS`.
    """

    def __init__(self, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(kind) for kind in layers if kind != "linear_relu"))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        hidden = [nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU()) for kind in layers if kind == "linear_relu"]
        self.head = nn.Sequential(*hidden, nn.Linear(_WIDTH, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, 3, 8, 8)` to `(n, 5)`."""
        return self.head(self.flatten(self.pool(self.blocks(self.stem(x)))))  # type: ignore[no-any-return]


def net_of(example: NetExample) -> Net:
    """Return the network of an example in eval mode; its seed determines the weights and BatchNorm statistics."""
    generator = torch.Generator().manual_seed(example.seed)
    net = Net(example.layers)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
                             if tensor.ndim > 1 else torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
    return net.eval()


def batches_of(example: NetExample, count: int = 2) -> list[Tensor]:
    """Return batches of inputs of shape `(4, 3, 8, 8)`, which the example's seed determines."""
    generator = torch.Generator().manual_seed(example.seed + 1)
    return [torch.randn(4, 3, _SIDE, _SIDE, generator=generator) for _ in range(count)]
