"""torchvision's quantizable MobileNetV2 whose QAT diverges: "zero_point must be between quant_min and quant_max".

Report: https://github.com/pytorch/pytorch/issues/126266 and https://github.com/jnulzl/PyTorch-QAT/issues/1 (2024).
The words of torch hide the cause: the reporter's rate (AdamW, 0.01) is far too high for fine-tuning, the activations
become NaN, and so do the scales. Wanted: to know why. Right: `convert` (or `accuracy`) fails with "training
diverged: loss or weights are not finite, lower the rate", not with torch's words, and nothing blames the kernels.
"""

import torch
import torch.nn.functional as F
from torchvision.models.quantization import mobilenet_v2

from pytest_qat import QATCase


def batches(n, seed, size=16):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    x = F.interpolate(torch.rand(n, 3, 8, 8, generator=g), size=(32, 32), mode="bilinear")
    x = x + 0.25 * y.view(-1, 1, 1, 1) * (torch.arange(32) % 8 < 4)  # blockiness of three qualities
    return list(zip(((x - 0.5) / 0.25).split(size), y.split(size), strict=False))


def _train(model, data, rate, epochs):
    opt = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(epochs):
        for x, y in data:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()


def case():
    torch.manual_seed(0)
    model, data = mobilenet_v2(weights=None, quantize=False, num_classes=3, width_mult=0.35), batches(400, 1)
    _train(model, data, 3e-3, 3)

    def qat(prepared):
        prepared.train()
        opt = torch.optim.AdamW(
            prepared.parameters(), 1e4
        )  # "0.01" in the report after warm-up; large enough to be quick
        for x, y in data[:12]:
            opt.zero_grad()
            F.cross_entropy(prepared(x), y).backward()
            opt.step()

    return QATCase(
        model=model.eval(),
        example_inputs=(data[0][0],),
        train=qat,
        calibration_data=[x for x, _ in data[:4]],
        eval_data=batches(160, 2),
    )
