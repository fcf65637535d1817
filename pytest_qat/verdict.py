"""The one place that turns numbers and tolerances into an outcome with its reasons. Pure: no torch, no clock, no files.

A reason is what was measured and what was required. What causes it is for `diagnosis` to find out.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_qat.core.text import percent

if TYPE_CHECKING:
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.coverage import Coverage
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.measure.parity import Parity
    from pytest_qat.tolerances import Tolerances

__all__ = ["SIGNIFICANT", "Outcome", "Verdict", "db_text", "judge_accuracy", "judge_coverage", "judge_parity",
           "judge_size", "judge_speedup", "score_text", "strictly"]

SIGNIFICANT = 0.05
"""A difference that chance alone gives more rarely than this is significant."""
NAMED_LEFTOVERS = 5
MOST_SECONDS = 600.0
"""Nobody is asked to raise the budget of a timing beyond this."""


class Outcome(str, enum.Enum):
    """What a check concludes."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An outcome with its reasons.

    Attributes:
        outcome: What follows from the numbers.
        reasons: What was measured and what was required, one sentence each.
    """

    outcome: Outcome
    reasons: tuple[str, ...]


def judge_coverage(coverage: Coverage, tolerances: Tolerances) -> Verdict:
    """Nothing in int8 fails; so does less than `min_coverage` of the multiply-accumulates (10 % if nobody says)."""
    if coverage.reference:
        return Verdict(outcome=Outcome.FAILED, reasons=("converted but not lowered: 0 int8 kernels run.",))
    if coverage.int8_modules == 0:
        return Verdict(outcome=Outcome.FAILED, reasons=(
            "nothing was quantized: 0 of the modules that a call reaches compute in int8.",))
    floor, measured = tolerances.coverage_floor, coverage.mac_share
    share = _share_text(coverage, floor)
    nothing_to_ask = tolerances.min_coverage is None and not coverage.macs  # tables alone, which multiply nothing
    if nothing_to_ask or not floor or (measured is not None and measured >= floor):
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{share}.",))
    return Verdict(outcome=Outcome.INCONCLUSIVE if measured is None else Outcome.FAILED,
                   reasons=(f"{share}; required is {percent(floor)} of the multiply-accumulates.",))


def _share_text(coverage: Coverage, floor: float) -> str:
    if coverage.mac_share is None:
        share = (f"{coverage.int8_modules} kernels run in int8, but the artifact does not say which share of the "
                 "multiply-accumulates they compute")
    else:
        by_weight = "" if coverage.weight_share is None else f" and {percent(coverage.weight_share)} of the weights"
        share = (f"{percent(coverage.mac_share, unlike=floor)} of the multiply-accumulates{by_weight} run in int8 "
                 f"({coverage.int8_modules} modules)")
    if not coverage.leftovers:
        return share
    more = len(coverage.leftovers) - NAMED_LEFTOVERS
    named = ", ".join(f"{left.title} ({left.reason})" for left in coverage.leftovers[:NAMED_LEFTOVERS])
    return f"{share}; in float: {named}{f' and {more} more' if more > 0 else ''}"


def judge_parity(parity: Parity) -> Verdict:
    """Conversion may add as much noise as quantization itself does, and twice as much where that is below 25 dB."""
    if not parity.finite:
        return Verdict(outcome=Outcome.FAILED, reasons=("the converted model returns NaN or infinity.",))
    if not parity.prepared_finite:
        return Verdict(outcome=Outcome.FAILED, reasons=(
            "the prepared model returns NaN or infinity, so there is nothing to compare the converted model with.",))
    where = f" in output {parity.output}" if parity.output else ""
    numbers = (f"the converted model agrees with the prepared one to {db_text(parity.sqnr_db)}{where}; quantization "
               f"itself leaves {db_text(parity.quantization_sqnr_db)}")
    if parity.holds:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    return Verdict(outcome=Outcome.FAILED, reasons=(f"{numbers}; required is {db_text(parity.limit_db)}.",))


def judge_accuracy(accuracy: Accuracy, tolerances: Tolerances, *, strict: bool = False,
                   higher_is_better: bool = True) -> Verdict:
    """A drop within tolerance passes; over it and significant fails; over it and not significant is inconclusive.

    Under `strict` the interval must prove that the drop is within tolerance. A float model below `min_accuracy`, or
    no better than naming the most frequent class, cannot pass; nor can an int8 model that names only one class, or
    one whose outputs went flat where no metric looks (inconclusive if they are faint in float and there are no
    evaluation data).
    """
    outcome, reason = _judge_drop(accuracy, tolerances.accuracy_drop, strict=strict)
    floor = _judge_floor(accuracy, tolerances.min_accuracy, higher_is_better=higher_is_better)
    if floor is not None and (floor[0] is Outcome.FAILED or outcome is Outcome.PASSED):
        outcome, reason = floor
    reasons: tuple[str, ...] = (reason,)
    if accuracy.only_class is None and accuracy.faint:
        if outcome is Outcome.PASSED:
            outcome, reasons = Outcome.INCONCLUSIVE, (_too_faint(accuracy), reason)
    elif accuracy.flat or accuracy.only_class is not None:
        outcome, reasons = Outcome.FAILED, (_nothing_left(accuracy), reason)
    return Verdict(outcome=outcome, reasons=reasons)


def _too_faint(accuracy: Accuracy) -> str:
    share = max(each.relative for each in accuracy.flat)
    named = "; ".join(flat.label for flat in accuracy.flat)
    return (f"agreement says little here: {named} varies by only {percent(share)} of its size in float, too little for "
            "the steps of int8 to follow. Give the trained model, and eval_data.")


def _nothing_left(accuracy: Accuracy) -> str:
    if accuracy.only_class is not None:
        return (f"the int8 model names class {accuracy.only_class} for all {accuracy.samples:,} samples, which the "
                "float model does not.")
    return "; ".join(f"{flat.label} hardly follows its input any more in int8" for flat in accuracy.flat) + "."


def _judge_drop(accuracy: Accuracy, tolerance: float, *, strict: bool) -> tuple[Outcome, str]:
    _, high = accuracy.drop_ci
    allowed = accuracy.allowed(tolerance)
    numbers = _drop_text(accuracy, tolerance)
    if accuracy.drop > allowed and accuracy.p_value < SIGNIFICANT:
        return Outcome.FAILED, f"{numbers}."
    if accuracy.at_chance:
        return Outcome.INCONCLUSIVE, _no_better_than_chance(accuracy)
    if accuracy.drop > allowed:
        return Outcome.INCONCLUSIVE, (
            f"{numbers}. The difference is not significant (p = {accuracy.p_value:.2f}); evaluate more samples.")
    if high <= allowed:
        return Outcome.PASSED, f"{numbers}."
    return _judge_unproven(accuracy, numbers, allowed, strict=strict)


def _judge_unproven(accuracy: Accuracy, numbers: str, allowed: float, *, strict: bool) -> tuple[Outcome, str]:
    """Judge a drop that is within what is allowed, but whose interval is not."""
    if _shows_nothing(accuracy):
        return Outcome.INCONCLUSIVE, (
            f"{numbers}. So few samples show nothing: the interval is as wide as the score itself. Evaluate more.")
    needed = accuracy.samples_needed(allowed)
    missing = f"these samples can only rule out drops above {score_text(accuracy, accuracy.provable_drop)}"
    missing = missing if needed is None else f"{missing}; about {needed:,} samples would be enough"
    if strict:
        return Outcome.INCONCLUSIVE, f"{numbers}. Strict mode requires proof: {missing}."
    return Outcome.PASSED, f"{numbers}; this is not proven: {missing}."


def _drop_text(accuracy: Accuracy, tolerance: float) -> str:
    """Return the drop, its interval and what is allowed: as shares, or in percent of the float score."""
    low, high = accuracy.drop_ci
    say = partial(score_text, accuracy)
    seen = f"on {accuracy.samples:,} samples, of which {accuracy.flipped:,} changed"
    if accuracy.is_fraction:
        what = "agreement with float" if accuracy.kind == "agreement" else "accuracy"
        moves, by = ("drops", accuracy.drop) if accuracy.drop >= 0 else ("rises", -accuracy.drop)
        relative = "" if accuracy.relative_drop is None else f", {percent(abs(accuracy.relative_drop), digits=2)} of it"
        scores = f"from {say(accuracy.fp32)} to {say(accuracy.int8)}{relative}"
        return (f"{what} {moves} by {say(by)} ({scores}), 95% interval of the drop [{say(low)}, {say(high)}] {seen}; "
                f"allowed is {say(accuracy.allowed(tolerance))}")
    moves = "worsens" if accuracy.drop > 0 else "improves"
    if not accuracy.fp32:
        return f"the score {moves} from 0 to {say(accuracy.int8)} {seen}; allowed is no change"
    share, size = partial(percent, digits=2), abs(accuracy.fp32)
    scores = f"{share(abs(accuracy.drop) / size)} of {say(accuracy.fp32)} (to {say(accuracy.int8)})"
    return (f"the score {moves} by {scores}, 95% interval of the drop [{share(low / size)}, {share(high / size)}] "
            f"{seen}; allowed is {share(tolerance)}")


def _shows_nothing(accuracy: Accuracy) -> bool:
    """Whether the interval is as wide as the score's own range: all shares, or float's score where it is no share."""
    low, high = accuracy.drop_ci
    return high - low >= (1.0 if accuracy.is_fraction else abs(accuracy.fp32))


def _no_better_than_chance(accuracy: Accuracy) -> str:
    assert accuracy.majority is not None, "unreachable because chance is what the majority gives"
    if accuracy.majority >= 1:
        return "eval_data has samples of only one class, so it cannot show a drop. Add samples of the other classes."
    say = partial(percent, digits=2)
    scores = f"the float model scores {say(accuracy.fp32)}"
    if accuracy.fp32 > accuracy.majority:
        return (f"{scores}, and {accuracy.samples:,} samples are too few to tell that from naming the most frequent "
                f"class every time ({say(accuracy.majority)}). Evaluate more samples, above all of the rarer classes.")
    return (f"{scores}, no better than naming the most frequent class every time ({say(accuracy.majority)}), so there "
            "is nothing for quantization to lose. Give the trained model.")


def _judge_floor(accuracy: Accuracy, floor: float | None, *, higher_is_better: bool) -> tuple[Outcome, str] | None:
    if floor is None:
        return None
    say = partial(score_text, accuracy)
    if accuracy.kind == "agreement":
        return Outcome.INCONCLUSIVE, (f"min_accuracy {say(floor)} cannot be checked without eval_data. Give eval_data, "
                                      "or remove min_accuracy.")
    if not higher_is_better:
        return Outcome.INCONCLUSIVE, (f"min_accuracy {say(floor)} is a floor, but for this metric lower is better. "
                                      "Remove min_accuracy.")
    if accuracy.fp32 < floor:
        return Outcome.FAILED, (f"the float model itself scores {say(accuracy.fp32)}, below min_accuracy "
                                f"{say(floor)}: train it before quantizing it.")
    if accuracy.int8 < floor:
        return Outcome.FAILED, (f"the int8 model scores {say(accuracy.int8)}, below min_accuracy {say(floor)} "
                                f"(float: {say(accuracy.fp32)}).")
    return None


def judge_size(fp32_bytes: int, int8_bytes: int, tolerances: Tolerances) -> Verdict:
    """The artifact must shrink by at least `min_size_reduction`.

    Args:
        fp32_bytes: Size of the float artifact.
        int8_bytes: Size of the int8 artifact.
        tolerances: What is required.
    """
    ratio = fp32_bytes / max(int8_bytes, 1)
    reason = (f"the artifact shrinks {ratio:.2f}x ({fp32_bytes:,} to {int8_bytes:,} bytes); "
              f"required is {tolerances.min_size_reduction:.2f}x.")
    return Verdict(outcome=Outcome.PASSED if ratio >= tolerances.min_size_reduction else Outcome.FAILED,
                   reasons=(reason,))


def judge_speedup(speedup: Speedup, tolerances: Tolerances, *, noise: Speedup | None = None) -> Verdict:
    """The whole interval must lie above `min_speedup`, or below it; if it straddles it, more time is needed.

    Args:
        speedup: Like for like.
        tolerances: What is required.
        noise: Float against itself. If its interval excludes 1, the machine is unsteady, and the interval of the
            speedup must clear the floor by as much.
    """
    floor, (low, high) = tolerances.min_speedup, speedup.ci
    offset = 1.0 if noise is None else max(noise.ci[0], 1 / noise.ci[1] if noise.ci[1] else math.inf, 1.0)
    against = "" if noise is None else (
        f" (float against itself: {noise.estimate:.2f}x [{noise.ci[0]:.2f}, {noise.ci[1]:.2f}])")
    numbers = (f"int8 is {speedup.estimate:.2f}x as fast as float, {speedup.confidence:.0%} interval "
               f"[{low:.2f}, {high:.2f}] from {speedup.pairs} pairs in {speedup.elapsed_s:.1f} s{against}; "
               f"required is {floor:.2f}x")
    if low >= floor * offset:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    if high < floor / offset:
        return Verdict(outcome=Outcome.FAILED, reasons=(f"{numbers}.",))
    return Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(f"{numbers}. {_what_is_missing(speedup, floor, offset)}",))


def _what_is_missing(speedup: Speedup, floor: float, offset: float) -> str:
    if speedup.settles(floor):
        return (f"But float against itself is off by {offset:.2f}x: this machine is too unsteady to show so small a "
                "difference. Run it again when nothing else is running.")
    needed_s = speedup.seconds_to_settle(floor)
    if math.isinf(speedup.ci[1]):
        return (f"Calls are so slow that only {speedup.pairs} pairs fit into the budget, too few for an interval: "
                f"raise --qat-max-time to about {math.ceil(needed_s * 2):,} s, or use smaller example_inputs.")
    if needed_s > MOST_SECONDS:
        return ("The interval straddles the requirement, and the true ratio is too close to it for any reasonable "
                "time to tell: lower --qat-min-speedup a little.")
    return f"The interval straddles the requirement: raise --qat-max-time to about {math.ceil(needed_s * 2):,} s."


def strictly(verdict: Verdict, *, strict: bool) -> Verdict:
    """Under `strict`, what is inconclusive fails."""
    if not strict or verdict.outcome is not Outcome.INCONCLUSIVE:
        return verdict
    return Verdict(outcome=Outcome.FAILED,
                   reasons=(*verdict.reasons, "Strict mode counts inconclusive as failed."))


def score_text(accuracy: Accuracy, value: float) -> str:
    """Return a score in percent if scores are shares, and as a plain number otherwise."""
    return percent(value, digits=2) if accuracy.is_fraction else f"{value:.4g}"


def db_text(value: float) -> str:
    """Return a signal-to-noise ratio in dB; an infinite one means that both are equal."""
    return "∞ dB" if value == math.inf else f"{value:.1f} dB"
