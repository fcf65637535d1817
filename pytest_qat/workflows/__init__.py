"""How a model is quantized: one module per workflow, found by name.

A workflow is a module that satisfies `base.Workflow`. It is imported only when a recipe asks for it, so that what
upstream removes breaks the recipes that need it and no others.
"""

from __future__ import annotations

from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.errors import MissingPackage
from pytest_qat.recipe import WorkflowName
from pytest_qat.workflows.base import ConvertedModel, PreparedModel, Workflow

__all__ = ["ConvertedModel", "PreparedModel", "Workflow", "load_workflow"]


def load_workflow(name: WorkflowName) -> Workflow:
    """Import the workflow of this name.

    Raises:
        MissingPackage: a module that it needs cannot be imported.
    """
    try:
        with quiet_loggers():
            return _import(name)
    except ImportError as error:
        raise MissingPackage(
            f"the {name} workflow needs a module that cannot be imported here: {error}.") from error


def _import(name: WorkflowName) -> Workflow:
    match name:
        case "eager":
            from pytest_qat.workflows import eager

            return eager
        case "fx":
            from pytest_qat.workflows import fx

            return fx
        case "pt2e":
            from pytest_qat.workflows import pt2e

            return pt2e
        case "torchao":
            from pytest_qat.workflows import torchao

            return torchao
