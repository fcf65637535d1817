"""`.ci/run` installs and tests as the README prints it, with the checks between, and stops at the first that fails."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from docs.blocks import REPOSITORY, blocks_of

TOOLS = ("pip", "ruff", "mypy", "pytest", "mkdocs")


def run_ci(tmp_path: Path, *, failing: str = "") -> tuple[int, list[str]]:
    """Run `.ci/run` with tools that only write down how they were called."""
    tree = tmp_path / "tree"
    (tree / ".ci").mkdir(parents=True)
    shutil.copy(REPOSITORY / ".ci" / "run", tree / ".ci" / "run")
    shutil.copy(REPOSITORY / "README.md", tree)
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    scripts = {name: f'echo "{name} $*" >> {log}\n[ "{name}" != "{failing}" ]\n' for name in TOOLS}
    scripts["python3"] = f'mkdir -p "$3/bin"; touch "$3/bin/activate"; echo "python $1 $2" >> {log}\n'
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{script}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": os.pathsep.join((str(folder), os.environ["PATH"]))}
    status = subprocess.run([tree / ".ci" / "run"], env=environment, check=False, timeout=60,
                            stdout=subprocess.DEVNULL).returncode
    return status, log.read_text().splitlines()


def printed_commands() -> list[str]:
    (block,) = (block for block in blocks_of(REPOSITORY / "README.md") if "tests" in block.comments)
    return block.text.splitlines()


def test_the_readme_prints_installation_and_tests_as_two_lines() -> None:
    install, suite = printed_commands()
    assert install.startswith("pip install ")
    assert suite.startswith("pytest ")


def test_every_step_is_taken_in_order(tmp_path: Path) -> None:
    install, suite = (command.replace('"', "") for command in printed_commands())
    status, calls = run_ci(tmp_path)
    assert status == 0
    assert [re.sub(r" --site-dir \S+", "", call) for call in calls] == [
        "python -m venv", install, "ruff check .", "mypy ", "pytest -q tests/test_architecture.py",
        "mkdocs build --strict --quiet", suite, "pytest -n 2 -m slow"]


@pytest.mark.parametrize("failing", TOOLS)
def test_a_step_that_fails_ends_the_run(tmp_path: Path, failing: str) -> None:
    status, calls = run_ci(tmp_path, failing=failing)
    assert status != 0
    assert calls[-1].partition(" ")[0] == failing
    assert [call.partition(" ")[0] for call in calls].count(failing) == 1
