"""The one place that turns numbers and tolerances into an outcome. Pure: no torch, no clock, no files."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_qat.diagnosis.accuracy_causes import SIGNIFICANT, causes_of_scores, flat_text, score_text
from pytest_qat.findings import Finding, json_number

if TYPE_CHECKING:
    from pytest_qat.diagnosis.divergence import Divergence
    from pytest_qat.finetune import FineTuning
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.coverage import Coverage
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.measure.parity import Parity
    from pytest_qat.measure.speed import BatchSpeed
    from pytest_qat.runtimes.base import StoredTensor
    from pytest_qat.tolerances import Tolerances

__all__ = ["Outcome", "Verdict", "judge_accuracy", "judge_coverage", "judge_parity", "judge_size", "judge_speedup",
           "strictly"]

NAMED_LEFTOVERS = 5
OVERHEAD_BOUND = 0.5
"""Share of a call that does not grow with the batch, over which it is called bound by overhead."""
MOST_SECONDS = 600.0


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
        findings: Observations that go with it.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


def judge_coverage(coverage: Coverage, tolerances: Tolerances) -> Verdict:
    """Nothing in int8 fails; so does less than `min_coverage` of the multiply-accumulates."""
    findings = tuple(
        Finding(code="left-in-float", severity="note", module=left.module or None,
                message=f"{left.kind} runs in float: {left.reason}.",
                evidence={"weights": left.weights, "macs": left.macs})
        for left in coverage.leftovers)
    if coverage.reference:
        kept = sum(left.reason == coverage.leftovers[0].reason for left in coverage.leftovers)
        unlowered = Finding(
            code="converted-not-lowered", severity="error",
            message=f"convert gave the reference form: {kept} products run as dequantize, float op, quantize, which "
                    "is slower than float and keeps no int8 kernel.",
            remedy="lower it: torch.compile with freezing (pt2e-inductor), ExecuTorch (pt2e-executorch) or LiteRT "
                   "(pt2e-litert), and measure that.")
        return Verdict(outcome=Outcome.FAILED, findings=(unlowered, *findings),
                       reasons=("converted but not lowered: 0 int8 kernels.",))
    if coverage.int8_modules == 0:
        named = ", ".join(f"{left.module or 'the model'} ({left.kind}: {left.reason})"
                          for left in coverage.leftovers[:NAMED_LEFTOVERS])
        remedy = "use a workflow that has int8 kernels for these layers, or do not ship this model as quantized."
        nothing = Finding(code="nothing-quantized", severity="error", remedy=remedy,
                          message=f"no module that is called computes in int8; in float: {named or 'everything'}.")
        return Verdict(outcome=Outcome.FAILED, findings=(nothing, *findings),
                       reasons=("nothing was quantized: 0 modules that are called compute in int8.",))
    by_weight = "" if coverage.weight_share is None else f" and {coverage.weight_share:.1%} of weights"
    known = coverage.mac_share is not None
    share = (f"{coverage.mac_share:.1%} of multiply-accumulates{by_weight} run in int8 "
             f"({coverage.int8_modules} modules)") if known else (
                 f"{coverage.int8_modules} kernels run in int8, and the artifact does not tell of what size")
    if coverage.leftovers:
        more = len(coverage.leftovers) - NAMED_LEFTOVERS
        share += "; in float: " + ", ".join(
            f"{left.module or 'the model'} ({left.reason})" for left in coverage.leftovers[:NAMED_LEFTOVERS])
        share += f" and {more} more" if more > 0 else ""
    floor = tolerances.min_coverage
    if floor is None and coverage.macs and coverage.int8_macs == 0:
        return Verdict(outcome=Outcome.FAILED, findings=findings,
                       reasons=(f"{share}; required is more than 0 % of multiply-accumulates.",))
    if floor is not None and coverage.mac_share is None:
        return Verdict(outcome=Outcome.INCONCLUSIVE, findings=findings,
                       reasons=(f"{share}; required is {floor:.1%} of them.",))
    if floor is not None and coverage.mac_share is not None and coverage.mac_share < floor:
        return Verdict(outcome=Outcome.FAILED, findings=findings,
                       reasons=(f"{share}; required is {floor:.1%} of multiply-accumulates.",))
    return Verdict(outcome=Outcome.PASSED, reasons=(f"{share}.",), findings=findings)


def judge_parity(parity: Parity, culprit: Divergence | None = None) -> Verdict:
    """Conversion may add as much noise as quantization itself does, not more than twice that below 25 dB.

    Args:
        parity: The agreement, end to end.
        culprit: The first module at which the two forms part, where it was looked for.
    """
    if not parity.finite:
        return Verdict(outcome=Outcome.FAILED, reasons=("the converted model returns NaN or infinity.",))
    if not parity.prepared_finite:
        return Verdict(outcome=Outcome.FAILED, reasons=(
            "the prepared model returns NaN or infinity, so there is nothing to hold the converted one to.",))
    where = f" in output {parity.output}" if parity.output else ""
    numbers = (f"converted agrees with prepared to {_db(parity.sqnr_db)}{where}; quantization itself leaves "
               f"{_db(parity.quantization_sqnr_db)}")
    limit = parity.limit_db
    if parity.sqnr_db >= limit:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    finding = Finding(
        code="kernels-disagree", severity="error", module=culprit.module if culprit else None,
        message="the int8 kernel computes something else than fake-quantize simulated "
                f"({_db(culprit.sqnr_db)} at this {culprit.kind})." if culprit else
                f"the int8 kernels compute something else than fake-quantize simulated ({_db(parity.sqnr_db)}).",
        remedy="choose a recipe with another engine, or name the module in skip=(...); on a machine without VNNI "
               "keep reduce_range=True in the qconfig.",
        evidence={"sqnr_db": json_number(parity.sqnr_db),
                  "quantization_sqnr_db": json_number(parity.quantization_sqnr_db)})
    return Verdict(outcome=Outcome.FAILED, findings=(finding,),
                   reasons=(f"{numbers}; required is {_db(limit)}.",))


def judge_accuracy(accuracy: Accuracy, tolerances: Tolerances, *, strict: bool = False, higher_is_better: bool = True,
                   fine_tuning: FineTuning | None = None) -> Verdict:
    """A drop within tolerance passes; over it and significant fails; over it and not significant is inconclusive.

    Under `strict` the interval must prove that the drop is within tolerance. A float model below `min_accuracy`, or
    no better than naming the most frequent class, cannot pass; nor can an int8 model that names one class only, or
    that has outputs gone flat which no metric looks at (inconclusive, if they are faint in float and there are no
    evaluation data). What training did helps to name causes.
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
    return Verdict(outcome=outcome, reasons=reasons, findings=causes_of_scores(
        accuracy, fine_tuning, higher_is_better=higher_is_better))


def _too_faint(accuracy: Accuracy) -> str:
    share = max(each.relative for each in accuracy.flat)
    named = "; ".join(map(flat_text, accuracy.flat))
    return (f"agreement says little here: {named} varies by {share:.1%} of its size in float, too faint for the steps "
            "of int8. Give the trained model, and eval_data.")


def _nothing_left(accuracy: Accuracy) -> str:
    if accuracy.only_class is not None:
        return (f"the int8 model names class {accuracy.only_class} for all of {accuracy.samples:,} samples, which "
                "float does not.")
    return "; ".join(f"{flat_text(each)} hardly follows its input any more in int8" for each in accuracy.flat) + "."


def _judge_drop(accuracy: Accuracy, tolerance: float, *, strict: bool) -> tuple[Outcome, str]:
    low, high = accuracy.drop_ci
    allowed = accuracy.allowed(tolerance)
    say = partial(score_text, accuracy)
    what = "agreement with float drops" if accuracy.kind == "agreement" else (
        "accuracy drops" if accuracy.is_fraction else "the score worsens")
    known = accuracy.is_fraction and accuracy.relative_drop is not None
    relative = f", {accuracy.relative_drop:.2%} of it" if known else ""
    numbers = (f"{what} by {say(accuracy.drop)} (from {say(accuracy.fp32)} to {say(accuracy.int8)}{relative}), 95 % "
               f"interval [{say(low)}, {say(high)}] on {accuracy.samples:,} samples, of which {accuracy.flipped:,} "
               f"changed; allowed is {say(allowed)}")
    if not accuracy.is_fraction:
        numbers += f" ({tolerance:.2%} of float's)"
    if accuracy.drop > allowed and accuracy.p_value < SIGNIFICANT:
        return Outcome.FAILED, f"{numbers}."
    if accuracy.at_chance:
        return Outcome.INCONCLUSIVE, _no_better_than_chance(accuracy)
    if accuracy.drop > allowed:
        return Outcome.INCONCLUSIVE, (
            f"{numbers}. The difference is not significant (p = {accuracy.p_value:.2f}): evaluate more samples.")
    if high <= allowed:
        return Outcome.PASSED, f"{numbers}."
    needed = accuracy.samples_needed(allowed)
    missing = f"these samples can prove no drop under {say(accuracy.provable_drop)}"
    missing = missing if needed is None else f"about {needed:,} samples would prove it; {missing}"
    if strict:
        return Outcome.INCONCLUSIVE, f"{numbers}. Strict mode wants proof, but {missing}."
    return Outcome.PASSED, f"{numbers}; not proven: {missing}."


def _no_better_than_chance(accuracy: Accuracy) -> str:
    assert accuracy.majority is not None, "unreachable because chance is what the majority gives"
    if accuracy.majority >= 1:
        return "eval_data holds a single class, so nothing can be told from it."
    scores = f"the float model scores {accuracy.fp32:.2%}"
    if accuracy.fp32 > accuracy.majority:
        return (f"{scores}, and {accuracy.samples:,} samples are too few to tell that from naming the most frequent "
                f"class ({accuracy.majority:.2%}). Evaluate more samples, of the rarer classes above all.")
    return (f"{scores}, no better than naming the most frequent class ({accuracy.majority:.2%}), so a drop cannot "
            "show. Give the trained model.")


def _judge_floor(accuracy: Accuracy, floor: float | None, *, higher_is_better: bool) -> tuple[Outcome, str] | None:
    if floor is None:
        return None
    say = partial(score_text, accuracy)
    if accuracy.kind == "agreement":
        return Outcome.INCONCLUSIVE, f"min_accuracy {say(floor)} cannot be checked without eval_data."
    if not higher_is_better:
        return Outcome.INCONCLUSIVE, f"min_accuracy {say(floor)} is a floor, but for this metric lower is better."
    if accuracy.fp32 < floor:
        return Outcome.FAILED, (f"the float model itself scores {say(accuracy.fp32)}, below min_accuracy "
                                f"{say(floor)}: train it before quantizing it.")
    if accuracy.int8 < floor:
        return Outcome.FAILED, (f"the int8 model scores {say(accuracy.int8)}, below min_accuracy {say(floor)} "
                                f"(float: {say(accuracy.fp32)}).")
    return None


def judge_size(fp32_bytes: int, int8_bytes: int, tolerances: Tolerances, *,
               float_weights: Sequence[StoredTensor] = ()) -> Verdict:
    """The artifact must shrink by at least `min_size_reduction`.

    Args:
        fp32_bytes: The float artifact.
        int8_bytes: The int8 artifact.
        tolerances: What is required.
        float_weights: Large float tensors in the int8 artifact, largest first.
    """
    ratio = fp32_bytes / max(int8_bytes, 1)
    enough = ratio >= tolerances.min_size_reduction
    reason = (f"artifact shrinks {ratio:.2f}x ({fp32_bytes:,} to {int8_bytes:,} bytes); "
              f"required is {tolerances.min_size_reduction:.2f}x.")
    findings: tuple[Finding, ...] = ()
    if float_weights:
        total = sum(tensor.size_bytes for tensor in float_weights)
        named = ", ".join(f"{tensor.name} ({tensor.dtype}, {tensor.size_bytes:,} bytes)"
                          for tensor in float_weights[:NAMED_LEFTOVERS])
        more = len(float_weights) - NAMED_LEFTOVERS
        findings = (Finding(
            code="float-weights-left", severity="note" if enough else "error",
            message=f"{total / max(int8_bytes, 1):.0%} of the int8 artifact are float weights: {named}"
                    f"{f' and {more} more' if more > 0 else ''}.",
            remedy="quantize these layers, or save the converted model only: coverage names the reasons.",
            evidence={"bytes": total}),)
    return Verdict(outcome=Outcome.PASSED if enough else Outcome.FAILED, reasons=(reason,), findings=findings)


def judge_speedup(speedup: Speedup, tolerances: Tolerances, *, noise: Speedup | None = None,
                  batches: Sequence[BatchSpeed] = (), own_batch: int | None = None) -> Verdict:
    """The interval must lie on one side of `min_speedup`; if it straddles it, more time is needed.

    Args:
        speedup: Like for like.
        tolerances: What is required.
        noise: Float against itself. If that is surely not 1, the machine is unsteady, and the interval must clear
            the floor by as much.
        batches: The comparison at other batch sizes.
        own_batch: The case's own.
    """
    floor, (low, high) = tolerances.min_speedup, speedup.ci
    offset = 1.0 if noise is None else max(noise.ci[0], 1 / noise.ci[1] if noise.ci[1] else math.inf, 1.0)
    against = "" if noise is None else (
        f" (float against itself: {noise.estimate:.2f}x [{noise.ci[0]:.2f}, {noise.ci[1]:.2f}])")
    numbers = (f"int8 is {speedup.estimate:.2f}x as fast as float, {speedup.confidence:.0%} interval "
               f"[{low:.2f}, {high:.2f}] from {speedup.pairs} pairs in {speedup.elapsed_s:.1f} s{against}; "
               f"required is {floor:.2f}x")
    findings = _batch_findings(speedup, batches, own_batch, floor)
    if low >= floor * offset:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",), findings=findings)
    if high < floor / offset:
        return Verdict(outcome=Outcome.FAILED, reasons=(f"{numbers}.",), findings=findings)
    missing = _what_is_missing(speedup, floor, offset)
    return Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(f"{numbers}. {missing}",), findings=findings)


def _what_is_missing(speedup: Speedup, floor: float, offset: float) -> str:
    if speedup.settles(floor):
        return (f"But float against itself is {offset:.2f}x off: this machine is too unsteady to tell so small a "
                "difference. Run it again when nothing else runs.")
    needed_s = speedup.seconds_to_settle(floor)
    if math.isinf(speedup.ci[1]):
        return (f"A pair of blocks takes so long that {speedup.pairs} fitted into the budget, too few for an interval: "
                f"raise --qat-max-time to about {math.ceil(needed_s * 2):,} s, or use smaller example_inputs.")
    if needed_s > MOST_SECONDS:
        return ("The interval straddles it, and the true ratio is too near for any reasonable time to tell: "
                "lower --qat-min-speedup a little.")
    return f"The interval straddles it: raise --qat-max-time to about {math.ceil(needed_s * 2):,} s."


def _batch_findings(speedup: Speedup, batches: Sequence[BatchSpeed], own_batch: int | None,
                    floor: float) -> tuple[Finding, ...]:
    known = {entry.batch: entry.speedup for entry in batches if entry.speedup is not None}
    found = []
    bound = {str(entry.batch): entry.overhead for entry in batches
             if entry.overhead is not None and entry.overhead > OVERHEAD_BOUND}
    if bound:
        named = ", ".join(f"{share:.0%} at batch {batch}" for batch, share in bound.items())
        found.append(Finding(
            code="overhead-bound", severity="note", evidence=bound,
            message=f"most of an int8 call does not grow with the batch ({named}): such calls are bound by overhead, "
                    "which int8 does not shorten.",
            remedy="judge the speedup at the batch size that ships."))
    ours = speedup.settles(floor) and speedup.ci[0] >= floor
    others = [f"{made.estimate:.2f}x at batch {batch}" for batch, made in known.items()
              if batch != own_batch and made.settles(floor) and (made.ci[0] >= floor) is not ours]
    if speedup.settles(floor) and others:
        found.append(Finding(
            code="verdict-depends-on-batch", severity="warning",
            message=f"at batch {own_batch} int8 is {speedup.estimate:.2f}x as fast, but {', '.join(others)}.",
            remedy="put the batch size that ships into example_inputs."))
    return tuple(found)


def strictly(verdict: Verdict, *, strict: bool) -> Verdict:
    """Under `strict`, what is inconclusive fails."""
    if not strict or verdict.outcome is not Outcome.INCONCLUSIVE:
        return verdict
    reasons: Sequence[str] = (*verdict.reasons, "Strict mode counts inconclusive as failed.")
    return Verdict(outcome=Outcome.FAILED, reasons=tuple(reasons), findings=verdict.findings)


def _db(value: float) -> str:
    return "equality" if value == math.inf else f"{value:.1f} dB"
