"""Pose from radio: grouped temporal convolutions, axial attention, 15 normalised key points; scored by PCK@20.

Report: https://github.com/ruvnet/RuView/pull/1095 (2026): PCK@20 96.6 % in float, 83.5 % under fake-quantize, 67.5 %
after `convert_fx` - coarse localisation survives int8 and fine does not, and 16 points are lost in conversion.
Right: `accuracy` fails if PCK falls, with the size of the step against the size of what is measured, and says
whether fake-quantize or the kernels lose it. `calibrated` gives no training data, as PTQ in the report.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Axial(nn.Module):
    def __init__(self, c, heads=4):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Conv1d(c, 3 * c, 1, bias=False), nn.Conv1d(c, c, 1)

    def forward(self, x):  # [B, C, H, W], attention along W
        b, c, h, w = x.shape
        y = x.permute(0, 2, 1, 3).reshape(b * h, c, w)
        q, k, v = self.qkv(y).reshape(b * h, 3, self.heads, c // self.heads, w).unbind(1)
        a = torch.einsum("bhcn,bhcm->bhnm", q, k) * (c // self.heads) ** -0.5
        y = torch.einsum("bhnm,bhcm->bhcn", a.softmax(-1), v).reshape(b * h, c, w)
        return x + self.out(y).reshape(b, h, c, w).permute(0, 2, 1, 3)


class WiFlow(nn.Module):
    def __init__(self, sub=64, points=15):
        super().__init__()
        self.tcn = nn.Sequential(
            nn.Conv1d(sub, 64, 3, padding=1, groups=4),
            nn.BatchNorm1d(64),
            nn.SiLU(),
            nn.Conv1d(64, 64, 3, padding=2, dilation=2, groups=4),
            nn.BatchNorm1d(64),
            nn.SiLU(),
        )
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.SiLU(),
        )
        self.axial = Axial(32)
        self.pool = nn.AdaptiveAvgPool2d((points, 1))
        self.dec = nn.Sequential(
            nn.Conv2d(32, 32, (3, 1), padding=(1, 0)), nn.SiLU(), nn.Flatten(), nn.Linear(32 * points, 2 * points)
        )
        self.points = points

    def forward(self, x):
        x = self.tcn(x).unsqueeze(1)
        return self.dec(self.pool(self.axial(self.conv(x)))).view(-1, self.points, 2)


def batches(n, seed, size=32):
    g = torch.Generator().manual_seed(seed)
    w = torch.Generator().manual_seed(9)
    shape, mix = 0.05 * torch.randn(6, 30, generator=w), torch.randn(6, 64, generator=w)
    mean = torch.rand(30, generator=w) * 0.3 + 0.35
    z = torch.randn(n, 6, generator=g)
    pose = (mean + z @ shape).view(n, 15, 2)
    carrier = torch.cos(torch.arange(20.0) * 0.4).view(1, 1, -1)
    x = (torch.tanh(0.6 * z @ mix).unsqueeze(-1) * (1 + 0.3 * carrier)) + 0.03 * torch.randn(n, 64, 20, generator=g)
    return list(zip(x.split(size), pose.split(size), strict=False))


def pck20(out, y):
    torso = (y[:, 0] - y[:, 7]).norm(dim=-1, keepdim=True).clamp_min(0.25)
    return ((out - y).norm(dim=-1) < 0.2 * torso).float().mean(1)


def _model():
    torch.manual_seed(0)
    model, train = WiFlow(), batches(1600, 1)
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, 6e-3, total_steps=8 * len(train))
    for _ in range(8):
        for x, y in train:
            opt.zero_grad()
            F.smooth_l1_loss(model(x), y, beta=0.05).backward()
            opt.step()
            plan.step()
    return model.eval(), train


def case():
    model, train = _model()
    return QATCase(
        model=model,
        example_inputs=(train[0][0],),
        train_data=train,
        epochs=1,
        loss_fn=lambda o, y: F.smooth_l1_loss(o, y, beta=0.05),
        optimizer=lambda p: torch.optim.AdamW(p, 2e-4),
        eval_data=batches(480, 2),
        metric=pck20,
    )


def calibrated():
    model, train = _model()
    return QATCase(
        model=model,
        example_inputs=(train[0][0],),
        calibration_data=[x for x, _ in train[:20]],
        eval_data=batches(480, 2),
        metric=pck20,
    )
