"""What stays in float, and why nothing runs in int8 where that is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_qat.findings import Finding

if TYPE_CHECKING:
    from pytest_qat.measure.coverage import Coverage

__all__ = ["causes_of_coverage"]

_NAMED = 5


def causes_of_coverage(coverage: Coverage) -> tuple[Finding, ...]:
    """Return the reason why nothing computes in int8, if nothing does, and a note for each module left in float."""
    left = tuple(Finding(code="left-in-float", severity="note", module=left.module or None,
                         message=f"{left.kind} runs in float: {left.reason}.",
                         evidence={"weights": left.weights, "macs": left.macs}) for left in coverage.leftovers)
    if coverage.reference:
        return (_not_lowered(coverage), *left)
    if coverage.int8_modules == 0:
        return (_nothing_quantized(coverage), *left)
    return left


def _not_lowered(coverage: Coverage) -> Finding:
    kept = sum(left.reason == coverage.leftovers[0].reason for left in coverage.leftovers)
    return Finding(
        code="converted-not-lowered", severity="error",
        message=f"convert gave the reference form: {kept} products run as dequantize, float operation, quantize, which "
                "is slower than float and uses no int8 kernel.",
        remedy="lower it with torch.compile and freezing (pt2e-inductor), ExecuTorch (pt2e-executorch) or LiteRT "
               "(pt2e-litert), and measure that.")


def _nothing_quantized(coverage: Coverage) -> Finding:
    named = ", ".join(f"{left.module or 'the model'} ({left.kind}: {left.reason})"
                      for left in coverage.leftovers[:_NAMED])
    return Finding(
        code="nothing-quantized", severity="error",
        message=f"no module that a call reaches computes in int8; in float: {named or 'everything'}.",
        remedy="use a workflow that has int8 kernels for these layers, or do not ship this model as quantized.")
