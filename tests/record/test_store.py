"""Records of one session, merged from what single tests report."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.record.store import RecordStore

WORST_LAST = ("passed", "blocked", "inconclusive", "failed")
FINDING = {"code": "seen", "severity": "note", "module": "fc", "message": "it is so.", "remedy": "", "evidence": {}}


def record(*, model: str = "zoo:net", recipe: str = "fx-x86", **changes: Any) -> dict[str, Any]:
    return {"model": model, "recipe": recipe, "batch": None, "fine_tuning": None,
            "metrics": {"accuracy": None, "size_bytes": None}, "checks": {}, "findings": [], "diagnosis": None,
            **changes}


def check(outcome: str, reason: str = "") -> dict[str, Any]:
    return {"outcome": outcome, "reasons": [reason]}


def merged(*records: dict[str, Any]) -> list[dict[str, Any]]:
    store = RecordStore()
    for each in records:
        store.add(each)
    return store.runs


def test_an_empty_session_is_a_document_too() -> None:
    assert RecordStore().document() == {"schema_version": 2, "environment": {}, "runs": [], "rankings": [],
                                        "errors": []}


def test_runs_stay_in_the_order_in_which_they_were_first_seen() -> None:
    runs = merged(record(model="b"), record(model="a"), record(model="b", recipe="eager-x86"), record(model="b"))
    assert [(run["model"], run["recipe"]) for run in runs] == [("b", "fx-x86"), ("a", "fx-x86"), ("b", "eager-x86")]


def test_later_metrics_fill_gaps() -> None:
    [run] = merged(record(metrics={"accuracy": {"int8": 0.9}, "size_bytes": None}),
                   record(metrics={"accuracy": None, "size_bytes": {"int8": 5}}))
    assert run["metrics"] == {"accuracy": {"int8": 0.9}, "size_bytes": {"int8": 5}}


def test_a_metric_that_was_measured_again_is_the_later_one() -> None:
    [run] = merged(record(metrics={"size_reduction": 2.0}), record(metrics={"size_reduction": 3.0}))
    assert run["metrics"] == {"size_reduction": 3.0}


def test_a_metric_of_zero_is_a_measurement() -> None:
    [run] = merged(record(metrics={"drop": 0.1}), record(metrics={"drop": 0.0}))
    assert run["metrics"] == {"drop": 0.0}


@pytest.mark.parametrize("field", ["batch", "fine_tuning", "diagnosis"])
def test_what_a_test_did_not_learn_does_not_erase_what_another_did(field: str) -> None:
    [run] = merged(record(**{field: 8}), record())
    assert run[field] == 8
    [run] = merged(record(), record(**{field: 8}))
    assert run[field] == 8


@pytest.mark.parametrize(("first", "second"), list(itertools.product(WORST_LAST, repeat=2)))
def test_the_worst_outcome_of_a_check_stays(first: str, second: str) -> None:
    [run] = merged(record(checks={"size": check(first, "1")}), record(checks={"size": check(second, "2")}))
    worse_is_second = WORST_LAST.index(second) >= WORST_LAST.index(first)
    assert run["checks"] == {"size": check(second, "2") if worse_is_second else check(first, "1")}


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORST_LAST), min_size=1, max_size=6))
def test_the_outcome_does_not_depend_on_the_order_of_the_reports(outcomes: list[str]) -> None:
    [run] = merged(*(record(checks={"size": check(outcome)}) for outcome in outcomes))
    assert run["checks"]["size"]["outcome"] == max(outcomes, key=WORST_LAST.index)


def test_checks_of_different_tests_come_together() -> None:
    [run] = merged(record(checks={"size": check("passed")}), record(checks={"accuracy": check("failed")}))
    assert {name: entry["outcome"] for name, entry in run["checks"].items()} == {"size": "passed", "accuracy": "failed"}


def test_checks_stand_in_their_documented_order_whichever_test_came_first() -> None:
    [run] = merged(record(checks={"size": check("passed"), "prepare": check("passed")}),
                   record(checks={"accuracy": check("failed"), "convert": check("passed")}))
    assert list(run["checks"]) == ["prepare", "convert", "accuracy", "size"]


def test_a_finding_that_two_tests_report_is_kept_once() -> None:
    other = {**FINDING, "module": "head"}
    [run] = merged(record(findings=[FINDING]), record(findings=[copy.deepcopy(FINDING), other]))
    assert run["findings"] == [FINDING, other]


def test_a_report_that_was_merged_is_left_as_it_was() -> None:
    first = record(checks={"size": check("passed")}, findings=[FINDING])
    before = copy.deepcopy(first)
    later = {"size": check("failed"), "accuracy": check("passed")}
    merged(first, record(checks=later, findings=[{**FINDING, "code": "x"}]))
    assert first == before


def test_the_document_holds_environment_runs_and_models_that_did_not_load() -> None:
    store = RecordStore()
    store.environment = {"python": "3.11"}
    store.add(record())
    store.add_error("zoo:missing", "no such function")
    document = store.document()
    assert document["environment"] == {"python": "3.11"}
    assert [run["model"] for run in document["runs"]] == ["zoo:net"]
    assert document["errors"] == [{"model": "zoo:missing", "message": "no such function"}]
    assert json.loads(json.dumps(document)) == document


def test_lists_that_were_handed_out_are_not_the_store_s_own() -> None:
    store = RecordStore()
    store.add(record())
    store.runs.clear()
    store.errors.append({"model": "x", "message": ""})
    assert len(store.runs) == 1
    assert store.errors == []
