"""LSTM sensor classifier with sigmoids, as posted with QuantStub and DeQuantStub.

Report: https://github.com/pytorch/pytorch/issues/135197 and .../135198 (2024; also 42594, 137419). Wanted: QAT of an
LSTM and an int8 model that can be exported. Right: LSTM and linear layers are quantized in
eager and FX mode; a model with a float LSTM is never called "100 % int8".
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Net(nn.Module):
    def __init__(self, hidden=18):
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.lstm = nn.LSTM(18, hidden, batch_first=True)
        self.gate = nn.Sigmoid()
        self.linear1, self.linear2 = nn.Linear(hidden, 64), nn.Linear(64, 64)
        self.dropout = nn.Dropout(0.2)
        self.out, self.prob = nn.Linear(64, 20), nn.Sigmoid()

    def forward(self, x):
        x = self.quant(x)
        x, (_h, _c) = self.lstm(x)
        x = torch.squeeze(x[:, -1:, :], 1)
        x = self.gate(self.linear1(x))
        x = self.dropout(self.gate(self.linear2(x)))
        return self.dequant(self.prob(self.out(x)))


def batches(n, seed, size=32):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 20, (n,), generator=g)
    code = torch.randn(20, 18, generator=torch.Generator().manual_seed(7))
    ramp = torch.linspace(0, 1, 24).view(1, -1, 1)
    x = code[y].unsqueeze(1) * ramp + 0.8 * torch.randn(n, 24, 18, generator=g)
    return list(zip(x.split(size), y.split(size), strict=False))


def loss(p, y):
    return F.binary_cross_entropy(p, F.one_hot(y, 20).float())


def case():
    torch.manual_seed(0)
    model, train = Net(), batches(1600, 1)
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(10):
        for x, y in train:
            opt.zero_grad()
            loss(model(x), y).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train,
        loss_fn=loss,
        epochs=1,
        optimizer=lambda p: torch.optim.Adam(p, 1e-4),
        eval_data=batches(640, 2),
    )
