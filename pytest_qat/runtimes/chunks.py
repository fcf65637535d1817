"""Run batches of any size through an artifact that accepts only one size."""

from __future__ import annotations

from typing import Any

from pytest_qat.core.batches import in_parts, sample_count
from pytest_qat.runtimes.base import Deployed

__all__ = ["run_batch"]


def run_batch(deployed: Deployed, inputs: Any) -> Any:
    """Return the outputs for a batch: in one call if the artifact accepts its size, else in parts of that size.

    Raises:
        DataError: an output depends on the samples, but has no row for each of them.
    """
    if deployed.batch is None or sample_count(inputs) in (deployed.batch, 0):
        return deployed.run(deployed.adapt(inputs))
    return in_parts(lambda part: deployed.run(deployed.adapt(part)), inputs, size=deployed.batch, whole=deployed.shapes)
