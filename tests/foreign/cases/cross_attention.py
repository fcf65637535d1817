"""Cross-attention decoder in the way of DETR: query, key and value as three inputs, a dict of heads out.

Report: https://github.com/google-ai-edge/litert-torch/issues/137 (2024): scaled_dot_product_attention with
`.contiguous()` inputs, quantized through PT2E, ends in a tensor-shape mismatch in the `.tflite`. Wanted: int8 LiteRT.
Right: it runs, or the tool fails `convert` with the attention named; the boxes must not go unseen beside the classes.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from pytest_qat import QATCase


class Attention(nn.Module):
    def __init__(self, dim=64, nhead=8):
        super().__init__()
        self.nhead, self.q, self.k, self.v, self.o = (
            nhead,
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
        )

    def split(self, x):
        b, n, d = x.shape
        return x.view(b, n, self.nhead, d // self.nhead).transpose(1, 2)

    def forward(self, query, key, value):
        args = [self.split(f(x)).contiguous() for f, x in ((self.q, query), (self.k, key), (self.v, value))]
        y = F.scaled_dot_product_attention(*args)
        return self.o(y.transpose(1, 2).reshape(query.shape))


class Decoder(nn.Module):
    def __init__(self, dim=64, classes=5):
        super().__init__()
        self.cross, self.norm = Attention(dim), nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.cls, self.box = nn.Linear(dim, classes), nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))

    def forward(self, query, key, value):
        x = self.norm(query + self.cross(query, key, value))
        x = x + self.ffn(x)
        return {"logits": self.cls(x), "boxes": self.box(x).sigmoid()}


def batches(n, seed, size=16):
    g, w = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(5)
    query, place = torch.randn(4, 64, generator=w), torch.randn(16, 64, generator=w)
    kind, spot = torch.randn(5, 64, generator=w), torch.randn(4, 64, generator=w)
    y = torch.randint(0, 5, (n, 4), generator=g)
    box = torch.rand(n, 4, 4, generator=g)
    at = torch.arange(4) * 4
    value = 0.3 * torch.randn(n, 16, 64, generator=g)
    value[:, at] += kind[y] + box @ spot
    key = place + 0.1 * torch.randn(n, 16, 64, generator=g)
    key[:, at] += query
    out = []
    for v, k, c, b in zip(value.split(size), key.split(size), y.split(size), box.split(size), strict=False):
        out.append(((query.expand(len(v), -1, -1).contiguous(), k, v), {"labels": c, "boxes": b}))
    return out


def loss(out, t):
    return F.cross_entropy(out["logits"].flatten(0, 1), t["labels"].flatten()) + F.l1_loss(out["boxes"], t["boxes"])


def class_accuracy(out, t):
    return (out["logits"].argmax(-1) == t["labels"]).float().mean(1)


def case():
    torch.manual_seed(0)
    model, train = Decoder(), batches(1280, 1)
    opt = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(4):
        for x, t in train:
            opt.zero_grad()
            loss(model(*x), t).backward()
            opt.step()
    return QATCase(
        model=model.eval(),
        example_inputs=train[0][0],
        train_data=train,
        loss_fn=loss,
        eval_data=batches(320, 2),
        metric=class_accuracy,
    )
