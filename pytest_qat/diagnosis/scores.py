"""What scores say about causes: training that hurt, loss in conversion, gains too good to be true, flat outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_qat.core.text import percent
from pytest_qat.findings import Finding, json_number
from pytest_qat.verdict import SIGNIFICANT, score_text

if TYPE_CHECKING:
    from pytest_qat.finetune import FineTuning
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.flat_outputs import FlatOutput

__all__ = ["causes_of_scores"]

_NAMED = 5
_MATTERS = 0.5
"""A difference smaller than this share of what is allowed, or of the drop to be explained, is not named as a cause."""


def _flat_finding(flat: FlatOutput, *, faint: bool, untrained: bool) -> Finding:
    return Finding(
        code="flat-output", severity="note" if untrained else "warning" if faint else "error",
        evidence={"output": flat.output, "columns": list(flat.columns[:_NAMED]), "flat": len(flat.columns),
                  "of": flat.of, "std_fp32": flat.spread, "std_int8": flat.left, "values": flat.values},
        message=f"{flat.label} varies by {flat.spread:.3g} (standard deviation) in float, and in int8 by "
                f"{flat.left:.3g}, with {flat.values} distinct value{'' if flat.values == 1 else 's'}: all columns of "
                "a tensor share one scale, whose steps are too coarse here.",
        remedy="" if untrained else
        "train on normalized targets, so that all columns have about the same range around zero, or return columns of "
        "unlike size as outputs of their own.")


def causes_of_scores(accuracy: Accuracy, fine_tuning: FineTuning | None, *, higher_is_better: bool,
                     tolerance: float) -> tuple[Finding, ...]:
    """Return what the scores of float, control, fine-tuned model and int8 show when they are compared.

    A cause is named if the difference that it makes is significant, at least half of what the tolerance allows, and
    at least half of the drop that there is.

    Args:
        accuracy: The scores.
        fine_tuning: What training did; None if that is not known.
        higher_is_better: Whether a higher score is better.
        tolerance: The drop that is allowed.
    """
    found = [_flat_finding(each, faint=accuracy.faint, untrained=bool(accuracy.random_weights))
             for each in accuracy.flat]
    sign = 1.0 if higher_is_better else -1.0
    least = _MATTERS * max(accuracy.allowed(tolerance), accuracy.drop)
    if accuracy.drop < 0 and accuracy.p_value < SIGNIFICANT and -accuracy.drop >= least:
        found.append(Finding(
            code="suspicious-gain", severity="warning", evidence={"p_value": accuracy.p_value},
            message=f"int8 scores {score_text(accuracy, -accuracy.drop)} better than float, which quantization alone "
                    "cannot explain.",
            remedy="train the float model as long as its fine-tuned copy, and keep evaluation data out of training."))
    untrained = fine_tuning is not None and fine_tuning.kind == "none"
    trained = accuracy.fine_tuned if accuracy.ptq_simulated and accuracy.fine_tuned is not None else accuracy.int8
    if not untrained and _lost(accuracy.ptq, trained, accuracy.ptq_p_value, sign=sign, least=least):
        found.append(_below_ptq(accuracy, fine_tuning, sign))
    if _lost(accuracy.fine_tuned, accuracy.int8, accuracy.fine_tuned_p_value, sign=sign, least=least):
        assert accuracy.fine_tuned is not None, "unreachable because it was compared with"
        share = _share_of_drop(accuracy, sign * (accuracy.fine_tuned - accuracy.int8))
        found.append(Finding(
            code="lost-in-conversion", severity="warning",
            evidence={"p_value": accuracy.fine_tuned_p_value, "share_of_drop": share},
            message=f"the fine-tuned model scores {score_text(accuracy, accuracy.fine_tuned)} with fake-quantize, but "
                    f"{score_text(accuracy, accuracy.int8)} once converted{_share_text(share)}."))
    if accuracy.kind == "agreement":
        found.append(Finding(
            code="agreement-only", severity="note", evidence={"sqnr_db": json_number(accuracy.sqnr_db)},
            message="there is no eval_data: int8 was compared with float on calibration inputs, not with the correct "
                    "answers.",
            remedy="give eval_data to measure accuracy."))
    return tuple(found)


def _lost(before: float | None, after: float, p_value: float | None, *, sign: float, least: float) -> bool:
    """Whether a score got significantly worse, by at least so much."""
    if before is None or p_value is None or p_value >= SIGNIFICANT:
        return False
    lost = sign * (before - after)
    return lost > 0 and lost >= least


def _share_of_drop(accuracy: Accuracy, lost: float) -> float | None:
    share = lost / accuracy.drop if accuracy.drop > 0 else math.nan
    return min(1.0, round(share, 4)) if math.isfinite(share) else None


def _share_text(share: float | None) -> str:
    return "" if share is None else f": this is {percent(share, digits=0)} of the drop"


def _below_ptq(accuracy: Accuracy, fine_tuning: FineTuning | None, sign: float) -> Finding:
    assert accuracy.ptq is not None, "unreachable because it was compared with"
    simulated = accuracy.ptq_simulated and accuracy.fine_tuned is not None
    after = accuracy.fine_tuned if simulated and accuracy.fine_tuned is not None else accuracy.int8
    share = _share_of_drop(accuracy, sign * (accuracy.ptq - after))
    message = (f"fine-tuning made int8 worse: {score_text(accuracy, after)} after it, "
               f"{score_text(accuracy, accuracy.ptq)} without{', both with fake-quantize' if simulated else ''} "
               f"(p = {accuracy.ptq_p_value:.1g}){_share_text(share)}.")
    first = fine_tuning.first_loss if fine_tuning else None
    last = fine_tuning.last_loss if fine_tuning else None
    if first is not None and last is not None and last > first:
        message += f" The training loss rose from {first:.3g} to {last:.3g}."
    elif not simulated and accuracy.fine_tuned is not None and sign * accuracy.fine_tuned >= sign * accuracy.ptq:
        message += f" The fine-tuned model itself scores {score_text(accuracy, accuracy.fine_tuned)}."
    return Finding(code="qat-below-ptq", severity="warning", message=message,
                   remedy="leave out train and train_data: the PTQ model was measured, and scored "
                          f"{score_text(accuracy, accuracy.ptq)}.",
                   evidence={"p_value": accuracy.ptq_p_value, "share_of_drop": share, "first_loss": first,
                             "last_loss": last})
