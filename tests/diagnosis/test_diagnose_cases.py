"""The diagnosis names the cause of each case and says nothing of healthy models."""

from __future__ import annotations

from typing import Any

import pytest

from fixtures.cases import CASES, HEALTHY, Case, Healthy, Stages
from pytest_qat import diagnose

pytestmark = pytest.mark.slow
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def complaints(stages: Stages) -> list[Any]:
    """The errors and warnings of a diagnosis, in its order."""
    findings = diagnose(**stages.arguments()).findings
    return [finding for finding in findings if finding.severity in ("error", "warning")]


@each_case
def test_cause_is_named(case: Case) -> None:
    found = complaints(case.build(broken=True))
    assert found, "nothing was found"
    assert found[0].code in case.code, [(each.code, each.module) for each in found]
    if case.module is not None:
        assert found[0].module == case.module


@each_case
def test_healthy_twins_are_silent(case: Case) -> None:
    assert [(each.code, each.module) for each in complaints(case.build(broken=False))] == []


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_healthy_models_are_silent(case: Healthy) -> None:
    assert [(each.code, each.module) for each in complaints(case.build())] == []
