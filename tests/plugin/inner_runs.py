"""What inner runs are given, said and recorded, as several test modules use it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project

OPS = '''
import torch
from pytest_qat import QuantOps

def quantize(x, scale, zero_point, low, high):
    if not (scale >= 2.0**-126 and scale < float("inf")):
        raise ValueError("scale")
    return (torch.round(x.float() * (1 / torch.tensor(scale))) + zero_point).clamp(low, high).nan_to_num().int()

def dequantize(codes, scale, zero_point):
    return (codes - zero_point).float() * torch.tensor(scale)

def good():
    return QuantOps(name="good", quantize=quantize, dequantize=dequantize)

def late(x, *params):
    codes = quantize(x, *params).reshape(-1).clone()
    codes[37:38] += 1
    return codes.clamp(params[2], params[3]).reshape(x.shape)

def bad():
    return QuantOps(name="bad", quantize=late, dequantize=dequantize)

def deadly(x, *params):
    if 30 < x.numel() < 200:
        import os, signal
        os.kill(os.getpid(), signal.SIGSEGV)
    return quantize(x, *params)

def crashing():
    return QuantOps(name="crashing", quantize=deadly, dequantize=dequantize)

def both():
    return [good(), bad()]
'''
"""kernels.py of a user: an implementation that keeps the laws, and two that do not."""


def recorded(project: Project, function: str) -> dict[str, Any]:
    runs = json.loads((project.path / "qat.json").read_text())["runs"]
    [run] = [run for run in runs if run["model"] == f"models:{function}"]
    return dict(run)


def everything(result: pytest.RunResult) -> str:
    text = " ".join(" ".join([*result.outlines, *result.errlines]).split())
    assert "INTERNALERROR" not in text
    return text
