"""What stays in float, and why nothing runs in int8 where that is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_qat.findings import Finding

if TYPE_CHECKING:
    from pytest_qat.measure.coverage import Coverage

__all__ = ["causes_of_coverage"]

_NAMED = 5


def causes_of_coverage(coverage: Coverage) -> tuple[Finding, ...]:
    """Return why nothing computes in int8, if nothing does, a note for each module left in float, and dead weights."""
    left = tuple(Finding(
        code="left-in-float", severity="note", module=left.module or None,
        message=f"{left.kind}{f' at {left.place}' if left.place else ''} runs in float: {left.reason}.",
        evidence={"weights": left.weights, "macs": left.macs, "place": left.place or None})
        for left in coverage.leftovers)
    first = (_not_lowered(coverage),) if coverage.reference else (
        _nothing_quantized(coverage),) if coverage.int8_modules == 0 else ()
    return (*first, *left, *_dead_weights(coverage))


def _not_lowered(coverage: Coverage) -> Finding:
    kept = sum(left.reason == coverage.leftovers[0].reason for left in coverage.leftovers)
    return Finding(
        code="converted-not-lowered", severity="error",
        message=f"convert gave the reference form: {kept} products run as dequantize, float operation, quantize, which "
                "is slower than float and uses no int8 kernel.")


def _nothing_quantized(coverage: Coverage) -> Finding:
    named = ", ".join(f"{left.title} ({left.kind}: {left.reason})"
                      for left in coverage.leftovers[:_NAMED])
    return Finding(
        code="nothing-quantized", severity="error",
        message=f"no module that a call reaches computes in int8; in float: {named or 'everything'}.")


def _dead_weights(coverage: Coverage) -> tuple[Finding, ...]:
    """Weights that nothing reads are in no share, but may ship."""
    if not coverage.idle:
        return ()
    total = sum(idle.weights for idle in coverage.idle)
    named = ", ".join(idle.module or "the model itself" for idle in coverage.idle[:_NAMED])
    more = len(coverage.idle) - _NAMED
    return (Finding(
        code="dead-weights", severity="note", evidence={
            "weights": total, "modules": {idle.module: idle.weights for idle in coverage.idle}},
        message=f"the outputs do not depend on {total:,} weights, so coverage leaves them out: {named}"
                f"{f' and {more} more' if more > 0 else ''}.",
        remedy="remove these modules if no other input uses them."),)
