"""What a refusal recommends is run as it is printed: it ends in verdicts, and sends nobody on to a third recipe."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from conftest import Project

from pytest_qat.diagnosis import recipes

RECIPES = tuple(name for name, package in (
    ("fx-x86", "torch"), ("eager-x86", "torch"), ("pt2e-executorch", "executorch"))
    if importlib.util.find_spec(package))
FIRST = ("-k", "prepare or convert or coverage", "--qat-diagnose=auto", "--qat-diagnose-time=120")
COMMAND = re.compile(r"run: (pytest .*?--qat-recipe=(\S+))")
MODELS = Path(__file__).parents[2] / "fixtures" / "refused.py"


@pytest.mark.slow
@pytest.mark.parametrize("function", ["residual", "branching", "volume"])
def test_a_recommended_command_ends_in_verdicts(project: Project, monkeypatch: pytest.MonkeyPatch,
                                                function: str) -> None:
    monkeypatch.setattr(recipes, "_CANDIDATES", RECIPES)
    asked = ["torchao-int8", *RECIPES] if function == "residual" else RECIPES
    first = project.run(f"--qat-model={MODELS}:{function}", *(f"--qat-recipe={name}" for name in asked), *FIRST)
    refusals = first.stdout.str().count("tried: ")
    commands = {recipe: command for command, recipe in COMMAND.findall(first.stdout.str())}
    assert refusals, "this model is here because some recipe refuses it"
    assert commands, first.stdout.str()
    for recipe, command in commands.items():
        again = project.run(*shlex.split(command)[1:], *FIRST)
        again.assert_outcomes(passed=3)
        assert not COMMAND.search(again.stdout.str()), f"{recipe} sends on"
