"""Run models through recipes as a user does, many in one session, and keep what is recorded of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CASES = Path(__file__).parent / "cases"


def run_models(folder: Path, recipe: str, references: list[str], *options: str) -> dict[str, dict[str, Any]]:
    """Return the record of each model, by its reference; the session's text is kept in the folder.

    Warnings are errors, as in many projects: none of torch's may fail a check. No memory is measured: nothing asks for
    it, and it takes two processes for each model.
    """
    strict = "[pytest]\nfilterwarnings =\n  error\n  ignore:.*CallSpec2.*\n"  # the latter is of a plugin of zeus's
    (folder / "pytest.ini").write_text(strict, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", f"--qat-recipe={recipe}", "--qat-json=qat.json",
               "--qat-max-time=1", "--qat-memory=off", "--qat-diagnose=off", "--qat-stage-timeout=240", "-p",
               "no:randomly",
               *(f"--qat-model={reference}" for reference in references), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(CASES)])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500,
                          check=False)
    (folder / "output.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout
    document = json.loads((folder / "qat.json").read_text(encoding="utf-8"))
    assert document["errors"] == []
    return {run["model"]: run for run in document["runs"]}


def outcomes(run: Mapping[str, Any]) -> dict[str, str]:
    return {name: check["outcome"] for name, check in run["checks"].items()}


def texts(run: Mapping[str, Any]) -> str:
    """All that is said about a run."""
    said = [reason for check in run["checks"].values() for reason in check["reasons"]]
    said += [f"{found['module'] or ''} {found['message']} {found['remedy'] or ''}" for found in run["findings"]]
    return "\n".join(said)
