"""Turn numbers and tolerances into an outcome and its reasons. This module is pure: no torch, no clock, no files.

A reason says what was measured and what was required. `diagnosis` finds the causes.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_qat.core.text import fixed, percent
from pytest_qat.measure.score_names import NAMED_IN_REPORTS

if TYPE_CHECKING:
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.bootstrap import Resampling
    from pytest_qat.measure.coverage import Coverage
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.measure.parity import Parity
    from pytest_qat.tolerances import Tolerances

__all__ = ["SIGNIFICANT", "Outcome", "Verdict", "db_text", "judge_accuracy", "judge_coverage", "judge_parity",
           "judge_size", "judge_speedup", "score_text", "strictly"]

SIGNIFICANT = 0.05
"""A difference is significant if chance alone would give it with a lower probability than this."""
NAMED_LEFTOVERS = 5
_NAMED_RAGGED = 3
MOST_SECONDS = 600.0
"""No message suggests a larger time budget for a timing than this."""


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
        outcome: The outcome that follows from the numbers.
        reasons: What was measured and what was required, one sentence each.
    """

    outcome: Outcome
    reasons: tuple[str, ...]


def judge_coverage(coverage: Coverage, tolerances: Tolerances) -> Verdict:
    """A model with nothing in int8 fails, and so does one below `min_coverage` of the multiply-accumulates (10 %)."""
    if coverage.reference:
        return Verdict(outcome=Outcome.FAILED, reasons=("converted but not lowered: 0 int8 kernels run.",))
    if coverage.int8_modules == 0:
        return Verdict(outcome=Outcome.FAILED, reasons=(
            "nothing was quantized: none of the modules that run computes in int8.",))
    floor, measured = tolerances.coverage_floor, coverage.mac_share
    share = _share_text(coverage, floor)
    only_tables = tolerances.min_coverage is None and not coverage.macs  # a lookup multiplies nothing
    if only_tables or not floor or (measured is not None and measured >= floor):
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{share}.",))
    return Verdict(outcome=Outcome.INCONCLUSIVE if measured is None else Outcome.FAILED,
                   reasons=(f"{share}; at least {percent(floor)} of the multiply-accumulates is required.",))


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
    """The converted model passes at 25 dB, or at 6 dB less than quantization itself leaves if that is lower.

    Where quantization itself leaves less than 6 dB, outputs are mostly noise, and a model that computes the same with
    other rounding ties may give any other noise: nothing is proven then.
    """
    if not parity.finite:
        return Verdict(outcome=Outcome.FAILED, reasons=("the converted model returns NaN or infinity.",))
    if not parity.prepared_finite:
        return Verdict(outcome=Outcome.FAILED, reasons=(
            "the prepared model returns NaN or infinity, so the converted model cannot be compared with it.",))
    where = f" in output {parity.output}" if parity.output else ""
    closeness = partial(_closeness, required=parity.limit_db)
    numbers = (f"the converted model agrees with the prepared one {closeness(parity.sqnr_db)}{where}, and the "
               f"prepared one with float {closeness(parity.quantization_sqnr_db)}")
    if parity.holds:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    if parity.limit_db < 0:
        return Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(
            (f"{numbers}: fake-quantize itself leaves so little of float's outputs that what the kernels add cannot be "
             "told apart."),))
    return Verdict(outcome=Outcome.FAILED, reasons=(f"{numbers}; at least {db_text(parity.limit_db)} is required.",))


def _closeness(decibels: float, required: float) -> str:
    return "exactly" if decibels == math.inf else f"to {fixed(decibels, digits=1, unlike=required)} dB"


def judge_accuracy(accuracy: Accuracy, tolerances: Tolerances, *, strict: bool = False,
                   higher_is_better: bool = True) -> Verdict:
    """A drop within tolerance passes; a larger drop fails if it is significant, and is inconclusive if it is not.

    With `strict`, the interval must prove that the drop is within tolerance. A float model cannot pass if it is below
    `min_accuracy` or no better than always predicting the most frequent class. An int8 model cannot pass if it predicts
    only one class, or if outputs that no metric looks at went flat; without evaluation data, the latter is inconclusive
    if the outputs hardly vary in float either, and so is every loss of a model with random weights. What could be
    compared only in part, or in two ways with different results, is inconclusive.
    """
    outcome, reason = _judge_drop(accuracy, tolerances.accuracy_drop, strict=strict)
    floor = _judge_floor(accuracy, tolerances.min_accuracy, higher_is_better=higher_is_better)
    if floor is not None and (floor[0] is Outcome.FAILED or outcome is Outcome.PASSED):
        outcome, reason = floor
    reasons: tuple[str, ...] = (reason,)
    outcome, reasons = _judge_comparison(accuracy, tolerances.accuracy_drop, outcome, reasons)
    if accuracy.only_class is None and accuracy.faint:
        if outcome is Outcome.PASSED:
            outcome, reasons = Outcome.INCONCLUSIVE, (_too_faint(accuracy), *reasons)
    elif accuracy.flat or accuracy.only_class is not None:
        outcome, reasons = Outcome.FAILED, (_nothing_left(accuracy), *reasons)
    if accuracy.random_weights and outcome is Outcome.FAILED:
        outcome, reasons = Outcome.INCONCLUSIVE, (_random_weights(accuracy.random_weights), *reasons)
    return Verdict(outcome=outcome, reasons=reasons)


def _judge_comparison(accuracy: Accuracy, tolerance: float, outcome: Outcome,
                      reasons: tuple[str, ...]) -> tuple[Outcome, tuple[str, ...]]:
    """Take back a verdict that rests on half of the outputs, or that another way of comparing them contradicts."""
    if accuracy.same_class is not None:
        kept = 1 - accuracy.same_class <= accuracy.allowed(tolerance)
        if kept is not (outcome is Outcome.PASSED) and outcome is not Outcome.INCONCLUSIVE:
            share = percent(accuracy.same_class, digits=2)
            contradicted = (
                f"the maps that the model returns are classes or values, which only you know: float and int8 name the "
                f"same class at {share} of the positions, and agree as values on {percent(accuracy.int8, digits=2)} of "
                "the samples. Give eval_data, or train_data, whose targets tell.")
            outcome, reasons = Outcome.INCONCLUSIVE, (contradicted, *reasons)
    if accuracy.ragged and outcome is Outcome.PASSED:
        half = (f"float and int8 outputs differ in shape where no metric looks: "
                f"{'; '.join(accuracy.ragged[:_NAMED_RAGGED])}. Give eval_data and metric.")
        outcome, reasons = Outcome.INCONCLUSIVE, (half, *reasons)
    return outcome, reasons


def _too_faint(accuracy: Accuracy) -> str:
    share = max(each.relative for each in accuracy.flat)
    named = "; ".join(flat.label for flat in accuracy.flat)
    return (f"agreement says little here: {named} varies by only {percent(share)} of its size in float, which is too "
            "little for int8 to resolve. Use the trained model, and give eval_data.")


def _random_weights(why: str) -> str:
    return (f"the model has random weights ({why}), and how far int8 changes what they give says little about the "
            "trained model. Use the trained model, and give eval_data.")


def _nothing_left(accuracy: Accuracy) -> str:
    if accuracy.only_class is not None:
        return (f"the int8 model predicts class {accuracy.only_class} for all {accuracy.samples:,} samples, and the "
                "float model does not.")
    return "; ".join(f"{flat.label} hardly depends on its input in int8" for flat in accuracy.flat) + "."


def _judge_drop(accuracy: Accuracy, tolerance: float, *, strict: bool) -> tuple[Outcome, str]:
    _, high = accuracy.drop_ci
    allowed = accuracy.allowed(tolerance)
    numbers = _drop_text(accuracy, tolerance)
    if accuracy.resampling is not None and not accuracy.resampling.settles:
        return Outcome.INCONCLUSIVE, f"{numbers}. {_what_resampling_lacks(accuracy.resampling)}"
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


def _what_resampling_lacks(resampling: Resampling) -> str:
    if resampling.too_few_samples:
        return (f"A score of the whole set of only {resampling.samples} samples shows nothing: too few to tell a drop "
                "from chance. Evaluate more samples.")
    if resampling.too_often_undefined:
        tried = resampling.count + resampling.undefined
        return (f"The score hangs on very few samples: it is not defined on {resampling.undefined:,} of {tried:,} "
                f"drawn sets ({resampling.undefined_because.rstrip('.')}). Evaluate more samples of the rarer classes.")
    return (f"set_metric is too slow to show which drops are chance: {resampling.elapsed_s:.1f} s went into "
            f"{resampling.count + resampling.undefined} drawn sets, and an interval takes about "
            f"{math.ceil(resampling.seconds_needed):,} s. Raise --qat-max-time to "
            f"{math.ceil(1.5 * resampling.seconds_needed):,}, or make set_metric faster.")


def _judge_unproven(accuracy: Accuracy, numbers: str, allowed: float, *, strict: bool) -> tuple[Outcome, str]:
    """Judge a drop that is within the tolerance, but whose interval exceeds it."""
    if _shows_nothing(accuracy):
        return Outcome.INCONCLUSIVE, (
            f"{numbers}. These samples are too few to show anything, because the interval is as wide as the range of "
            "the score. Evaluate more samples.")
    needed = accuracy.samples_needed(allowed)
    provable = accuracy.provable_drop if accuracy.is_fraction or not accuracy.fp32 else (
        accuracy.provable_drop / abs(accuracy.fp32))
    missing = f"these samples can only rule out drops above {percent(provable, digits=2)}"
    missing = missing if needed is None else f"{missing}; about {needed:,} samples would be enough"
    if strict:
        return Outcome.INCONCLUSIVE, f"{numbers}. Strict mode requires proof: {missing}."
    return Outcome.PASSED, f"{numbers}; this is not proven: {missing}."


def _drop_text(accuracy: Accuracy, tolerance: float) -> str:
    """Return the drop, its interval and the tolerance, as percentages or relative to the float score."""
    low, high = accuracy.drop_ci
    say = partial(score_text, accuracy)
    seen = f"on {accuracy.samples:,} samples" + (
        f", of which {accuracy.flipped:,} changed" if accuracy.resampling is None else "")
    what = _score_name(accuracy)
    if accuracy.is_fraction:
        moves, by = ("drops", accuracy.drop) if accuracy.drop >= 0 else ("rises", -accuracy.drop)
        relative = "" if accuracy.relative_drop is None else (
            f", or {percent(abs(accuracy.relative_drop), digits=2)} relative")
        scores = f"from {say(accuracy.fp32)} to {say(accuracy.int8)}{relative}"
        return (f"{what} {moves} by {say(by)} ({scores}){_interval_text(low, high, say)} {seen}; "
                f"up to {say(accuracy.allowed(tolerance))} is allowed")
    moves = "worsens" if accuracy.drop > 0 else "improves"
    if not accuracy.fp32:
        return f"{what} {moves} from 0 to {say(accuracy.int8)} {seen}; no change is allowed"
    share, size = partial(percent, digits=2), abs(accuracy.fp32)
    scores = f"{share(abs(accuracy.drop) / size)} of {say(accuracy.fp32)} (to {say(accuracy.int8)})"
    return (f"{what} {moves} by {scores}{_interval_text(low / size, high / size, share)} {seen}; "
            f"up to {share(tolerance)} is allowed")


def _interval_text(low: float, high: float, say: Callable[[float], str]) -> str:
    """Return the interval, or nothing where there are too few samples for one."""
    return "" if math.isinf(low) and math.isinf(high) else f", 95% interval of the drop [{say(low)}, {say(high)}]"


def _score_name(accuracy: Accuracy) -> str:
    """Return what the score is called: a score of the set, and a default other than top-1, have names of their own."""
    if accuracy.kind == "agreement":
        return "agreement with float"
    if accuracy.kind == "set_metric" or accuracy.metric in NAMED_IN_REPORTS:
        return accuracy.metric or "the score"
    return "accuracy" if accuracy.is_fraction else "the score"


def _shows_nothing(accuracy: Accuracy) -> bool:
    """Whether the interval is as wide as the range of the score, which is 0 to 1, or 0 to float's score otherwise."""
    low, high = accuracy.drop_ci
    return high - low >= (1.0 if accuracy.is_fraction else abs(accuracy.fp32))


def _no_better_than_chance(accuracy: Accuracy) -> str:
    if accuracy.shuffled is not None:
        say = partial(score_text, accuracy)
        return (f"the float model scores {say(accuracy.fp32)}, no better than with shuffled targets "
                f"({say(accuracy.shuffled)}), so there is nothing for quantization to lose. Give the trained model, or "
                "evaluate more samples.")
    assert accuracy.majority is not None, "unreachable because at_chance is only set with a majority"
    if accuracy.majority >= 1:
        return "eval_data has samples of only one class, so it cannot show a drop. Add samples of the other classes."
    say = partial(percent, digits=2)
    scores = f"the float model scores {say(accuracy.fp32)}"
    if accuracy.fp32 > accuracy.majority:
        return (f"{scores}, and {accuracy.samples:,} samples are too few to distinguish that from always "
                f"predicting the most frequent class ({say(accuracy.majority)}). Evaluate more samples, especially of "
                "rare classes.")
    return (f"{scores}, no better than always predicting the most frequent class ({say(accuracy.majority)}), so "
            "quantization has nothing to lose. Use the trained model.")


def _judge_floor(accuracy: Accuracy, floor: float | None, *, higher_is_better: bool) -> tuple[Outcome, str] | None:
    if floor is None:
        return None
    say = partial(score_text, accuracy)
    if accuracy.kind == "agreement":
        return Outcome.INCONCLUSIVE, (f"min_accuracy {say(floor)} cannot be checked without eval_data. Give eval_data, "
                                      "or remove min_accuracy.")
    if not higher_is_better:
        return Outcome.INCONCLUSIVE, (f"min_accuracy {say(floor)} is a lower bound, but for this metric lower is "
                                      "better. Remove min_accuracy.")
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
    shown = fixed(ratio, digits=2, unlike=tolerances.min_size_reduction)
    reason = (f"the artifact shrinks {shown}x ({fp32_bytes:,} to {int8_bytes:,} bytes); "
              f"at least {tolerances.min_size_reduction:.2f}x is required.")
    return Verdict(outcome=Outcome.PASSED if ratio >= tolerances.min_size_reduction else Outcome.FAILED,
                   reasons=(reason,))


def _noise_interval(noise: Speedup) -> str:
    if math.isinf(noise.ci[1]):
        return f", {noise.pairs} pairs, too few for an interval"
    return f" [{noise.ci[0]:.2f}, {noise.ci[1]:.2f}]"


def judge_speedup(speedup: Speedup, tolerances: Tolerances, *, noise: Speedup | None = None) -> Verdict:
    """The check passes if the whole interval is above `min_speedup`, and fails if it is below; else it is inconclusive.

    Args:
        speedup: Int8 against float, like for like.
        tolerances: What is required.
        noise: Float against itself. If its interval excludes 1, the machine is unsteady, and the interval of the
            speedup must be beyond the floor by the same factor.
    """
    floor, (low, high) = tolerances.min_speedup, speedup.ci
    offset = 1.0 if noise is None else max(noise.ci[0], 1 / noise.ci[1] if noise.ci[1] else math.inf, 1.0)
    against = "" if noise is None else f" (float against itself: {noise.estimate:.2f}x{_noise_interval(noise)})"
    estimate, from_, to = (fixed(number, digits=2, unlike=floor) for number in (speedup.estimate, low, high))
    numbers = (f"int8 is {estimate}x as fast as float, {speedup.confidence:.0%} interval [{from_}, {to}] from "
               f"{speedup.pairs} pairs in {speedup.elapsed_s:.1f} s{against}; "
               f"at least {floor:.2f}x is required")
    if low >= floor * offset:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    if high < floor / offset:
        return Verdict(outcome=Outcome.FAILED, reasons=(f"{numbers}.",))
    return Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(f"{numbers}. {_what_is_missing(speedup, floor, offset)}",))


def _what_is_missing(speedup: Speedup, floor: float, offset: float) -> str:
    if speedup.settles(floor):
        return (f"But float against itself is off by {offset:.2f}x: this machine is too unsteady to show such a small "
                "difference. Run it again when nothing else is running.")
    needed_s = speedup.seconds_to_settle(floor)
    if math.isinf(speedup.ci[1]):
        return (f"Calls are so slow that only {speedup.pairs} pairs fit into the budget, too few for an interval: "
                f"raise --qat-max-time to about {math.ceil(needed_s * 2):,} s, or use smaller example_inputs.")
    if needed_s > MOST_SECONDS:
        return ("The interval includes the requirement, and the speedup is too close to it to be distinguished in a "
                "reasonable time: lower --qat-min-speedup a little.")
    return f"The interval includes the requirement: raise --qat-max-time to about {math.ceil(needed_s * 2):,} s."


def strictly(verdict: Verdict, *, strict: bool) -> Verdict:
    """With `strict`, turn an inconclusive verdict into a failed one."""
    if not strict or verdict.outcome is not Outcome.INCONCLUSIVE:
        return verdict
    return Verdict(outcome=Outcome.FAILED,
                   reasons=(*verdict.reasons, "Strict mode counts inconclusive as failed."))


def score_text(accuracy: Accuracy, value: float) -> str:
    """Return a score as a percentage if scores are fractions, and as a plain number otherwise."""
    return percent(value, digits=2) if accuracy.is_fraction else f"{value:.4g}"


def db_text(value: float) -> str:
    """Return a signal-to-noise ratio as text; it is infinite if both signals are equal."""
    return "∞ dB" if value == math.inf else f"{value:.1f} dB"
