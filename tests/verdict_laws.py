"""What the tests of verdicts share: outcomes and their rank, tolerances of every kind, and what every verdict is."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

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


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


def is_whole(verdict: Verdict) -> None:
    """An outcome, sentences, and findings of plain JSON."""
    assert verdict.outcome in (PASSED, FAILED, INCONCLUSIVE)
    assert verdict.reasons
    assert all(reason.endswith(".") for reason in verdict.reasons)
    assert all(finding.message.endswith(".") for finding in verdict.findings)
