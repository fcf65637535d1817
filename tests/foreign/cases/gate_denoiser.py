"""Image denoiser with NAFNet's SimpleGate: the halves of the channels are multiplied (and, in one block, added).

Report: https://github.com/pytorch/executorch/issues/21831 and .../21829 (2026): `y[:, :4] + y[:, 4:]` after a
convolution, quantized with XNNPACKQuantizer, converts and then fails to load (slice with two scales). Wanted: int8
`.pte` whose PSNR is close to float's. Right: it runs, or the tool fails `convert` with the slice named.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Gate(nn.Module):
    def __init__(self, c, add):
        super().__init__()
        self.wide, self.mid, self.back = (
            nn.Conv2d(c, 2 * c, 1),
            nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c),
            nn.Conv2d(c, c, 1),
        )
        self.c, self.add = c, add

    def forward(self, x):
        y = self.mid(self.wide(x))
        a, b = y[:, : self.c], y[:, self.c :]
        y = a + b if self.add else a * b
        return x + self.back(y)


class Denoiser(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.intro, self.end = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 3, 3, padding=1)
        self.body = nn.Sequential(Gate(c, False), Gate(c, True), Gate(c, False))

    def forward(self, x):
        return self.end(self.body(self.intro(x))) + x


def batches(n, seed, size=8):
    g = torch.Generator().manual_seed(seed)
    clean = F.interpolate(torch.rand(n, 3, 6, 6, generator=g), size=(24, 24), mode="bilinear")
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=g)
    return list(zip(noisy.split(size), clean.split(size), strict=False))


def psnr(out, clean):
    return -10 * torch.log10(((out - clean) ** 2).mean((1, 2, 3)))


def case():
    torch.manual_seed(0)
    model, train = Denoiser(), batches(256, 1)
    opt = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(6):
        for x, y in train:
            opt.zero_grad()
            F.mse_loss(model(x), y).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train,
        loss_fn=F.mse_loss,
        epochs=1,
        optimizer=lambda p: torch.optim.Adam(p, 2e-4),
        eval_data=batches(128, 2),
        metric=psnr,
    )
