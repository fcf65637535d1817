"""What scores say about causes: each where there is something to see, and none where there is not."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.diagnosis.scores import causes_of_scores
from pytest_qat.findings import Finding
from pytest_qat.finetune import FineTuning
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.flat_outputs import FlatOutput
from tests.verdict_laws import ANY, STABLE, accuracies, accuracy, wild_accuracies


def causes(measured: Accuracy, fine_tuning: FineTuning | None = None, *,
           higher_is_better: bool = True) -> tuple[Finding, ...]:
    return causes_of_scores(measured, fine_tuning, higher_is_better=higher_is_better, tolerance=0.01)


def codes(found: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in found]


FINE_TUNINGS = st.none() | st.builds(FineTuning, kind=st.just("data"), steps=st.just(1),
                                     first_loss=st.none() | ANY, last_loss=st.none() | ANY | st.just(math.nan))


@pytest.mark.parametrize(("changes", "higher_is_better", "expected"), [
    ({}, True, []),
    ({}, False, []),
    ({"int8": 0.85, "drop": 0.05, "p_value": 0.01}, True, []),
    ({"drop": -0.05, "p_value": 0.05}, True, []),
    ({"int8": 0.8, "fine_tuned_p_value": 0.01}, True, ["lost-in-conversion"]),
    ({"int8": 0.8, "fine_tuned_p_value": 0.5}, True, []),
    ({"int8": 0.95, "fine_tuned_p_value": 0.01}, True, []),
    ({"int8": 0.95, "fine_tuned_p_value": 0.01}, False, ["lost-in-conversion"]),
    ({"int8": 0.8, "fine_tuned": None, "fine_tuned_p_value": None}, True, []),
    ({"int8": 0.8, "ptq_p_value": 0.01, "fine_tuned_p_value": 0.01}, True, ["qat-below-ptq", "lost-in-conversion"]),
    ({"drop": -0.05, "p_value": 0.01}, True, ["suspicious-gain"]),
    ({"drop": -0.05, "p_value": 0.5}, True, []),
    ({"int8": 0.8, "ptq": 0.9, "ptq_p_value": 0.01}, True, ["qat-below-ptq"]),
    ({"int8": 0.8, "ptq": 0.9, "ptq_p_value": 0.5}, True, []),
    ({"int8": 0.9, "ptq": 0.8, "ptq_p_value": 0.01}, True, []),
    ({"int8": 0.9, "ptq": 0.8, "ptq_p_value": 0.01}, False, ["qat-below-ptq"]),
    ({"int8": 0.8, "ptq": None, "ptq_p_value": None}, True, []),
    ({"kind": "agreement", "sqnr_db": 31.0}, True, ["agreement-only"]),
    # too small to matter, however significant
    ({"int8": 0.896, "fine_tuned_p_value": 1e-9}, True, []),
    ({"int8": 0.896, "ptq_p_value": 1e-9}, True, []),
    ({"drop": -0.004, "int8": 0.904, "p_value": 1e-9}, True, []),
    ({"fp32": 20.0, "int8": 19.99, "fine_tuned": 20.0, "fine_tuned_p_value": 1e-9, "is_fraction": False}, True, []),
    # the smaller part of the drop
    ({"int8": 0.5, "drop": 0.4, "p_value": 1e-9, "fine_tuned": 0.6, "fine_tuned_p_value": 1e-9}, True, []),
    ({"int8": 0.5, "drop": 0.4, "p_value": 1e-9, "fine_tuned": 0.8, "fine_tuned_p_value": 1e-9}, True,
     ["lost-in-conversion"]),
    ({"int8": 0.5, "drop": 0.4, "p_value": 1e-9, "ptq": 0.6, "ptq_p_value": 1e-9, "fine_tuned": 0.5}, True, []),
])
def test_observations_go_along_only_where_there_is_something_to_see(changes: dict, higher_is_better: bool,
                                                                    expected: list[str]) -> None:
    assert codes(causes(accuracy(**changes), higher_is_better=higher_is_better)) == expected


def test_a_gain_too_good_is_told_with_its_size() -> None:
    [finding] = causes(accuracy(drop=-0.05, int8=0.95, p_value=0.01))
    assert finding.severity == "warning"
    assert "5.00% better than float" in finding.message
    assert finding.evidence == {"p_value": 0.01}
    assert finding.remedy


WORSE = {"int8": 0.8, "ptq": 0.9, "ptq_p_value": 0.01}
ROSE = FineTuning(kind="data", steps=100, first_loss=0.5, last_loss=2.5)
FELL = FineTuning(kind="data", steps=100, first_loss=2.5, last_loss=0.5)


@pytest.mark.parametrize(("changes", "fine_tuning", "part"), [
    ({"fine_tuned": 0.8}, ROSE, "from 0.5 to 2.5"),
    ({"fine_tuned": 0.95, "fine_tuned_p_value": 0.5}, ROSE, "from 0.5 to 2.5"),
    ({"fine_tuned": 0.95, "fine_tuned_p_value": 0.5}, FELL, "95.00%"),
    ({"fine_tuned": 0.9}, None, "itself scores 90.00%"),
    ({"fine_tuned": 0.8}, FELL, "90.00% without (p = 0.01)."),
    ({"fine_tuned": 0.8}, None, "90.00% without (p = 0.01)."),
    ({"fine_tuned": None}, FineTuning(kind="own"), "90.00% without (p = 0.01)."),
    ({"fine_tuned": None}, FineTuning(kind="data", steps=1, first_loss=1.0), "(p = 0.01)."),
    ({"fine_tuned": 0.8, "drop": 0.1, "p_value": 0.01}, FELL, "100% of the drop"),
])
def test_fine_tuning_that_made_it_worse_is_explained_by_what_is_known(
        changes: dict, fine_tuning: FineTuning | None, part: str) -> None:
    found = causes(accuracy(**{**WORSE, **changes}), fine_tuning)
    [finding] = [each for each in found if each.code == "qat-below-ptq"]
    assert finding.severity == "warning"
    assert "80.00% after it, 90.00% without" in finding.message
    assert part in finding.message
    assert finding.message.endswith(".")
    assert "90.00%" in finding.remedy
    assert finding.evidence == {"p_value": 0.01, "share_of_drop": 1.0 if "drop" in changes else None,
                                "first_loss": fine_tuning.first_loss if fine_tuning else None,
                                "last_loss": fine_tuning.last_loss if fine_tuning else None}


@pytest.mark.parametrize(("fine_tuned", "part"), [(0.4, "itself scores 40.00%"), (0.8, "(p = 0.01).")])
def test_where_lower_is_better_a_good_fine_tuned_model_is_one_with_a_low_score(fine_tuned: float, part: str) -> None:
    measured = accuracy(fp32=0.5, int8=0.8, ptq=0.5, ptq_p_value=0.01, fine_tuned=fine_tuned)
    [finding] = causes(measured, higher_is_better=False)
    assert finding.code == "qat-below-ptq"
    assert part in finding.message


def test_a_simulated_control_is_compared_with_the_simulated_fine_tuned_model() -> None:
    """Lowering lost it: the control, which was not lowered, would have lost the same."""
    measured = accuracy(fp32=0.95, int8=0.4, drop=0.55, p_value=1e-9, ptq=0.945, fine_tuned=0.95, ptq_p_value=0.5,
                        fine_tuned_p_value=1e-9, ptq_simulated=True)
    assert [finding.code for finding in causes(measured)] == ["lost-in-conversion"]
    worse = dataclasses.replace(measured, fine_tuned=0.6, ptq_p_value=1e-9)
    below = causes(worse)[0]
    assert below.code == "qat-below-ptq"
    assert "60.00% after it, 94.50% without, both with fake-quantize" in below.message


def test_what_conversion_lost_is_told_with_both_scores() -> None:
    [finding] = causes(accuracy(int8=0.8, fine_tuned_p_value=0.01))
    assert "scores 90.00% with fake-quantize, but 80.00% once converted" in finding.message
    assert finding.severity == "warning"


def test_scores_on_another_scale_are_not_told_in_percent() -> None:
    measured = accuracy(fp32=31.0, int8=28.5, ptq=30.25, ptq_p_value=0.01, fine_tuned=30.5, fine_tuned_p_value=0.01,
                        is_fraction=False)
    messages = " ".join(found.message for found in causes(measured))
    assert "28.5 after it, 30.25 without" in messages
    assert "scores 30.5 with fake-quantize" in messages
    assert "%" not in messages


def test_an_agreement_tells_that_it_is_no_accuracy() -> None:
    [finding] = causes(accuracy(kind="agreement", sqnr_db=math.inf))
    assert (finding.code, finding.severity, finding.evidence) == ("agreement-only", "note", {"sqnr_db": None})
    assert "eval_data" in finding.remedy


@STABLE
@given(accuracies(), st.booleans())
def test_scores_that_agree_within_their_noise_give_no_findings(measured: Accuracy, higher_is_better: bool) -> None:
    calm = dataclasses.replace(measured, kind="metric", p_value=1.0, ptq_p_value=1.0, fine_tuned_p_value=1.0)
    assert causes(calm, higher_is_better=higher_is_better) == ()


def test_what_was_not_trained_is_not_blamed_on_training() -> None:
    found = causes(accuracy(int8=0.8, ptq=0.9, ptq_p_value=0.01), FineTuning(kind="none"))
    assert "qat-below-ptq" not in codes(found)


@STABLE
@given(accuracies() | wild_accuracies(), FINE_TUNINGS, st.booleans())
def test_every_cause_is_a_sentence_and_plain_json(measured: Accuracy, fine_tuning: FineTuning | None,
                                                  higher_is_better: bool) -> None:
    found = causes(measured, fine_tuning, higher_is_better=higher_is_better)
    assert all(finding.message.endswith(".") for finding in found)
    assert {finding.code for finding in found} <= {"suspicious-gain", "qat-below-ptq", "lost-in-conversion",
                                                   "agreement-only"}


@STABLE
@given(accuracies(), st.booleans())
def test_numbers_of_a_cause_are_numbers_in_json(measured: Accuracy, higher_is_better: bool) -> None:
    json.dumps([finding.as_dict() for finding in causes(measured, higher_is_better=higher_is_better)], allow_nan=False)


# -- outputs gone flat ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flat", "numbers"), [
    (FlatOutput(output="['boxes']", columns=(0, 1, 2), of=4, spread=1.25, left=0.0, values=1),
     ("output ['boxes'][:, 0, 1, 2] (3 of 4)", "1.25", "1 distinct value:")),
    (FlatOutput(output="[1]", columns=(0,), of=1, spread=1.25, left=0.5, values=3),
     ("output [1]", "by 0.5", "3 distinct values:")),
])
def test_an_output_gone_flat_is_told_with_what_is_left_of_it(flat: FlatOutput, numbers: tuple[str, ...]) -> None:
    [finding] = causes(accuracy(flat=(flat,)))
    assert (finding.code, finding.severity) == ("flat-output", "error")
    assert all(number in finding.message for number in numbers)
    assert finding.evidence["columns"] == list(flat.columns)


@pytest.mark.parametrize(("kind", "relative", "severity"), [
    ("agreement", 0.05, "warning"), ("agreement", 0.3, "error"), ("metric", 0.05, "error"),
])
def test_an_output_that_is_faint_in_float_is_only_a_warning_without_evaluation_data(kind: str, relative: float,
                                                                                   severity: str) -> None:
    flat = FlatOutput(output="", columns=(0,), of=10, spread=0.01, left=0.01, values=3, relative=relative)
    found = causes(accuracy(kind=kind, flat=(flat,)))
    assert [each.severity for each in found if each.code == "flat-output"] == [severity]
