"""Advice that was tried: another recipe, and modules left in float; followed as it is printed, on the command line.

What calls an advice forth is run once in a world, and read again by what follows it.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from typing import Any

from pytest_qat.diagnosis import recipes
from tests.remedies.walk import Row, World

MODELS = """
class Residual(Net):
    def forward(self, x):
        y = self.relu(self.conv(x))
        return self.fc((y + y).mean((2, 3)))

def residual():
    return case(model=Residual().eval())

class Adds(nn.Module):
    def forward(self, x):
        return x + x

class Deep(Net):
    def __init__(self):
        super().__init__()
        self.adds = Adds()

    def forward(self, x):
        return self.fc(self.adds(self.relu(self.conv(x))).mean((2, 3)))

def deep(**changes):
    return case(model=Deep().eval(), **changes)
"""
TRY = ("--qat-diagnose=auto", "--qat-diagnose-time=60")
FIRST = "prepare or convert or coverage"


def run(world: World, *arguments: str) -> Any:
    """Run the first checks; of all recipes one is tried, for some of the others take half a minute."""
    if recipes._CANDIDATES:
        world.patch.setattr(recipes, "_CANDIDATES", ("fx-x86",))
    return world.project.run(*arguments, *TRY, "-k", FIRST)


@cache
def refused(world: World) -> Any:
    world.project.add(MODELS)
    return run(world, "--qat-model=models:residual", "--qat-recipe=eager-x86")


def as_printed(world: World) -> object:
    """Run the command that the refusal ends with."""
    command = re.search(r"run: (pytest .*--qat-recipe=\S+)", refused(world).stdout.str())
    assert command is not None
    return run(world, *shlex.split(command[1])[1:])


@cache
def unskipped(world: World) -> Any:
    """Fail where no other recipe is tried, so that what is left is to leave the module in float."""
    world.patch.setattr(recipes, "_CANDIDATES", ())
    world.project.add(MODELS)
    return run(world, "--qat-model=models:deep", "--qat-recipe=eager-x86")


def skipped(world: World) -> object:
    change = re.search(r"give the QATCase (skip=\(.*?\))\.", unskipped(world).stdout.str())
    assert change is not None
    world.project.add(f"{MODELS}\ndef mended():\n    return deep({change[1]})\n")
    return run(world, "--qat-model=models:mended", "--qat-recipe=eager-x86")


@cache
def marked(world: World, recipe: str) -> Any:
    world.project.add(MODELS)
    (world.project.path / "test_marked.py").write_text(
        "import pytest\nfrom models import case, Residual\n\nMODEL = case(model=Residual().eval())\n\n"
        f'@pytest.mark.qat(model=MODEL, recipe="{recipe}")\n'
        "def test_model(qat_run):\n    qat_run.assert_coverage(at_least=0.1)\n")
    world.patch.setattr(recipes, "_CANDIDATES", ("fx-x86",))
    return world.project.run("test_marked.py", *TRY)


def as_marker_says(world: World) -> object:
    recipe = re.search(r'give the marker recipe="([\w-]+)"', marked(world, "eager-x86").stdout.str())
    assert recipe is not None
    return marked(world, recipe[1])


def own(world: World, given: str) -> None:
    world.project.add(f"def own():\n    net = case().model\n    return case(model=net{given})\n")


@cache
def brings_its_own(world: World) -> Any:
    """Check a case that brings a float model as its converted one."""
    own(world, ", converted=net")
    return run(world, "--qat-model=models:own")


def left_out(world: World) -> object:
    advice = re.search(r"leave converted= out of the QATCase and run: (pytest .*--qat-recipe=\S+)",
                       brings_its_own(world).stdout.str())
    assert advice is not None
    own(world, "")
    return run(world, *shlex.split(advice[1])[1:])


@cache
def without_time(world: World) -> Any:
    world.project.add(MODELS)
    world.patch.setattr(recipes, "_CANDIDATES", ("fx-x86",))
    return world.project.run("--qat-model=models:residual", "--qat-recipe=eager-x86", "--qat-diagnose=auto",
                             "--qat-diagnose-time=0.001", "-k", FIRST)


def with_time(world: World) -> object:
    option = re.search(r"give (--qat-diagnose-time=\d+)", without_time(world).stdout.str())
    assert option is not None
    found = world.project.run("--qat-model=models:residual", "--qat-recipe=eager-x86", "--qat-diagnose=auto", option[1],
                              "-k", FIRST)
    assert "fx-x86 takes it" in found.stdout.str()
    return found


PATH = "diagnosis/recipes.py"
RECIPE_ROWS = [
    Row(path=PATH, text="run: {} --qat-recipe={}", calls=refused, follow=as_printed, slow=True),
    Row(path=PATH, text="give --qat-diagnose-time={}", calls=without_time, follow=with_time,
        then="fx-x86 takes it", slow=True),
    Row(path=PATH, text="give the QATCase {}.", calls=unskipped, follow=skipped, slow=True),
    Row(path=PATH, text='give the marker recipe="{}".', calls=lambda world: marked(world, "eager-x86"),
        follow=as_marker_says, slow=True),
    Row(path=PATH, text="leave {} out of the QATCase and", calls=brings_its_own, follow=left_out, slow=True),
]
