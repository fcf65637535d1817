"""All laws, by family; each law defines which implementations it applies to."""

from __future__ import annotations

from typing import Any

from pytest_qat.errors import DataError
from pytest_qat.properties.law import Law
from pytest_qat.properties.laws import affine, channels, fake, inputs, integer, modules, observers, tensors, workflows

__all__ = ["LAWS", "get_law", "laws_for"]

LAWS: tuple[Law, ...] = (*affine.LAWS, *inputs.LAWS, *channels.LAWS, *fake.LAWS, *modules.LAWS, *observers.LAWS,
                         *integer.LAWS, *tensors.LAWS, *workflows.LAWS)


def laws_for(ops: Any) -> tuple[Law, ...]:
    """Return the laws that apply to an implementation."""
    return tuple(law for law in LAWS if law.applies(ops))


def get_law(name: str) -> Law:
    """Return the law with this name.

    Raises:
        DataError: there is no such law.
    """
    for law in LAWS:
        if law.name == name:
            return law
    raise DataError(f"no law is named {name!r}.", hint="The file is from another version; run --qat-ops again.")
