"""Where the shipped model runs: one module per runtime, found by name, imported only when a recipe asks for it."""

from __future__ import annotations

import importlib
from typing import cast

from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings, Kernel, Runtime

__all__ = ["DeploySettings", "Deployed", "DeployedPair", "Kernel", "Runtime", "load_runtime"]


def load_runtime(name: str) -> Runtime:
    """Import the runtime of this name."""
    return cast("Runtime", importlib.import_module(f"pytest_qat.runtimes.{name}"))
