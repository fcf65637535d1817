"""A recipe: how a model is quantized (workflow, engine) and where it runs (runtime), under one name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pytest_qat.errors import UnknownRecipe

__all__ = ["DEFAULT_RECIPE", "RECIPES", "Recipe", "get_recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One named way from a float model to what ships.

    Attributes:
        name: The name on the command line and in the report.
        workflow: Module of `pytest_qat.workflows` that prepares and converts.
        runtime: Module of `pytest_qat.runtimes` that runs the artefact.
        engine: torch's quantized engine (`torch.backends.quantized.engine`).
    """

    name: str
    workflow: str
    runtime: str
    engine: str


_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")

RECIPES: Mapping[str, Recipe] = MappingProxyType({
    f"{workflow}-{engine}": Recipe(name=f"{workflow}-{engine}", workflow=workflow, runtime="torch", engine=engine)
    for workflow in ("fx", "eager")
    for engine in _ENGINES
})

DEFAULT_RECIPE = "fx-x86"


def get_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        UnknownRecipe: there is none; the message lists near matches and all names.
    """
    try:
        return RECIPES[name]
    except KeyError:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Choose one of them, or all."
        raise UnknownRecipe(f"no recipe is named {name!r}; known are {', '.join(RECIPES)}.", hint=hint) from None
