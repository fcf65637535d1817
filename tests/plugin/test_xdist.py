"""The same verdicts and record with and without pytest-xdist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project

TWO = '''
def other():
    return case(name="Other", skip=("fc",))
'''


def verdicts(project: Project, name: str) -> dict[tuple[str, str], Any]:
    document = json.loads((project.path / name).read_text())
    assert document["environment"]["packages"]["torch"]
    return {(run["model"], run["recipe"]): {
        "checks": {check: entry["outcome"] for check, entry in run["checks"].items()},
        "findings": run["findings"], "tolerances": run["tolerances"], "size": run["metrics"]["size_bytes"],
        "coverage": run["metrics"]["coverage"],
        "accuracy": (run["metrics"]["accuracy"]["fp32"], pytest.approx(run["metrics"]["accuracy"]["int8"], abs=0.02)),
    } for run in document["runs"]}


@pytest.mark.slow
def test_two_workers_give_the_same_record_as_none(project: Project) -> None:
    project.add(TWO)
    arguments = ("--qat-model=models:good", "--qat-model=models:other")
    project.subprocess(*arguments, "--qat-json=alone.json").assert_outcomes(passed=16)
    result = project.subprocess(*arguments, "--qat-json=two.json", "-n", "2")
    result.assert_outcomes(passed=16)
    assert verdicts(project, "two.json") == verdicts(project, "alone.json")
    result.stdout.fnmatch_lines(["Net [[]fx-x86[]]*", "Other [[]fx-x86[]]*"])
    assert not [line for line in result.outlines if "fine-tuning" in line and not line.startswith("qat: gw")]


@pytest.mark.slow
def test_the_checks_of_one_model_stay_on_one_worker(project: Project) -> None:
    project.add(TWO)
    result = project.subprocess("--qat-model=models:good", "--qat-model=models:other", "-n", "2", "-v",
                                "-k", "prepare or convert or coverage")
    result.assert_outcomes(passed=6)
    workers = {line.split("]")[0]: line for line in result.outlines if line.startswith("[gw") and "models:good" in line}
    assert len(workers) == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_an_error_on_workers_too(project: Project) -> None:
    result = project.subprocess("--qat-model=models:nothing", "--qat-model=models:good", "-n", "2",
                                "-k", "prepare", "--continue-on-collection-errors", "--qat-json=qat.json")
    text = result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in text
    assert "models has no attribute 'nothing'" in text
    assert result.ret != 0
    assert [error["model"] for error in json.loads((project.path / "qat.json").read_text())["errors"]] == [
        "models:nothing"]
