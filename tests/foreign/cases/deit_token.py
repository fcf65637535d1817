"""DeiT-like classifier: patches, a class token that is expanded and concatenated, position embedding, attention.

Report: https://github.com/pytorch/executorch/pull/20280 and .../19836 (2026): the concatenation takes the scale of
the class token, the static transpose of the patches then has two scales, and XNNPACK rejects the file when loading.
Wanted: int8 `.pte`. Right: it runs with accuracy kept, or the tool fails `convert` and names the operation.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Layer(nn.Module):
    def __init__(self, d=48, heads=3):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.n2(x))))


class Deit(nn.Module):
    def __init__(self, d=48, classes=6):
        super().__init__()
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 17, d))
        self.layers = nn.ModuleList([Layer(d), Layer(d)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def batches(n, seed, size=16):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 6, (n,), generator=g)
    u = torch.linspace(-1, 1, 16)
    yy, xx = torch.meshgrid(u, u, indexing="ij")
    angle = y.float() * 3.1416 / 6
    wave = torch.sin(
        6 * (torch.cos(angle).view(-1, 1, 1) * xx + torch.sin(angle).view(-1, 1, 1) * yy)
        + 6.28 * torch.rand(n, 1, 1, generator=g)
    )
    x = wave.unsqueeze(1) * (0.5 + torch.rand(n, 3, 1, 1, generator=g)) + 0.4 * torch.randn(n, 3, 16, 16, generator=g)
    return list(zip(x.split(size), y.split(size), strict=False))


def case():
    torch.manual_seed(0)
    model, train = Deit(), batches(1280, 1)
    opt = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(5):
        for x, y in train:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=(train[0][0],),
        train_data=train[:40],
        loss_fn=F.cross_entropy,
        eval_data=batches(480, 2),
    )
