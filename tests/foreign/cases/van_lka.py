"""VAN: large-kernel attention (depthwise 5x5, dilated depthwise 7x7, pointwise) that multiplies its input.

Report: https://github.com/pytorch/pytorch/issues/126140 (2024): PT2E quantization of VAN-tiny gives wrong results,
traced to the folding of a BatchNorm. Here a BatchNorm comes *before* the attention and cannot be folded into what
precedes it; layer scales are parameters. Wanted: int8 of the same accuracy.
Right: it is quantized and passes, or the place where it breaks is named.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Lka(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv0 = nn.Conv2d(d, d, 5, padding=2, groups=d)
        self.spatial = nn.Conv2d(d, d, 7, padding=9, groups=d, dilation=3)
        self.conv1 = nn.Conv2d(d, d, 1)

    def forward(self, x):
        u = x.clone()
        return u * self.conv1(self.spatial(self.conv0(x)))


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(d), nn.BatchNorm2d(d)
        self.proj1, self.lka, self.proj2 = nn.Conv2d(d, d, 1), Lka(d), nn.Conv2d(d, d, 1)
        self.fc1, self.dw, self.fc2 = (
            nn.Conv2d(d, 4 * d, 1),
            nn.Conv2d(4 * d, 4 * d, 3, padding=1, groups=4 * d),
            nn.Conv2d(4 * d, d, 1),
        )
        self.s1, self.s2 = nn.Parameter(0.1 * torch.ones(d)), nn.Parameter(0.1 * torch.ones(d))

    def forward(self, x):
        y = self.norm1(x)
        y = self.proj2(self.lka(F.gelu(self.proj1(y)))) + y
        x = x + self.s1.unsqueeze(-1).unsqueeze(-1) * y
        y = self.fc2(F.gelu(self.dw(self.fc1(self.norm2(x)))))
        return x + self.s2.unsqueeze(-1).unsqueeze(-1) * y


class Van(nn.Module):
    def __init__(self, d=24, classes=6):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, d, 7, stride=2, padding=3), nn.BatchNorm2d(d)
        self.blocks, self.norm, self.head = nn.ModuleList([Block(d), Block(d)]), nn.LayerNorm(d), nn.Linear(d, classes)

    def forward(self, x):
        x = self.bn(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.flatten(2).transpose(1, 2)).mean(1))


def batches(n, seed, size=16):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 6, (n,), generator=g)
    u = torch.linspace(-1, 1, 24)
    yy, xx = torch.meshgrid(u, u, indexing="ij")
    c = 0.6 * (torch.rand(n, 2, 1, 1, generator=g) - 0.5)
    r = ((yy - c[:, 0]) ** 2 + (xx - c[:, 1]) ** 2).sqrt()
    x = torch.sin((8 + 3 * y.float()).view(-1, 1, 1) * r).unsqueeze(1) * (0.5 + torch.rand(n, 3, 1, 1, generator=g))
    return list(zip((x + 0.4 * torch.randn(n, 3, 24, 24, generator=g)).split(size), y.split(size), strict=False))


def case():
    torch.manual_seed(0)
    model, train = Van(), batches(800, 1)
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(3):
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train[:25],
        loss_fn=F.cross_entropy,
        eval_data=batches(480, 2),
    )
