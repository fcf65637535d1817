"""Refuse to convert a model that training has broken: torch.ao then speaks of zero points, not of NaN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import observed, user_names

__all__ = ["DIVERGED", "refuse_broken"]

DIVERGED = frozenset({"weights-not-finite", "range-not-finite"})
"""Codes of what training left; no other recipe mends that."""


def refuse_broken(prepared: nn.Module, *, ended: str = "") -> None:
    """Check that training has left all weights, and the ranges that were observed, finite.

    Args:
        prepared: The trained model.
        ended: The error in which training ended.

    Raises:
        CheckFailed: they are not; the finding names the module.
    """
    found = _broken_weights(prepared) or _broken_range(prepared)
    if found is not None:
        first = f"fine-tuning diverged: {found.evidence['what']} after it."
        raise CheckFailed([first, *([f"It ended in this: {ended}"] if ended else ())], findings=[found])


def _broken_weights(prepared: nn.Module) -> Finding | None:
    broken = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in prepared.named_parameters()
              if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())}
    if not broken:
        return None
    first = next(iter(broken))
    place, _, leaf = first.rpartition(".")
    return Finding(
        code="weights-not-finite", severity="error", module=user_names(prepared).get(place) or None,
        message=f"{broken[first]} values of its {leaf} are NaN or infinite, as after training that diverged.",
        evidence={"tensors": list(broken),
                  "what": f"{sum(broken.values())} weights in {len(broken)} tensors are NaN or infinite"})


def _broken_range(prepared: nn.Module) -> Finding | None:
    for name, module in prepared.named_modules():
        low, high = getattr(module, "min_val", None), getattr(module, "max_val", None)
        if not (isinstance(low, Tensor) and isinstance(high, Tensor)) or not low.numel():
            continue
        unseen = torch.isposinf(low) & torch.isneginf(high)
        if not bool((unseen | (torch.isfinite(low) & torch.isfinite(high))).all()):
            seen = f"from {low.min().item()} to {high.max().item()}"
            return Finding(
                code="range-not-finite", severity="error", module=user_names(prepared).get(name) or None,
                message=f"training made values {seen} at {observed(user_names(prepared)[name])}, as where it diverges; "
                        "no scale and zero point hold such a range.",
                evidence={"what": f"values {seen} came up"})
    return None
