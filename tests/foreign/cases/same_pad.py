"""One-dimensional beat classifier written with Conv2d, an even kernel and padding="same".

Report: https://github.com/pytorch/executorch/issues/20517 (2026): quantized conv(padding="same") + ReLU fails at run
time in XNNPACK with an even kernel (the asymmetric pad becomes a separate op). Wanted: an int8 `.pte`. Right: it
works, or the tool fails `convert` naming the padding and the remedy (explicit padding). `as_posted` also has the
reporter's reshape to (1, 1, 256, 1), which takes one sample a call.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Beat(nn.Module):
    def __init__(self, batch=-1):
        super().__init__()
        self.batch = batch
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=(32, 1), padding="same"),
            nn.ReLU(),
            nn.AvgPool2d((4, 1)),
            nn.Conv2d(16, 32, kernel_size=(8, 1), padding="same"),
            nn.ReLU(),
        )
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.reshape(x, (self.batch, 1, 256, 1))
        return self.fc(self.conv(x).mean((2, 3)))


def batches(n, seed, size):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=g)
    t = torch.arange(256.0)
    width = torch.tensor([3.0, 6.0, 10.0, 15.0])[y].unsqueeze(1)
    at = 60 + 130 * torch.rand(n, 1, generator=g)
    x = torch.exp(-(((t - at) / width) ** 2)) + 0.1 * torch.randn(n, 256, generator=g)
    return list(zip(x.split(size), y.split(size), strict=False))


def _case(batch, size):
    torch.manual_seed(0)
    model, train = Beat(-1), batches(1600, 1, 32)
    opt = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(3):
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    model.batch = batch
    train = batches(400, 1, size)
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train,
        loss_fn=F.cross_entropy,
        eval_data=batches(400, 2, size),
    )


def case():
    return _case(-1, 8)


def as_posted():
    return _case(1, 1)
