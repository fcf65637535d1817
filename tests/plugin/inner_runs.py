"""What an inner run said and recorded, as the tests of bad input read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project


def recorded(project: Project, function: str) -> dict[str, Any]:
    runs = json.loads((project.path / "qat.json").read_text())["runs"]
    [run] = [run for run in runs if run["model"] == f"models:{function}"]
    return dict(run)


def everything(result: pytest.RunResult) -> str:
    text = " ".join(" ".join([*result.outlines, *result.errlines]).split())
    assert "INTERNALERROR" not in text
    return text
