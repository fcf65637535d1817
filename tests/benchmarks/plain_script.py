"""What a user would write by hand for `fixtures.edge_model:digits`: prepare, fine-tune, convert, evaluate, time.

The yardstick of `main_job.py`; it asserts nothing and measures in the simplest way.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import quantize_fx

from fixtures.edge_model import digits


def main() -> None:
    """Run the whole job and print its figures."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    case = digits()
    assert case.train_data is not None
    assert case.eval_data is not None
    assert case.optimizer is not None
    assert case.loss_fn is not None
    torch.backends.quantized.engine = "x86"
    mapping = tq.get_default_qat_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_qat_fx(copy.deepcopy(case.model).train(), mapping, case.example_inputs)
    optimizer = case.optimizer(prepared.parameters())
    for epoch in range(case.epochs):
        prepared.train()
        if epoch == case.epochs - 1:
            prepared.apply(tq.disable_observer)
            prepared.apply(freeze_bn_stats)
        for images, target in case.train_data:
            optimizer.zero_grad()
            case.loss_fn(prepared(images), target).backward()
            optimizer.step()
    converted = quantize_fx.convert_fx(prepared.eval())
    baseline = quantize_fx.fuse_fx(copy.deepcopy(case.model).eval())
    with torch.inference_mode():
        for name, model in (("fp32", baseline), ("int8", converted)):
            hits = [(model(images).argmax(1) == target).float() for images, target in case.eval_data]
            print(f"{name}: accuracy {torch.cat(hits).mean():.4f}, "
                  f"latency {1e3 * latency(model, case.example_inputs[0]):.3f} ms")


def latency(model: Callable[[Tensor], Tensor] | nn.Module, images: Tensor) -> float:
    """Return the mean time of 100 calls after 10 warm-up calls, on one thread, in seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(10):
        model(images)
    start = time.perf_counter()
    for _ in range(100):
        model(images)
    passed = time.perf_counter() - start
    torch.set_num_threads(threads)
    return passed / 100


if __name__ == "__main__":
    main()
