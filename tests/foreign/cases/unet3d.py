"""3-D U-Net for volumes: Conv3d, InstanceNorm3d, ConvTranspose3d, skip concatenation; scored by Dice.

Report: https://github.com/NVIDIA/Model-Optimizer/issues/688 (2025: ConvTranspose3d stays in fp16 after explicit
quantization) and https://github.com/pytorch/pytorch/issues/54837 (InstanceNorm3d wrong in int8). Wanted: int8 volumes,
Dice kept. Right: name the layers that stay in float with their share of the work.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


def double(cin, cout):
    return nn.Sequential(
        nn.Conv3d(cin, cout, 3, padding=1),
        nn.InstanceNorm3d(cout, affine=True),
        nn.LeakyReLU(0.01),
        nn.Conv3d(cout, cout, 3, padding=1),
        nn.InstanceNorm3d(cout, affine=True),
        nn.LeakyReLU(0.01),
    )


class UNet3d(nn.Module):
    def __init__(self, c=8):
        super().__init__()
        self.d1, self.d2, self.pool = double(1, c), double(c, 2 * c), nn.MaxPool3d(2)
        self.up, self.u1, self.out = nn.ConvTranspose3d(2 * c, c, 2, 2), double(2 * c, c), nn.Conv3d(c, 2, 1)

    def forward(self, x):
        a = self.d1(x)
        b = self.up(self.d2(self.pool(a)))
        return self.out(self.u1(torch.cat([a, b], 1)))


def batches(n, seed, size=2):
    g = torch.Generator().manual_seed(seed)
    u = torch.arange(16.0)
    zz, yy, xx = torch.meshgrid(u, u, u, indexing="ij")
    c, r = 4 + 8 * torch.rand(n, 3, 1, 1, 1, generator=g), 3 + 2 * torch.rand(n, 1, 1, 1, generator=g)
    mask = ((zz - c[:, 0]) ** 2 + (yy - c[:, 1]) ** 2 + (xx - c[:, 2]) ** 2).sqrt() < r
    x = mask.float() + 0.5 * torch.randn(n, 16, 16, 16, generator=g)
    return list(zip(x.unsqueeze(1).split(size), mask.long().split(size), strict=False))


def dice(out, y):
    p, t = out.argmax(1).flatten(1).float(), y.flatten(1).float()
    return 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1)).clamp_min(1)


def case():
    torch.manual_seed(0)
    model, train = UNet3d(), batches(64, 1)
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train[:16],
        loss_fn=F.cross_entropy,
        eval_data=batches(40, 2),
        metric=dice,
    )
