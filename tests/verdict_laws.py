"""What the tests of verdicts share: outcomes and their rank, tolerances of every kind, and what every verdict is."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, Verdict

STABLE = settings(deadline=None, derandomize=True)
PASSED, FAILED, INCONCLUSIVE = Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE
RANK = {FAILED: 0, INCONCLUSIVE: 1, PASSED: 2}
FRACTION = st.floats(0, 1)
MEAN = st.integers(0, 10**6).map(lambda hits: hits / 10**6)
"""A score over a million samples."""
TOLERANCES = st.builds(
    Tolerances, accuracy_drop=MEAN, min_accuracy=st.none() | FRACTION,
    min_speedup=st.floats(0, 1e300), min_size_reduction=st.floats(0, 1e300), min_coverage=st.none() | FRACTION)


def accuracy(**changes: Any) -> Accuracy:
    fields = {"fp32": 0.9, "int8": 0.9, "ptq": 0.9, "fine_tuned": 0.9, "drop": 0.0, "drop_ci": (-0.005, 0.005),
              "p_value": 1.0, "ptq_p_value": 1.0, "fine_tuned_p_value": 1.0, "samples": 1000, "provable_drop": 0.005,
              "flips": (), "flipped": 7, "kind": "metric", "is_fraction": True}
    return Accuracy(**{**fields, **changes})


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


def is_whole(verdict: Verdict) -> None:
    """An outcome, sentences, and findings of plain JSON."""
    assert verdict.outcome in (PASSED, FAILED, INCONCLUSIVE)
    assert verdict.reasons
    assert all(reason.endswith(".") for reason in verdict.reasons)
    assert all(finding.message.endswith(".") for finding in verdict.findings)
