"""`--qat-recipe=auto`: try every recipe that is installed on one model, and rank those that hold by their latency.

For torch's own kernels the engine is chosen first, by the latency of an untrained int8 model, which does not depend
on the weights; only the fastest engine is trained and judged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pytest_qat.case import QATCase, without_training
from pytest_qat.checks import CheckResult, ModelChecks, error_text
from pytest_qat.core.text import percent
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.errors import MissingPackage, QATError
from pytest_qat.measure.macs import count_macs
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.pipeline.run import ModelRun, StageFailed
from pytest_qat.recipe import COMPLETE_RECIPES, RECIPES, get_recipe
from pytest_qat.record.schema import CHECKS, RankingEntry
from pytest_qat.verdict import Outcome

__all__ = ["Glance", "rank"]

LEAST_LINEAR_SHARE = 0.5
"""The recipes for linear layers are tried if these do at least this share of the multiply-accumulates."""
_ENGINE_WORKFLOWS = ("fx", "eager")
_MAY_BE_UNCLEAR = ("parity", "roundtrip")
"""Checks that are inconclusive where there is nothing to look at, which is nothing against a recipe."""

Glance = Callable[[QATCase, str], ModelRun]
"""Makes a run that is only asked for its latency and closed afterwards."""


def rank(case: QATCase, *, checks: Callable[[str], ModelChecks], glance: Glance,
         done: Callable[[ModelChecks], None]) -> list[RankingEntry]:
    """Try the recipes on a case.

    Args:
        case: The user's model.
        checks: Makes the checks of the case by a recipe.
        glance: Makes a run of another case by a recipe, with little time for its latency.
        done: Told about each recipe that was judged, for the record.

    Returns:
        The entries, best first: those that hold by latency, then those that do not, then those not tried.

    Raises:
        QATError: the float model is not fit for any recipe.
    """
    with preserved_torch_state(seed=0):
        checked_model(case)
    entries: list[RankingEntry] = []
    for workflow in _ENGINE_WORKFLOWS:
        best, losers = _fastest_engine(case, workflow, glance)
        entries += losers
        if best is not None:
            entries.append(_judged(checks(best), done))
    for name in COMPLETE_RECIPES:
        recipe = get_recipe(name)
        if recipe.workflow in _ENGINE_WORKFLOWS and recipe.runtime == "torch":
            continue
        try:
            recipe.require_packages()
        except MissingPackage as missing:
            entries.append(_not_judged(name, f"not tried: {missing.message} {missing.hint}"))
            continue
        if recipe.workflow == "torchao" and (share := _linear_share(case)) < LEAST_LINEAR_SHARE:
            entries.append(_not_judged(
                name, f"not tried: only {percent(share, digits=0)} of the multiply-accumulates are in linear layers"))
            continue
        entries.append(_judged(checks(name), done))
    return sorted(entries, key=lambda entry: (
        not entry["holds"], entry["latency_s"] is None, entry["latency_s"] or 0.0))


def _fastest_engine(case: QATCase, workflow: str, glance: Glance) -> tuple[str | None, list[RankingEntry]]:
    """Return the recipe of the fastest engine, and an entry for each of the others."""
    names = [name for name, recipe in RECIPES.items() if recipe.workflow == workflow and recipe.runtime == "torch"]
    with preserved_torch_state(seed=0):
        untrained = without_training(case)
    latency: dict[str, float] = {}
    refused: list[RankingEntry] = []
    for name in names:
        if get_recipe(name).engine not in torch.backends.quantized.supported_engines:
            refused.append(_not_judged(name, "not tried: this machine does not have the engine"))
            continue
        run = glance(untrained, name)
        try:
            latency[name] = run.speed(0.0).like_for_like.candidate.p50
        except (StageFailed, QATError) as failed:
            error = failed.error if isinstance(failed, StageFailed) else failed
            refused.append({**_not_judged(name, error_text(error)), "judged": True})
        finally:
            run.close()
    if not latency:
        return None, refused
    best = min(latency, key=lambda name: latency[name])
    return best, refused + [_not_judged(name, f"untrained; slower than {best}", latency_s=seconds)
                            for name, seconds in latency.items() if name != best]


def _not_judged(recipe: str, note: str, *, latency_s: float | None = None) -> RankingEntry:
    return {"recipe": recipe, "holds": False, "latency_s": latency_s, "speedup": None, "accuracy": None,
            "is_fraction": None, "size_bytes": None, "note": note, "judged": False}


def _judged(checks: ModelChecks, done: Callable[[ModelChecks], None]) -> RankingEntry:
    results = [with_causes(checks, checks.check(check)) for check in CHECKS]
    done(checks)
    wrong = [result for result in results if _speaks_against(result)]
    metrics = checks.record()["metrics"]
    latency, speedup = metrics["latency_s"], metrics["speedup"]
    accuracy, size = metrics["accuracy"], metrics["size_bytes"]
    return {
        "recipe": checks.run.recipe.name, "holds": not wrong,
        "latency_s": None if latency is None else latency["int8"],
        "speedup": None if speedup is None else speedup["estimate"],
        "accuracy": None if accuracy is None else accuracy["int8"],
        "is_fraction": None if accuracy is None else accuracy["is_fraction"],
        "size_bytes": None if size is None else size["int8"],
        "note": "; ".join(f"{result.check}: {result.verdict.reasons[0]}" for result in wrong), "judged": True}


def _speaks_against(result: CheckResult) -> bool:
    if result.verdict.outcome is Outcome.INCONCLUSIVE:
        return result.check not in _MAY_BE_UNCLEAR
    return result.verdict.outcome is Outcome.FAILED


def _linear_share(case: QATCase) -> float:
    """Return the share of the multiply-accumulates that linear layers do."""
    model = copy.deepcopy(case.model).eval()
    counted = count_macs(model, case.example_inputs).by_module
    names = set(_linear_layers(model))
    return sum(macs for name, macs in counted.items() if name in names) / max(1, sum(counted.values()))


def _linear_layers(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name
