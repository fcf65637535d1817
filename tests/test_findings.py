"""Findings as dicts and as lines."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pytest_qat.findings import Finding


def finding(**changes: object) -> Finding:
    fields = {"code": "bad-scale", "severity": "error", "module": "layer.fc", "message": "the scale is zero.",
              "remedy": "calibrate.", "evidence": {"scale": 0.0}}
    return Finding(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_dict_holds_the_fields_in_the_order_of_the_report() -> None:
    assert list(finding().as_dict().items()) == [
        ("code", "bad-scale"), ("severity", "error"), ("module", "layer.fc"), ("message", "the scale is zero."),
        ("remedy", "calibrate."), ("evidence", {"scale": 0.0})]


def test_a_dict_survives_json() -> None:
    assert json.loads(json.dumps(finding().as_dict())) == finding().as_dict()


def test_changing_a_dict_leaves_the_finding_alone() -> None:
    made = finding()
    made.as_dict()["evidence"]["scale"] = 1.0
    assert made.evidence == {"scale": 0.0}


def test_a_note_needs_no_more_than_code_severity_and_message() -> None:
    made = Finding(code="seen", severity="note", message="it is so.")
    assert made.as_dict() == {"code": "seen", "severity": "note", "module": None, "message": "it is so.", "remedy": "",
                              "evidence": {}}


def test_a_finding_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding().code = "other"  # type: ignore[misc]
