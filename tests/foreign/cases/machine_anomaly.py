"""Machine-sound anomaly detector: an autoencoder scored by the area under the ROC curve of its reconstruction error.

Report: https://github.com/mlcommons/tiny/issues/140 and .../110: AUC 0.85 in float, 0.35 to 0.56 with int8 in and out.
Wanted: int8 with the same AUC. AUC is no per-sample score, so `auc` returns one number a batch, as anyone would write
it; right is to say at once what form the metric needs and how to get there. `per_sample` scores the reconstruction
error of normal sounds (lower is better), which passes while the AUC falls if anomalies get closer: `watch` it.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


def block(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            block(160, 64), block(64, 64), block(64, 8), block(8, 64), block(64, 64), nn.Linear(64, 160)
        )

    def forward(self, x):
        return self.net(x)


def batches(n, seed, size=64, anomalies=True):
    g, w = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(4)
    basis, odd = torch.randn(6, 160, generator=w), torch.randn(3, 160, generator=w)
    bad = (torch.rand(n, generator=g) < 0.5).float() if anomalies else torch.zeros(n)
    x = torch.randn(n, 6, generator=g) @ basis + 0.5 * torch.randn(n, 160, generator=g)
    x = 4 * x - 40 + 4 * bad.unsqueeze(1) * (torch.randn(n, 3, generator=g) @ odd)  # log-mel energies in dB
    return [(a, (a, b)) for a, b in zip(x.split(size), bad.split(size), strict=False)]


def loss(out, t):
    return F.mse_loss(out, t[0])


def auc(out, t):
    score = ((out - t[0]) ** 2).mean(1)
    good, bad = score[t[1] < 0.5], score[t[1] > 0.5]
    return (bad.unsqueeze(1) > good).float().mean()


def errors(out, t):
    return ((out - t[0]) ** 2).mean(1)


def _model():
    torch.manual_seed(0)
    model, train = AutoEncoder(), batches(4096, 1, anomalies=False)
    opt = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(10):
        for x, t in train:
            opt.zero_grad()
            loss(model(x), t).backward()
            opt.step()
    return model.eval(), train


def case():
    model, train = _model()
    return QATCase(
        model=model,
        example_inputs=(train[0][0],),
        train_data=train,
        loss_fn=loss,
        optimizer=lambda p: torch.optim.Adam(p, 1e-4),
        eval_data=batches(1024, 2),
        metric=auc,
    )


def per_sample():
    model, train = _model()
    return QATCase(
        model=model,
        example_inputs=(train[0][0],),
        train_data=train,
        loss_fn=loss,
        optimizer=lambda p: torch.optim.Adam(p, 1e-4),
        eval_data=batches(1024, 2),
        metric=errors,
        higher_is_better=False,
    )
