"""Which other recipes take a model, found by trying them; only those that do are recommended.

A failed `prepare` or `convert` says why a recipe does not take the model. What helps next is not a guess about
another one but its trial, see `pytest_qat.pipeline.probe`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pytest_qat.core.text import percent
from pytest_qat.findings import Finding
from pytest_qat.pipeline.probe import Probe, best_first
from pytest_qat.pipeline.probing import ProbeSettings, probe_recipes
from pytest_qat.pipeline.run import ModelRun
from pytest_qat.recipe import RECIPES, Recipe

__all__ = ["command_for", "recipes_that_take", "takes_text"]

_CANDIDATES = ("fx-x86", "eager-x86", "torchao-int8", "pt2e-inductor", "pt2e-executorch", "pt2e-onnxruntime",
               "pt2e-litert")
"""One recipe of each workflow and runtime, the quickest to try first."""
_TIMEOUT_S = 60.0
_NAMED = 3


def recipes_that_take(run: ModelRun, *, reference: str, stage: str, budget_s: float) -> Finding:
    """Try other recipes on the model of a run, and return which of them take it.

    Args:
        run: The run that failed.
        reference: Name of the model for the command to run.
        stage: The check that failed, `prepare` or `convert`.
        budget_s: Most seconds for all trials.
    """
    names = _others(run.recipe, stage)
    settings = ProbeSettings(timeout_s=min(_TIMEOUT_S, budget_s), budget_s=budget_s, seed=run.settings.seed)
    found = sorted(run.shared.probed(names, lambda missing: probe_recipes(run.case, missing, settings=settings)),
                   key=best_first)
    taking = [probe for probe in found if probe.takes]
    evidence = {"probes": [{"recipe": probe.recipe, "takes": probe.takes, "mac_share": probe.mac_share,
                            "size_reduction": probe.size_reduction, "seconds": round(probe.seconds, 1),
                            "reason": probe.reason} for probe in found]}
    if not taking:
        tried = ", ".join(probe.recipe for probe in found if probe.takes is False)
        unknown = "; ".join(f"{probe.recipe}: {probe.reason.rstrip('.')}" for probe in found if probe.takes is None)
        return Finding(
            code="no-recipe-takes-it", severity="note", evidence=evidence,
            message=(f"tried and refused as well: {tried}." if tried else "no other recipe could be tried.")
                    + (f" Without an answer: {unknown}." if unknown else ""))
    others = f"; {', '.join(probe.recipe for probe in taking[1:_NAMED])} take it, too" if len(taking) > 1 else ""
    return Finding(
        code="recipe-takes-it", severity="note", evidence=evidence,
        message=f"{takes_text(taking[0])}{others}.", remedy=f"run: {command_for(reference, taking[0].recipe)}")


def takes_text(probe: Probe) -> str:
    """Return how a recipe takes a model, as a clause."""
    share = "" if probe.mac_share is None else f"{percent(probe.mac_share)} of MACs in int8, "
    size = "" if probe.size_reduction is None else f"{probe.size_reduction:.2f}x smaller, "
    return f"{probe.recipe} takes it ({share}{size}tried in {probe.seconds:.0f} s)"


def command_for(reference: str, recipe: str) -> str:
    """Return the command that checks a model by a recipe."""
    return f"pytest --qat-model={shlex.quote(reference)} --qat-recipe={recipe}"


def _others(failed: Recipe, stage: str) -> Sequence[str]:
    """Return the recipes that may do better; what failed to prepare fails for each engine and runtime alike."""
    def alike(other: Recipe) -> bool:
        same = other.workflow == failed.workflow and other.quantizer == failed.quantizer
        return same if stage == "prepare" else same and (other.engine, other.runtime) == (failed.engine, failed.runtime)

    names = [name for name in _CANDIDATES if not alike(RECIPES[name])]
    if stage == "convert" and failed.engine is not None:  # a kernel that fails in one engine may do in another
        names[:0] = [name for name, other in RECIPES.items() if name not in names and not alike(other)
                     and (other.workflow, other.runtime) == (failed.workflow, failed.runtime)]
    return names
