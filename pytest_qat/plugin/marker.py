"""`@pytest.mark.qat(...)`: read, checked, and turned into what a run needs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

import pytest

from pytest_qat.errors import InvalidOption
from pytest_qat.recipe import get_recipe
from pytest_qat.record.keys import ModelSource
from pytest_qat.tolerances import Tolerances

__all__ = ["MarkerArguments", "read_marker"]

_TOLERANCES = tuple(field.name for field in fields(Tolerances))
_KNOWN = ("model", "recipe", *_TOLERANCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerArguments:
    """What a marker says.

    Attributes:
        source: The model: a reference, or an object (a QATCase, a module, a function that returns one) with a name
            that is the same in every process.
        recipe: Recipe name, or None.
        tolerances: Only the tolerances that were given, parsed.
    """

    source: ModelSource
    recipe: str | None
    tolerances: dict[str, float]


def read_marker(item: pytest.Item) -> MarkerArguments | None:
    """Return the arguments of the `qat` markers around a test, the closest winning, or None without one.

    Raises:
        InvalidOption: positional or unknown arguments, no model, or a value that makes no sense.
    """
    arguments: dict[str, Any] = {}
    markers = list(item.iter_markers("qat"))
    for marker in reversed(markers):
        if marker.args:
            raise InvalidOption(f"@pytest.mark.qat of {item.name} got the positional argument {marker.args[0]!r}.",
                                hint='Name it: @pytest.mark.qat(model="package.module:function").')
        arguments.update(marker.kwargs)
    if not markers:
        return None
    unknown = [name for name in arguments if name not in _KNOWN]
    if unknown:
        near = difflib.get_close_matches(unknown[0], _KNOWN, n=1)
        raise InvalidOption(f"@pytest.mark.qat of {item.name} has no argument {unknown[0]!r}; known are "
                            f"{', '.join(_KNOWN)}.", hint=f"Did you mean {near[0]}?" if near else "Remove it.")
    if arguments.get("model") is None:
        raise InvalidOption(f"@pytest.mark.qat of {item.name} names no model.",
                            hint='Add model="package.module:function".')
    recipe = arguments.get("recipe")
    if recipe is not None:
        get_recipe(recipe)
    given = {name: arguments[name] for name in _TOLERANCES if arguments.get(name) is not None}
    parsed = Tolerances(**given)
    return MarkerArguments(source=_source(arguments["model"], item), recipe=recipe,
                           tolerances={name: getattr(parsed, name) for name in given})


def _source(model: Any, item: pytest.Item) -> ModelSource:
    return ModelSource(model) if isinstance(model, str) else ModelSource(_name(model, item), given=model)


def _name(model: Any, item: pytest.Item) -> str:
    name: str = getattr(model, "__qualname__", "<>")
    if "<" not in name:  # neither a lambda nor made inside a function
        return f"{model.__module__}:{name}"
    module = getattr(item, "module", None)
    known = next((name for name, value in vars(module).items() if value is model), None) if module else None
    return f"{module.__name__}:{known}" if module and known else f"{type(model).__name__} of {item.nodeid}"
