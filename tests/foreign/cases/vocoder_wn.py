"""A small HiFi-GAN-like vocoder with hook-based weight_norm, ConvTranspose1d and leaky ReLU.

Report: https://github.com/myshell-ai/MeloTTS/issues/46 (2024: linear and Conv1d layers to int8, mixed results) and
https://github.com/pytorch/pytorch/issues/102981 (weight_norm cannot be deep-copied). Wanted: int8 speech synthesis.
Right: weight norm is removed, or the failure says how to; `removed` is that. Score: L1 to the
target wave, lower is better.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import remove_weight_norm, weight_norm

from pytest_qat import QATCase


class Res(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.convs = nn.ModuleList([weight_norm(nn.Conv1d(c, c, 3, dilation=d, padding=d)) for d in (1, 3)])

    def forward(self, x):
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1))
        return x


class Vocoder(nn.Module):
    def __init__(self, mels=20, c=48):
        super().__init__()
        self.pre = weight_norm(nn.Conv1d(mels, c, 7, padding=3))
        self.ups = nn.ModuleList(
            [
                weight_norm(nn.ConvTranspose1d(c, c // 2, 8, 4, padding=2)),
                weight_norm(nn.ConvTranspose1d(c // 2, c // 4, 8, 4, padding=2)),
            ]
        )
        self.res = nn.ModuleList([Res(c // 2), Res(c // 4)])
        self.post = weight_norm(nn.Conv1d(c // 4, 1, 7, padding=3))

    def forward(self, x):
        x = self.pre(x)
        for up, res in zip(self.ups, self.res, strict=False):
            x = res(up(F.leaky_relu(x, 0.1)))
        return torch.tanh(self.post(F.leaky_relu(x)))


def batches(n, seed, size=8):
    g = torch.Generator().manual_seed(seed)
    amp = F.interpolate(torch.rand(n, 20, 5, generator=g), size=32, mode="linear")
    t = torch.arange(512.0)
    bank = torch.stack([torch.sin(2 * 3.1416 * (k + 1) * t / 64) for k in range(20)])
    wave = (F.interpolate(amp, size=512, mode="linear") * bank / (1 + torch.arange(20.0)).view(-1, 1)).sum(
        1, keepdim=True
    ) * 0.4
    return list(zip(amp.split(size), wave.tanh().split(size), strict=False))


def l1(out, y):
    return (out - y).abs().mean((1, 2))


def _case(strip):
    torch.manual_seed(0)
    model, train = Vocoder(), batches(256, 1)
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(10):
        for x, y in train:
            opt.zero_grad()
            l1(model(x), y).mean().backward()
            opt.step()
    if strip:
        for m in list(model.modules()):
            if hasattr(m, "weight_g"):
                remove_weight_norm(m)
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train,
        loss_fn=lambda o, y: l1(o, y).mean(),
        optimizer=lambda p: torch.optim.Adam(p, 1e-4),
        eval_data=batches(96, 2),
        metric=l1,
        higher_is_better=False,
    )


def case():
    return _case(False)


def removed():
    return _case(True)
