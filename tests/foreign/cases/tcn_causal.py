"""Causal TCN for an activity classifier, to be shipped as int8 ONNX.

Report: https://github.com/pytorch/pytorch/issues/144464 (2025). The reporter's `Conv1d` *inherits* nn.Conv1d and
*holds* a second nn.Conv1d that does the work after causal padding, so each layer carries a dead copy of its weights.
Wanted: QAT, then int8 in ONNX Runtime. Right: quantize the inner convolutions, say that the dead weights are
no part of what ships (so that "4x smaller" is not 8x), and run on `pt2e-onnxruntime`.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Conv1d(nn.Conv1d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.left = self.dilation[0] * (self.kernel_size[0] - 1)
        self.conv1d = nn.Conv1d(
            self.in_channels,
            self.out_channels,
            self.kernel_size[0],
            self.stride[0],
            dilation=self.dilation[0],
            groups=self.groups,
            bias=self.bias is not None,
        )

    def forward(self, x):
        return self.conv1d(F.pad(x, (self.left, 0)))


class Block(nn.Module):
    def __init__(self, cin, cout, dilation):
        super().__init__()
        self.net = nn.Sequential(
            Conv1d(cin, cout, 5, dilation=dilation),
            nn.ReLU(),
            nn.Dropout(0.1),
            Conv1d(cout, cout, 5, dilation=dilation),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.skip = nn.Conv1d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x):
        return F.relu(self.net(x) + self.skip(x))


class TCN(nn.Module):
    def __init__(self, cin=6, classes=5):
        super().__init__()
        self.blocks = nn.ModuleList([Block(c, 48, 2**i) for i, c in enumerate((cin, 48, 48))])
        self.head = nn.Linear(48, classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, :, -1])


def data(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 5, (n,), generator=g)
    t = torch.arange(128.0)
    f = 0.15 + 0.12 * y.float()
    phase = 6.28 * torch.rand(n, 6, 1, generator=g)
    amp = 0.5 + torch.rand(n, 6, 1, generator=g)
    x = amp * torch.sin(f.view(-1, 1, 1) * t + phase) + 0.3 * torch.randn(n, 6, 128, generator=g)
    return x, y


def batches(n, seed, size=32):
    x, y = data(n, seed)
    return list(zip(x.split(size), y.split(size), strict=False))


def case():
    torch.manual_seed(0)
    model, train = TCN(), batches(768, 1)
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train[:20],
        loss_fn=F.cross_entropy,
        eval_data=batches(640, 2),
    )
