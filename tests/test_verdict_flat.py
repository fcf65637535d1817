"""Outputs gone flat: what accuracy concludes from them."""

from __future__ import annotations

import pytest

from pytest_qat.measure.flat_outputs import FlatOutput
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, judge_accuracy
from tests.verdict_laws import accuracy


@pytest.mark.parametrize(("flat", "named"), [
    (FlatOutput(output="['boxes']", columns=(0, 1, 2), of=4, spread=1.25, left=0.0, values=1),
     "output ['boxes'][:, 0, 1, 2] (3 of 4)"),
    (FlatOutput(output="", columns=tuple(range(8)), of=80, spread=1.25, left=0.0, values=1),
     "the output[:, 0, 1, 2, 3, 4, ...] (8 of 80)"),
    (FlatOutput(output="[1]", columns=(0,), of=1, spread=1.25, left=0.0, values=1), "output [1]"),
])
def test_an_output_gone_flat_fails_and_is_named(flat: FlatOutput, named: str) -> None:
    found = judge_accuracy(accuracy(flat=(flat,)), Tolerances())
    assert found.outcome is Outcome.FAILED
    assert named in found.reasons[0]


@pytest.mark.parametrize(("kind", "relative", "drop", "outcome"), [
    ("agreement", 0.05, 0.0, Outcome.INCONCLUSIVE), ("agreement", 0.3, 0.0, Outcome.FAILED),
    ("metric", 0.05, 0.0, Outcome.FAILED), ("agreement", 0.05, 0.5, Outcome.FAILED),
])
def test_what_is_faint_in_float_already_is_inconclusive_where_there_is_only_agreement(
        kind: str, relative: float, drop: float, outcome: Outcome) -> None:
    flat = FlatOutput(output="", columns=(0,), of=10, spread=0.01, left=0.01, values=3, relative=relative)
    measured = accuracy(kind=kind, flat=(flat,), fp32=1.0, int8=1.0 - drop, drop=drop, drop_ci=(drop, drop + 0.001),
                        p_value=1.0 if drop == 0 else 1e-9)
    found = judge_accuracy(measured, Tolerances())
    assert found.outcome is outcome
    if outcome is Outcome.INCONCLUSIVE:
        assert "5.0%" in found.reasons[0]


@pytest.mark.parametrize(("why", "drop", "outcome"), [
    ("timm drew them", 0.5, Outcome.INCONCLUSIVE), ("", 0.5, Outcome.FAILED), ("timm drew them", 0.0, Outcome.PASSED),
])
def test_what_int8_does_to_random_weights_fails_nothing(why: str, drop: float, outcome: Outcome) -> None:
    measured = accuracy(kind="agreement", fp32=1.0, int8=1.0 - drop, drop=drop, drop_ci=(drop, drop + 0.001),
                        p_value=1.0 if drop == 0 else 1e-9, random_weights=why)
    found = judge_accuracy(measured, Tolerances())
    assert found.outcome is outcome
    assert ("random weights" in found.reasons[0]) is (outcome is Outcome.INCONCLUSIVE)


def test_an_output_gone_flat_of_random_weights_fails_nothing() -> None:
    flat = FlatOutput(output="", columns=(0,), of=10, spread=0.01, left=0.01, values=3, relative=0.5)
    found = judge_accuracy(accuracy(kind="agreement", flat=(flat,), random_weights="timm drew them"), Tolerances())
    assert found.outcome is Outcome.INCONCLUSIVE
