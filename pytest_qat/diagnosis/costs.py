"""Why an artifact is large, and what a speedup depends on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_qat.core.text import percent
from pytest_qat.diagnosis.op_costs import cause_in_ops
from pytest_qat.findings import Finding

if TYPE_CHECKING:
    from pytest_qat.measure.coverage import Coverage
    from pytest_qat.measure.size import Kind, SizeCensus
    from pytest_qat.measure.speed import Speed
    from pytest_qat.runtimes.base import OpTime, StoredTensor

    OpTimes = tuple[Sequence[OpTime], Sequence[OpTime]]

__all__ = ["MOSTLY_FLOAT", "causes_of_size", "causes_of_speed"]

FLOAT_WEIGHT_SHARE = 0.05
"""A float weight tensor that takes at least this share of the int8 artifact is reported."""
OVERHEAD_BOUND = 0.5
"""A call is bound by overhead if more than this share of it does not grow with the batch."""
FEW_MACS_PER_S = 5e8
"""A float model that multiplies more slowly than this is busy with something else: a core's products are 10x faster."""
MOSTLY_FLOAT = 0.5
"""Below this share in int8, float products take most of the time."""
_NAMED = 5


def causes_of_size(int8: SizeCensus, *, allowed_bytes: float, dead: Collection[str] = ()) -> tuple[Finding, ...]:
    """Say what the bytes of an int8 artifact are, if it is too large, and name the float weights that are left in it.

    Args:
        int8: What is in the artifact.
        allowed_bytes: The most that it may have.
        dead: Names of tensors that nothing reads, as `SizeCensus.kinds` takes them.
    """
    left = int8.float_weights(least_share=FLOAT_WEIGHT_SHARE)
    if int8.total_bytes > allowed_bytes:
        return (_largest_part(int8, allowed_bytes, dead),)
    if not left:
        return ()
    total = sum(tensor.size_bytes for tensor in left)
    return (Finding(
        code="float-weights-left", severity="note", evidence={"bytes": total},
        message=f"{percent(total / _whole(int8))} of the int8 artifact is float weights: {_named(left)}."),)


_SIZE: Mapping[Kind, tuple[str, str]] = MappingProxyType({
    "int8": ("size-int8-weights", "int8 weights"),
    "float_weights": ("float-weights-left", "float weights"),
    "dead": ("size-dead-weights", "weights that nothing reads"),
    "duplicates": ("size-duplicates", "tensors that are stored again"),
    "qparams": ("size-qparams", "scales and zero points"),
    "other": ("size-other-tensors", "biases and other tensors"),
    "unknown": ("size-unnamed-data", "data that the file does not describe"),
    "structure": ("size-structure", "structure of the file, which int8 does not shrink"),
})
"""Code and what to call it, by kind."""


def _largest_part(int8: SizeCensus, allowed_bytes: float, dead: Collection[str]) -> Finding:
    """What is to blame: the largest part that is not int8 weights, if the file would be small enough without it."""
    sizes, tensors = int8.bytes_by_kind(dead=dead), int8.kinds(dead=dead)
    others: list[Kind] = [kind for kind in sizes if kind != "int8"]
    enough = [kind for kind in others if int8.total_bytes - sizes[kind] <= allowed_bytes]
    at_its_limit = not others or sizes.get("int8", 0) > allowed_bytes  # int8 weights alone are too much
    kind: Kind = enough[0] if enough else "int8" if at_its_limit else others[0]
    code, title = _SIZE[kind]
    remedy = ""
    if kind == "dead":
        remedy = "remove the modules that nothing calls."
    elif kind == "int8":
        remedy = "lower min_size_reduction: where all weights are int8, a file shrinks by less than 4x."
    whole = sum(sizes.values())
    shares = ", ".join(f"{text} {_SIZE[each][1]}" for each, text in zip(sizes, _shares(sizes.values()), strict=True))
    named = f" ({_named(tensors[kind])})" if kind in tensors else ""
    return Finding(
        code=code, severity="error", remedy=remedy,
        message=f"most to blame are {sizes[kind]:,} bytes of {title}{named}; the int8 artifact is {shares}.",
        evidence={"bytes": sizes[kind], "by_kind": dict(sizes), "share": sizes[kind] / max(whole, 1)})


def _shares(sizes: Iterable[int]) -> list[str]:
    """Return percentages with one digit that add up to 100: what rounding leaves goes to the largest remainders."""
    counts = list(sizes)
    whole = max(sum(counts), 1)
    parts = [count * 1000 // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda index: -(counts[index] * 1000 % whole))
    for index in by_remainder[:1000 - sum(parts)]:
        parts[index] += 1
    return [f"{part / 10:.1f}%" if part else "<0.1%" for part in parts]


def _named(tensors: Sequence[StoredTensor]) -> str:
    named = ", ".join(f"{tensor.name} ({tensor.dtype}, {tensor.size_bytes:,} bytes)" for tensor in tensors[:_NAMED])
    more = len(tensors) - _NAMED
    return f"{named}{f' and {more} more' if more > 0 else ''}"


def _whole(census: SizeCensus) -> int:
    """A file may pack its tensors; they are never more than all of it."""
    return max(census.total_bytes, sum(census.by_dtype.values()), 1)


def causes_of_speed(speed: Speed, floor: float, coverage: Coverage | None = None,
                    op_times: Callable[[], OpTimes] = lambda: ((), ())) -> tuple[Finding, ...]:
    """Say why int8 is too slow as far as these figures separate causes, and whether another batch size would do.

    Args:
        speed: What timing found.
        floor: The speedup that is required.
        coverage: What runs in int8; None: unknown.
        op_times: Times the ops of a float and an int8 call, if the rest does not tell.
    """
    found = (*_bound_by_overhead(speed), *_depends_on_batch(speed, floor))
    too_slow = speed.like_for_like.settles(floor) and speed.like_for_like.ci[0] < floor
    return (*found, *_why_slow(speed, floor, coverage, op_times, known=found)) if (
        too_slow and coverage is not None) else found


def _why_slow(speed: Speed, floor: float, coverage: Coverage, op_times: Callable[[], OpTimes], *,
              known: Sequence[Finding]) -> tuple[Finding, ...]:
    rate, share = coverage.macs / speed.like_for_like.baseline.p50, coverage.mac_share
    evidence = {"macs": coverage.macs, "fp32_macs_per_s": rate, "mac_share": share}
    if share is not None and share < MOSTLY_FLOAT:
        return (Finding(
            code="mostly-float", severity="warning", evidence=evidence,
            message=f"{percent(1 - share)} of the multiply-accumulates stay in float, so most of the work does not get "
                    "faster, and converting between float and int8 comes on top."),)
    timed = speed.like_for_like
    cause = cause_in_ops(*op_times(), calls_s=(timed.baseline.p50, timed.candidate.p50), floor=floor)
    if cause is not None:
        return (cause,)
    if rate < FEW_MACS_PER_S:
        return (Finding(
            code="few-multiplications", severity="warning", evidence=evidence,
            message=f"a float call does {coverage.macs:,} multiply-accumulates at {rate / 1e9:.2g} billion a second, "
                    "where a core does tens of billions: most of its time goes into other work (calls, copies, "
                    "elementwise operations), which int8 products do not shorten."),)
    if any(finding.code == "overhead-bound" for finding in known):
        return ()
    return (Finding(
        code="no-speed-cause", severity="warning", evidence=evidence,
        message="not found: there is neither too little work nor much of it in float, and this runtime does not tell "
                "what its ops take. Slow int8 kernels for these shapes, or copies between layouts, are left."),)


def _bound_by_overhead(speed: Speed) -> tuple[Finding, ...]:
    bound = {str(entry.batch): entry.overhead for entry in speed.batches
             if entry.overhead is not None and entry.overhead > OVERHEAD_BOUND}
    if not bound:
        return ()
    named = ", ".join(f"{percent(share, digits=0)} at batch {batch}" for batch, share in bound.items())
    return (Finding(
        code="overhead-bound", severity="note", evidence=bound,
        message=f"most of an int8 call does not grow with the batch ({named}): such calls are bound by overhead, "
                "which int8 does not shorten."),)


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
        remedy="" if fast_enough else "if it ships at such a batch size, put that into example_inputs."),)
