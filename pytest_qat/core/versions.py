"""Versions of the packages that a result depends on. None of them is imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from importlib import metadata

__all__ = ["package_versions", "runtime_versions"]

_PACKAGES = ("pytest-qat", "torch", "torchvision", "torchao", "pytest", "pytest-xdist", "hypothesis", "scipy")
_RUNTIMES = ("executorch", "litert-torch", "ai-edge-litert", "onnx", "onnxscript", "onnxruntime")


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of those that it always needs, as far as they are installed."""
    return _installed(_PACKAGES)


def runtime_versions() -> dict[str, str]:
    """Return the versions of the optional runtimes' packages that are installed."""
    return _installed(_RUNTIMES)


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
