"""Models that are called int8 and hold float weights: rounded ones, and ones restored from int8 in part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pytest_qat.diagnosis.given import Given
from pytest_qat.findings import Finding
from pytest_qat.measure.parity import sqnr_db

__all__ = ["is_rounded", "wrongly_restored"]

_NAMED = 5
_FEW_DISTINCT = 0.97
"""Trained float weights hardly repeat; rounded to 256 values, some of a row of 27 do."""
_LEAST = 64
_UNRELATED_DB = 3.0
_RESTORED_DB = 15.0


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() >= _LEAST:
            yield name, tensor.detach()


def _distinct(tensor: Tensor) -> float:
    rows = tensor.flatten(1)
    return float(sum(row.unique().numel() for row in rows) / tensor.numel())


def is_rounded(given: Given) -> list[str]:
    """Return the modules whose float weights take few values, while the float model's do not."""
    assert given.converted is not None, "unreachable because only converted models come here"
    own = dict(given.float_model.named_parameters())
    return [name.rpartition(".")[0] for name, tensor in _weights(given.converted)
            if _distinct(tensor) < _FEW_DISTINCT and (name not in own or own[name].shape != tensor.shape or _distinct(
                own[name].detach()) > _distinct(tensor) + 1e-3)]


def wrongly_restored(given: Given) -> Finding | None:
    """Return which weights of a float model are not those of the model it was made from, while others are."""
    assert given.converted is not None, "unreachable because only converted models come here"
    levels: dict[str, float] = {}
    for name, tensor in given.converted.named_parameters():
        known = [other for source in (given.fused, given.prepared, given.float_model) if source is not None
                 and (other := dict(source.named_parameters()).get(name)) is not None and other.shape == tensor.shape]
        if known and tensor.is_floating_point() and tensor.numel() > 1:
            levels[name] = max(sqnr_db(other, tensor) for other in known)
    wrong = [name for name, level in levels.items() if level < _UNRELATED_DB and bool(
        torch.isfinite(given.converted.get_parameter(name)).all())]
    right = [name for name, level in levels.items() if level >= _RESTORED_DB]
    if not wrong or not right:
        return None
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in wrong))
    return Finding(
        code="dequantized-wrongly", severity="error", module=modules[0] or None,
        evidence={"wrong": wrong[:_NAMED], "right": right[:_NAMED]},
        message=f"this float model has the weights of the trained one at {len(right)} places, but not at "
                f"{', '.join(wrong[:_NAMED])}{f' and {len(wrong) - _NAMED} more' if len(wrong) > _NAMED else ''}: "
                "these are unrelated to it. Quantized linear layers keep weight and bias in _packed_params, which no "
                "name of a state dict ends in.",
        remedy="use pytest_qat.dequantize_model(converted, float_model), which takes weights and biases from the "
               "layers themselves.")
