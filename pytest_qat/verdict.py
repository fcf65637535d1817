"""The one place that turns numbers and tolerances into an outcome. Pure: no torch, no clock, no files."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_qat.findings import Finding

if TYPE_CHECKING:
    from pytest_qat.diagnosis.divergence import Divergence
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.coverage import Coverage
    from pytest_qat.measure.latency import Speedup
    from pytest_qat.measure.parity import Parity
    from pytest_qat.tolerances import Tolerances

__all__ = ["Outcome", "Verdict", "judge_accuracy", "judge_coverage", "judge_parity", "judge_size", "judge_speedup",
           "parity_limit_db", "strictly"]

HEALTHY_PARITY_DB = 25.0
"""Prepared against converted, end to end: rounding ties travel, and 25 to 35 dB is what healthy models show."""
PARITY_MARGIN_DB = 6.0
"""How much louder than quantization's own noise the conversion's may be: a factor of two."""
SIGNIFICANCE = 0.05
NAMED_LEFTOVERS = 5


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
    if coverage.int8_modules == 0:
        named = ", ".join(f"{left.module or 'the model'} ({left.kind}: {left.reason})"
                          for left in coverage.leftovers[:NAMED_LEFTOVERS])
        remedy = "use a workflow that has int8 kernels for these layers, or do not ship this model as quantized."
        nothing = Finding(code="nothing-quantized", severity="error", remedy=remedy,
                          message=f"no module holds int8 weights; in float: {named or 'everything'}.")
        return Verdict(outcome=Outcome.FAILED, findings=(nothing, *findings),
                       reasons=("nothing was quantized: 0 modules hold int8 weights.",))
    share = (f"{coverage.mac_share:.1%} of multiply-accumulates and {coverage.weight_share:.1%} of weights "
             f"run in int8 ({coverage.int8_modules} modules)")
    if coverage.leftovers:
        more = len(coverage.leftovers) - NAMED_LEFTOVERS
        share += "; in float: " + ", ".join(
            f"{left.module or 'the model'} ({left.reason})" for left in coverage.leftovers[:NAMED_LEFTOVERS])
        share += f" and {more} more" if more > 0 else ""
    floor = tolerances.min_coverage
    if floor is not None and coverage.mac_share < floor:
        return Verdict(outcome=Outcome.FAILED, findings=findings,
                       reasons=(f"{share}; required is {floor:.1%} of multiply-accumulates.",))
    return Verdict(outcome=Outcome.PASSED, reasons=(f"{share}.",), findings=findings)


def parity_limit_db(parity: Parity) -> float:
    """Return the SQNR that conversion must keep: 25 dB, or half of quantization's own noise if that is louder."""
    return min(HEALTHY_PARITY_DB, parity.quantization_sqnr_db - PARITY_MARGIN_DB)


def judge_parity(parity: Parity, culprit: Divergence | None = None) -> Verdict:
    """Conversion may add as much noise as quantization itself does, not more than twice that below 25 dB.

    Args:
        parity: The agreement, end to end.
        culprit: The first module at which the two forms part, where it was looked for.
    """
    if not parity.finite:
        return Verdict(outcome=Outcome.FAILED, reasons=("the converted model returns NaN or infinity.",))
    numbers = (f"converted agrees with prepared to {_db(parity.sqnr_db)}; quantization itself leaves "
               f"{_db(parity.quantization_sqnr_db)}")
    limit = parity_limit_db(parity)
    if parity.sqnr_db >= limit:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    finding = Finding(
        code="kernels-disagree", severity="error", module=culprit.module if culprit else None,
        message="the int8 kernel computes something else than fake-quantize simulated "
                f"({_db(culprit.sqnr_db)} at this {culprit.kind})." if culprit else
                f"the int8 kernels compute something else than fake-quantize simulated ({_db(parity.sqnr_db)}).",
        remedy="choose a recipe with another engine, or name the module in skip=(...); on a machine without VNNI "
               "keep reduce_range=True in the qconfig.",
        evidence={"sqnr_db": _finite(parity.sqnr_db), "quantization_sqnr_db": _finite(parity.quantization_sqnr_db)})
    return Verdict(outcome=Outcome.FAILED, findings=(finding,),
                   reasons=(f"{numbers}; required is {_db(limit)}.",))


def judge_accuracy(accuracy: Accuracy, tolerances: Tolerances, *, strict: bool = False,
                   higher_is_better: bool = True) -> Verdict:
    """A drop within tolerance passes; over it and significant fails; over it and not significant is inconclusive.

    Under `strict` the interval must prove that the drop is within tolerance. A float model below `min_accuracy`, or
    no better than naming the most frequent class, cannot pass.
    """
    outcome, reason = _judge_drop(accuracy, tolerances.accuracy_drop, strict=strict)
    floor = _judge_floor(accuracy, tolerances.min_accuracy, higher_is_better=higher_is_better)
    if floor is not None and (floor[0] is Outcome.FAILED or outcome is Outcome.PASSED):
        outcome, reason = floor
    return Verdict(outcome=outcome, reasons=(reason,),
                   findings=_accuracy_findings(accuracy, higher_is_better=higher_is_better))


def _judge_drop(accuracy: Accuracy, allowed: float, *, strict: bool) -> tuple[Outcome, str]:
    if accuracy.at_chance:
        assert accuracy.majority is not None, "unreachable because chance is what the majority gives"
        return Outcome.INCONCLUSIVE, (
            "eval_data holds a single class, so nothing can be told from it." if accuracy.majority >= 1 else
            f"the float model scores {accuracy.fp32:.2%}, no better than naming the most frequent class "
            f"({accuracy.majority:.2%}), so a drop cannot show. Give the trained model.")
    low, high = accuracy.drop_ci
    what = "agreement with float drops" if accuracy.kind == "agreement" else "accuracy drops"
    numbers = (f"{what} by {accuracy.drop:.2%} (from {accuracy.fp32:.2%} to {accuracy.int8:.2%}), 95 % interval "
               f"[{low:.2%}, {high:.2%}] on {accuracy.samples} samples; allowed is {allowed:.2%}")
    if accuracy.drop > allowed:
        if accuracy.p_value < SIGNIFICANCE:
            return Outcome.FAILED, f"{numbers}."
        return Outcome.INCONCLUSIVE, (
            f"{numbers}. The difference is not significant (p = {accuracy.p_value:.2f}): evaluate more samples.")
    if strict and high > allowed:
        return Outcome.INCONCLUSIVE, (
            f"{numbers}. Strict mode wants proof, and the interval reaches over it: evaluate more samples.")
    return Outcome.PASSED, f"{numbers}{'' if high <= allowed else '; too few samples to prove it'}."


def _judge_floor(accuracy: Accuracy, floor: float | None, *, higher_is_better: bool) -> tuple[Outcome, str] | None:
    if floor is None:
        return None
    if accuracy.kind == "agreement":
        return Outcome.INCONCLUSIVE, f"min_accuracy {floor:.2%} cannot be checked without eval_data."
    if not higher_is_better:
        return Outcome.INCONCLUSIVE, f"min_accuracy {floor:.2%} is a floor, but for this metric lower is better."
    if accuracy.fp32 < floor:
        return Outcome.FAILED, (f"the float model itself scores {accuracy.fp32:.2%}, below min_accuracy {floor:.2%}: "
                                "train it before quantizing it.")
    if accuracy.int8 < floor:
        return Outcome.FAILED, (f"the int8 model scores {accuracy.int8:.2%}, below min_accuracy {floor:.2%} "
                                f"(float: {accuracy.fp32:.2%}).")
    return None


def _accuracy_findings(accuracy: Accuracy, *, higher_is_better: bool) -> tuple[Finding, ...]:
    found = []
    sign = 1.0 if higher_is_better else -1.0
    if accuracy.drop < 0 and accuracy.p_value < SIGNIFICANCE:
        found.append(Finding(
            code="suspicious-gain", severity="warning", evidence={"p_value": accuracy.p_value},
            message=f"int8 scores {-accuracy.drop:.2%} better than float, which quantization alone does not do.",
            remedy="train the float model as long as its fine-tuned copy, and keep evaluation data out of training."))
    if accuracy.ptq is not None and accuracy.ptq_p_value is not None and accuracy.ptq_p_value < SIGNIFICANCE and (
            sign * accuracy.int8 < sign * accuracy.ptq):
        found.append(Finding(
            code="qat-below-ptq", severity="warning", evidence={"p_value": accuracy.ptq_p_value},
            message=f"fine-tuning made int8 worse: {accuracy.int8:.2%} after it, {accuracy.ptq:.2%} without.",
            remedy="lower the learning rate 10 to 100 times, train for more epochs, or ship the PTQ model."))
    if accuracy.kind == "agreement":
        found.append(Finding(
            code="agreement-only", severity="note", evidence={"sqnr_db": _finite(accuracy.sqnr_db)},
            message="no eval_data: int8 was compared with float on calibration inputs, not with the truth.",
            remedy="give eval_data to measure accuracy."))
    return tuple(found)


def judge_size(fp32_bytes: int, int8_bytes: int, tolerances: Tolerances) -> Verdict:
    """The artefact must shrink by at least `min_size_reduction`."""
    ratio = fp32_bytes / max(int8_bytes, 1)
    enough = ratio >= tolerances.min_size_reduction
    reason = (f"artefact shrinks {ratio:.2f}x ({fp32_bytes:,} to {int8_bytes:,} bytes); "
              f"required is {tolerances.min_size_reduction:.2f}x.")
    return Verdict(outcome=Outcome.PASSED if enough else Outcome.FAILED, reasons=(reason,))


def judge_speedup(speedup: Speedup, tolerances: Tolerances, *, noise_floor: float | None = None) -> Verdict:
    """The interval must lie on one side of `min_speedup`; if it straddles it, more time is needed."""
    floor, (low, high) = tolerances.min_speedup, speedup.ci
    noise = "" if noise_floor is None else f" (float against itself varies by {noise_floor:.1%})"
    numbers = (f"int8 is {speedup.estimate:.2f}x as fast as float, {speedup.confidence:.0%} interval "
               f"[{low:.2f}, {high:.2f}] from {speedup.pairs} pairs{noise}; required is {floor:.2f}x")
    if low >= floor:
        return Verdict(outcome=Outcome.PASSED, reasons=(f"{numbers}.",))
    if high < floor:
        return Verdict(outcome=Outcome.FAILED, reasons=(f"{numbers}.",))
    reason = f"{numbers}. The interval straddles it after {speedup.elapsed_s:.0f} s: raise --qat-max-time."
    return Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(reason,))


def strictly(verdict: Verdict, *, strict: bool) -> Verdict:
    """Under `strict`, what is inconclusive fails."""
    if not strict or verdict.outcome is not Outcome.INCONCLUSIVE:
        return verdict
    reasons: Sequence[str] = (*verdict.reasons, "Strict mode counts inconclusive as failed.")
    return Verdict(outcome=Outcome.FAILED, reasons=tuple(reasons), findings=verdict.findings)


def _db(value: float) -> str:
    return "equality" if value == math.inf else f"{value:.1f} dB"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
