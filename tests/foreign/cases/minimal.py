"""The smallest forms of what users' models brought, one function each; random weights, no data."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class ScaledByShape(nn.Module):
    """A scale computed from a shape: torch.fx sees a node, the quantizer observes a Python float (wifi_pose)."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return torch.matmul(self.q(x), self.k(x).transpose(1, 2)) * x.shape[-1] ** -0.5


def scaled_by_shape():
    x = torch.randn(8, 4, 16)
    return QATCase(model=ScaledByShape().eval(), example_inputs=(x,))


class LongMask(nn.Module):
    """Mean pooling under an integer mask, as every sentence embedder has it (in sentence embedders)."""

    def __init__(self):
        super().__init__()
        self.tok, self.out = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, ids, mask):
        x, m = self.out(self.tok(ids)), mask.unsqueeze(-1).float()
        return (x * m).sum(1) / m.sum(1)


def long_mask():
    return QATCase(
        model=LongMask().eval(), example_inputs=(torch.randint(0, 50, (8, 12)), torch.ones(8, 12, dtype=torch.long))
    )


class OneOfMany(nn.Module):
    """Two convolutions with an uneven "same" padding, and a small head (same_pad, with pt2e-executorch)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = (
            nn.Conv2d(3, 16, 4, padding="same"),
            nn.Conv2d(16, 16, 4, padding="same"),
            nn.Linear(16, 4),
        )

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def one_of_many():
    return QATCase(model=OneOfMany().eval(), example_inputs=(torch.randn(4, 3, 32, 32),))


class ListInput(nn.Module):
    """A list of tensors as one argument, looped over (in click predictors)."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(20, 16), nn.EmbeddingBag(30, 16)])
        self.top = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids):
        return self.top(torch.cat([t(i) for t, i in zip(self.tables, ids, strict=True)], 1))


def list_input():
    return QATCase(
        model=ListInput().eval(), example_inputs=([torch.randint(0, 20, (16, 3)), torch.randint(0, 30, (16, 5))],)
    )


class SubclassLinear(nn.Linear):
    """A subclass of nn.Linear with a forward of its own and a plain nn.Linear inside (with torchao-int8)."""

    def __init__(self, a, b):
        super().__init__(a, b)
        self.side = nn.Linear(a, b)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + 0.1 * self.side(x)


def subclass_linear():
    torch.manual_seed(0)
    model = nn.Sequential(SubclassLinear(128, 128), nn.ReLU(), SubclassLinear(128, 128), nn.ReLU(), nn.Linear(128, 8))
    return QATCase(model=model.eval(), example_inputs=(torch.randn(32, 128),))


class NoGradPart(nn.Module):
    """torch.no_grad() inside forward, around a frozen part (with pt2e-litert)."""

    def __init__(self):
        super().__init__()
        self.frozen, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(F.relu(x)).mean((2, 3))


def no_grad_part():
    return QATCase(model=NoGradPart().eval(), example_inputs=(torch.randn(4, 3, 16, 16),))


class Volume(nn.Module):
    """Conv3d for ExecuTorch, which has no kernel for it in the default build (unet3d, with pt2e-executorch)."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.InstanceNorm3d(8, affine=True) if norm else nn.Identity(),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3, 4)))


def volume():
    return QATCase(model=Volume(False).eval(), example_inputs=(torch.randn(2, 1, 8, 8, 8),))


def volume_norm():
    return QATCase(model=Volume(True).eval(), example_inputs=(torch.randn(2, 1, 8, 8, 8),))


class IntIndex(nn.Module):
    """An integer tensor, plus a number, used as an index, as BERT has it (with pt2e-executorch)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(x[:, torch.arange(4) + 1])


def int_index():
    return IntIndex().eval(), (torch.randn(4, 6, 8),)


class DeadLinear(nn.Module):
    """A layer whose result nobody reads, as the pooler of BERT (with pt2e-inductor)."""

    def __init__(self):
        super().__init__()
        self.linear, self.pooler, self.tanh = nn.Linear(8, 4), nn.Linear(8, 8), nn.Tanh()

    def forward(self, x):
        self.tanh(self.pooler(x))
        return self.linear(x)


def dead_linear():
    return DeadLinear().eval(), (torch.randn(4, 8),)


def prelu():
    """PReLU with slopes as PyTorch starts them, whose qparams cannot hold 1.0 (with fx-x86)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    return QATCase(model=model.eval(), example_inputs=(torch.randn(16, 3, 8, 8),))


def prelu_2d():
    """PReLU after a linear layer (with pt2e-executorch)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.PReLU(16), nn.Linear(16, 4)).eval(), (torch.randn(16, 8),)
