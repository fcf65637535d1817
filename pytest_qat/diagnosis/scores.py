"""What scores say about causes: training that hurt, loss in conversion, gains too good to be true, flat outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_qat.findings import Finding, json_number
from pytest_qat.verdict import SIGNIFICANT, score_text

if TYPE_CHECKING:
    from pytest_qat.finetune import FineTuning
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.flat_outputs import FlatOutput

__all__ = ["causes_of_scores"]

_NAMED = 5


def _flat_finding(flat: FlatOutput, *, faint: bool) -> Finding:
    return Finding(
        code="flat-output", severity="warning" if faint else "error",
        evidence={"output": flat.output, "columns": list(flat.columns[:_NAMED]), "flat": len(flat.columns),
                  "of": flat.of, "std_fp32": flat.spread, "std_int8": flat.left, "values": flat.values},
        message=f"{flat.label} varies by {flat.spread:.3g} (standard deviation) in float, and in int8 by "
                f"{flat.left:.3g}, with {flat.values} distinct value{'' if flat.values == 1 else 's'}: all columns of "
                "a tensor share one scale, whose steps are too coarse here.",
        remedy="train on normalized targets, so that all columns have about the same range around zero.")


def causes_of_scores(accuracy: Accuracy, fine_tuning: FineTuning | None, *,
                     higher_is_better: bool) -> tuple[Finding, ...]:
    """Return what the scores of float, control, fine-tuned model and int8 show when they are compared.

    Args:
        accuracy: The scores.
        fine_tuning: What training did; None if that is not known.
        higher_is_better: Whether a higher score is better.
    """
    found = [_flat_finding(each, faint=accuracy.faint) for each in accuracy.flat]
    if accuracy.drop < 0 and accuracy.p_value < SIGNIFICANT:
        found.append(Finding(
            code="suspicious-gain", severity="warning", evidence={"p_value": accuracy.p_value},
            message=f"int8 scores {score_text(accuracy, -accuracy.drop)} better than float, which quantization alone "
                    "cannot explain.",
            remedy="train the float model as long as its fine-tuned copy, and keep evaluation data out of training."))
    sign = 1.0 if higher_is_better else -1.0
    untrained = fine_tuning is not None and fine_tuning.kind == "none"
    trained = accuracy.fine_tuned if accuracy.ptq_simulated and accuracy.fine_tuned is not None else accuracy.int8
    if not untrained and _significantly_below(sign * trained, accuracy.ptq, accuracy.ptq_p_value, sign):
        found.append(_below_ptq(accuracy, fine_tuning, sign))
    if _significantly_below(sign * accuracy.int8, accuracy.fine_tuned, accuracy.fine_tuned_p_value, sign):
        assert accuracy.fine_tuned is not None, "unreachable because it was compared with"
        found.append(Finding(
            code="lost-in-conversion", severity="warning", evidence={"p_value": accuracy.fine_tuned_p_value},
            message=f"the fine-tuned model scores {score_text(accuracy, accuracy.fine_tuned)} with fake-quantize, but "
                    f"{score_text(accuracy, accuracy.int8)} once converted: it was lost after training."))
    if accuracy.kind == "agreement":
        found.append(Finding(
            code="agreement-only", severity="note", evidence={"sqnr_db": json_number(accuracy.sqnr_db)},
            message="there is no eval_data: int8 was compared with float on calibration inputs, not with the correct "
                    "answers.",
            remedy="give eval_data to measure accuracy."))
    return tuple(found)


def _significantly_below(score: float, other: float | None, p_value: float | None, sign: float) -> bool:
    return other is not None and p_value is not None and p_value < SIGNIFICANT and score < sign * other


def _below_ptq(accuracy: Accuracy, fine_tuning: FineTuning | None, sign: float) -> Finding:
    assert accuracy.ptq is not None, "unreachable because it was compared with"
    simulated = accuracy.ptq_simulated and accuracy.fine_tuned is not None
    after = accuracy.fine_tuned if simulated and accuracy.fine_tuned is not None else accuracy.int8
    message = (f"fine-tuning made int8 worse: {score_text(accuracy, after)} after it, "
               f"{score_text(accuracy, accuracy.ptq)} without{', both with fake-quantize' if simulated else ''} "
               f"(p = {accuracy.ptq_p_value:.1g})")
    first = fine_tuning.first_loss if fine_tuning else None
    last = fine_tuning.last_loss if fine_tuning else None
    remedy = "leave out train and train_data: the PTQ model was measured and is better."
    if first is not None and last is not None and last > first:
        message += f". The loss rose from {first:.3g} to {last:.3g}, as it does when the learning rate is too high."
        remedy = "divide the learning rate by 10 to 100, or leave out train and train_data."
    elif not simulated and accuracy.fine_tuned is not None and sign * accuracy.fine_tuned >= sign * accuracy.ptq:
        message += f", although the fine-tuned model itself scores {score_text(accuracy, accuracy.fine_tuned)}."
    else:
        message += "."
    return Finding(code="qat-below-ptq", severity="warning", message=message, remedy=remedy,
                   evidence={"p_value": accuracy.ptq_p_value, "first_loss": first, "last_loss": last})
