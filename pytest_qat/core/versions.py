"""Versions of the packages that a result depends on."""

from __future__ import annotations

import contextlib
from importlib import metadata

__all__ = ["package_versions"]

_PACKAGES = ("pytest-qat", "torch", "torchvision", "torchao", "pytest", "pytest-xdist", "hypothesis", "scipy")


def package_versions() -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
