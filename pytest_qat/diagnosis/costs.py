"""Why an artifact is large, and what a speedup depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_qat.findings import Finding

if TYPE_CHECKING:
    from pytest_qat.measure.size import SizeCensus
    from pytest_qat.measure.speed import Speed

__all__ = ["causes_of_size", "causes_of_speed"]

FLOAT_WEIGHT_SHARE = 0.05
"""A float weight tensor that takes at least this share of the int8 artifact is reported."""
OVERHEAD_BOUND = 0.5
"""A call is bound by overhead if more than this share of it does not grow with the batch."""
_NAMED = 5


def causes_of_size(int8: SizeCensus, *, enough: bool) -> tuple[Finding, ...]:
    """Name large float weights that are left in the int8 artifact.

    Args:
        int8: What is in the artifact.
        enough: Whether it is small enough nevertheless; the weights are the error only where it is not.
    """
    left = int8.float_weights(least_share=FLOAT_WEIGHT_SHARE)
    if not left:
        return ()
    total = sum(tensor.size_bytes for tensor in left)
    named = ", ".join(f"{tensor.name} ({tensor.dtype}, {tensor.size_bytes:,} bytes)" for tensor in left[:_NAMED])
    more = len(left) - _NAMED
    return (Finding(
        code="float-weights-left", severity="note" if enough else "error",
        message=f"{total / max(int8.total_bytes, 1):.0%} of the int8 artifact is float weights: {named}"
                f"{f' and {more} more' if more > 0 else ''}.",
        remedy="quantize these layers (the coverage check says why they are in float), or save only the converted "
               "model.",
        evidence={"bytes": total}),)


def causes_of_speed(speed: Speed, floor: float) -> tuple[Finding, ...]:
    """Say whether calls are bound by overhead, and whether another batch size would change the verdict.

    Args:
        speed: What timing found.
        floor: The speedup that is required.
    """
    return (*_bound_by_overhead(speed), *_depends_on_batch(speed, floor))


def _bound_by_overhead(speed: Speed) -> tuple[Finding, ...]:
    bound = {str(entry.batch): entry.overhead for entry in speed.batches
             if entry.overhead is not None and entry.overhead > OVERHEAD_BOUND}
    if not bound:
        return ()
    named = ", ".join(f"{share:.0%} at batch {batch}" for batch, share in bound.items())
    return (Finding(
        code="overhead-bound", severity="note", evidence=bound,
        message=f"most of an int8 call does not grow with the batch ({named}): such calls are bound by overhead, "
                "which int8 does not shorten.",
        remedy="judge the speedup at the batch size that ships."),)


def _depends_on_batch(speed: Speed, floor: float) -> tuple[Finding, ...]:
    main = speed.like_for_like
    if not main.settles(floor):
        return ()
    fast_enough = main.ci[0] >= floor
    others = [f"{entry.speedup.estimate:.2f}x at batch {entry.batch}" for entry in speed.batches
              if entry.speedup is not None and entry.batch != speed.samples and entry.speedup.settles(floor)
              and (entry.speedup.ci[0] >= floor) is not fast_enough]
    if not others:
        return ()
    return (Finding(
        code="verdict-depends-on-batch", severity="warning",
        message=f"at batch {speed.samples} int8 is {main.estimate:.2f}x as fast as float, but {', '.join(others)}.",
        remedy="put the batch size that ships into example_inputs."),)
