"""A recipe: how a model is quantized (workflow, engine or quantizer) and where it runs (runtime), under one name."""

from __future__ import annotations

import difflib
import importlib.util
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pytest_qat.errors import MissingPackage, UnknownRecipe

__all__ = ["AUTO", "COMPLETE_RECIPES", "DEFAULT_RECIPE", "RECIPES", "Recipe", "RuntimeName", "WorkflowName",
           "get_recipe"]

WorkflowName = Literal["eager", "fx", "pt2e", "torchao"]
RuntimeName = Literal["torch", "torchscript", "inductor", "executorch", "litert", "onnxruntime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One named way from a float model to what ships.

    Attributes:
        name: The name on the command line and in the report.
        workflow: What prepares and converts the model (see `workflows.load_workflow`).
        runtime: What runs the artifact (see `runtimes.load_runtime`).
        engine: torch's quantized engine (`torch.backends.quantized.engine`); None: the recipe uses none.
        quantizer: What the workflow quantizes with: a PT2E quantizer's name, or a torchao weight form.
        fold_quantize: PT2E: store weights as int8; the converter of LiteRT wants them beside their quantize ops.
        packages: Packages that must be importable.
        extra: Extra of pytest-qat that installs them.
        lowered: Whether the result runs on int8 kernels; the one recipe without is there to be looked at.
    """

    name: str
    workflow: WorkflowName
    runtime: RuntimeName
    engine: str | None = None
    quantizer: str | None = None
    fold_quantize: bool = True
    packages: tuple[str, ...] = ()
    extra: str | None = None
    lowered: bool = True

    @property
    def suits_machine(self) -> bool:
        """Whether its engine, if it uses one, is the one that is made for this machine's processor."""
        arm = platform.machine().lower() in ("aarch64", "arm64")
        return self.engine in (None, "qnnpack" if arm else "x86")

    def require_packages(self) -> None:
        """Look for the packages that the recipe needs, without importing them.

        Raises:
            MissingPackage: one is not installed; the hint is the command that installs it.
        """
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            wanted = f"'pytest-qat[{self.extra}]'" if self.extra else " ".join(missing)
            raise MissingPackage(f"{self.name} needs {', '.join(missing)}, which is not installed here.",
                                 hint=f"pip install {wanted}")


_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
_ENGINE_WORKFLOWS: tuple[WorkflowName, ...] = ("fx", "eager")

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in (
    *(Recipe(name=f"{workflow}-{engine}", workflow=workflow, runtime="torch", engine=engine)
      for workflow in _ENGINE_WORKFLOWS for engine in _ENGINES),
    Recipe(name="fx-torchscript", workflow="fx", runtime="torchscript", engine="x86"),
    Recipe(name="pt2e-inductor", workflow="pt2e", quantizer="x86-inductor", runtime="inductor",
           packages=("torchao",)),
    Recipe(name="pt2e-executorch", workflow="pt2e", quantizer="xnnpack", runtime="executorch",
           packages=("torchao", "executorch"), extra="executorch"),
    Recipe(name="pt2e-litert", workflow="pt2e", quantizer="xnnpack-litert", runtime="litert", fold_quantize=False,
           packages=("torchao", "litert_torch", "ai_edge_litert"), extra="litert"),
    Recipe(name="pt2e-onnxruntime", workflow="pt2e", quantizer="xnnpack", runtime="onnxruntime",
           packages=("torchao", "onnx", "onnxscript", "onnxruntime"), extra="onnx"),
    Recipe(name="torchao-int8", workflow="torchao", quantizer="int8", runtime="inductor", packages=("torchao",)),
    Recipe(name="torchao-int4", workflow="torchao", quantizer="int4", runtime="executorch",
           packages=("torchao", "executorch"), extra="executorch"),
    Recipe(name="pt2e-torch", workflow="pt2e", quantizer="xnnpack", runtime="torch", packages=("torchao",),
           lowered=False),
)})

COMPLETE_RECIPES = tuple(name for name, recipe in RECIPES.items() if recipe.lowered)
"""What `all` stands for, and what `auto` tries where its packages are installed."""

DEFAULT_RECIPE = "fx-x86"
AUTO = "auto"


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
