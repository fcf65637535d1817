"""Audits: each looks at one thing that goes wrong in the stages that a user made, and tells it or keeps silent.

An audit is a function from `Given` to findings. They are listed in the order of the stages: what comes first is the
root, and what follows from it is not told again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_qat.diagnosis.audits import batch_norm, codes, conversion, joined, preparing, ranges
from pytest_qat.diagnosis.given import Given
from pytest_qat.findings import Finding

__all__ = ["AUDITS"]

Audit = Callable[[Given], Iterable[Finding]]

AUDITS: tuple[tuple[str, tuple[Audit, ...]], ...] = (
    ("prepare", (preparing.nothing_simulated, batch_norm.unfused, batch_norm.folded_before_training)),
    ("train", (preparing.optimizer_of_another_model, preparing.switched_off, batch_norm.drifted)),
    ("calibrate", (ranges.not_finite, ranges.never_observed, ranges.learn_in_evaluation, codes.few_codes)),
    ("convert", (conversion.call_fails, conversion.still_simulated, batch_norm.trains_at_evaluation,
                 conversion.output_stays_int8, joined.clipped_by_concatenation, conversion.default_qparams,
                 conversion.what_is_int8)),
)
