"""How a model is quantized: one module per workflow, found by name.

A workflow is a module with `prepare`, `convert` and `float_twin` (see `base.Workflow`); it is imported only when a
recipe asks for it, so that a stack that is gone upstream breaks its own recipes and nothing else.
"""

from __future__ import annotations

import importlib
from typing import cast

from pytest_qat.errors import MissingPackage
from pytest_qat.workflows.base import ConvertedModel, PreparedModel, Workflow

__all__ = ["ConvertedModel", "PreparedModel", "Workflow", "load_workflow"]


def load_workflow(name: str) -> Workflow:
    """Import the workflow of this name.

    Raises:
        MissingPackage: the packages it stands on are not here.
    """
    try:
        return cast("Workflow", importlib.import_module(f"pytest_qat.workflows.{name}"))
    except ImportError as error:
        raise MissingPackage(
            f"the {name} workflow needs a module that does not import here: {error}.",
            hint="Choose a recipe of another workflow, or install the release of torch that has it.") from error
