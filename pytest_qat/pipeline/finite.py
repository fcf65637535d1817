"""Refuse to convert a model that training has broken: torch.ao then speaks of zero points, not of NaN."""

from __future__ import annotations

import torch
from torch import nn

from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import user_names

__all__ = ["refuse_broken"]


def refuse_broken(prepared: nn.Module) -> None:
    """Check that all weights of a prepared model are finite.

    Raises:
        CheckFailed: some are not; the finding names the first module and how many there are.
    """
    broken = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in prepared.named_parameters()
              if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())}
    if not broken:
        return
    first = next(iter(broken))
    place, _, leaf = first.rpartition(".")
    raise CheckFailed(
        [f"{sum(broken.values())} weights in {len(broken)} tensors are NaN or infinite after training."],
        findings=[Finding(
            code="weights-not-finite", severity="error", module=user_names(prepared).get(place) or None,
            message=f"{broken[first]} values of its {leaf} are NaN or infinite, as after training that diverged.",
            evidence={"tensors": list(broken)})])
