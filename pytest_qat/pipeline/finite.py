"""Refuse to convert a model that training has broken: torch.ao then speaks of zero points, not of NaN."""

from __future__ import annotations

import torch
from torch import nn

from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import observed, observed_module, user_names
from pytest_qat.workflows.observers import fake_quantizers, range_of, unbounded_range

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
    _refuse_unobserved(prepared)
    found = _broken_weights(prepared) or _broken_range(prepared)
    if found is not None:
        first = f"fine-tuning diverged: {found.evidence['what']} after it."
        raise CheckFailed([first, *([f"It ended in this: {ended}"] if ended else ())], findings=[found])


def _refuse_unobserved(prepared: nn.Module) -> None:
    """One observer may rightly have seen nothing, as that of a module that is not called; all of them may not."""
    observers = [module for _, module in fake_quantizers(prepared) if isinstance(range_of(module), tuple)]
    seen = [each for each in observers if any(bool(torch.isfinite(end).any()) for end in range_of(each) or ())]
    if observers and not seen:
        raise CheckFailed(["the prepared model was never calibrated."], findings=[Finding(
            code="never-calibrated", severity="error", evidence={"observers": len(observers)},
            message=f"none of its {len(observers)} observers has seen a value, so there are no ranges to convert with.",
            remedy="run representative batches through the prepared model, with its observers on, before it is given "
                   "as prepared=.")])


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
    if (found := unbounded_range(prepared)) is None:
        return None
    name, low, high = found
    own, seen = user_names(prepared)[name], f"from {low} to {high}"
    return Finding(
        code="range-not-finite", severity="error", module=observed_module(own),
        message=f"training made values {seen} at {observed(own)}, as where it diverges; no scale and zero point hold "
                "such a range.",
        evidence={"what": f"values {seen} came up"})
