"""`--qat-recipe=auto`: try what is installed on one model, and rank what holds the tolerances by its latency.

For torch's own kernels the engine is chosen first, by the latency of an untrained int8 model, which does not depend
on the weights; only the fastest engine is trained and judged.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.checks import Assessment
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import CheckFailed, MissingPackage, QATError
from pytest_qat.measure.macs import count_macs
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.pipeline.run import StageFailed
from pytest_qat.recipe import COMPLETE_RECIPES, RECIPES, get_recipe
from pytest_qat.record.schema import CHECKS

__all__ = ["Entry", "rank"]

LEAST_LINEAR_SHARE = 0.5
"""Share of the MACs in linear layers from which the recipes for linear layers are tried."""
_ENGINE_WORKFLOWS = ("fx", "eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One recipe's place.

    Attributes:
        recipe: Its name.
        holds: Whether no check failed and none was left undecided but those that have nothing to look at.
        judged: Whether the checks were made; not of what was not tried, and of engines that another one beat.
        latency_s: Median of a call of the int8 artifact; None if it was not measured.
        speedup: Over float in the same runtime.
        accuracy: Of the int8 artifact.
        size_bytes: Of the int8 artifact.
        note: What did not pass, or why it was not tried.
    """

    recipe: str
    holds: bool
    latency_s: float | None = None
    speedup: float | None = None
    accuracy: float | None = None
    size_bytes: int | None = None
    note: str = ""
    judged: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return dataclasses.asdict(self)


def rank(case: QATCase, assess: Callable[[QATCase, str, bool], Assessment],
         *, done: Callable[[Assessment], None]) -> list[Entry]:
    """Try the recipes on a case.

    Args:
        case: The user's model.
        assess: Makes the assessment of a case by a recipe; True: only to look at its latency.
        done: Told about each full assessment, for the record.

    Returns:
        The entries, best first: those that hold by latency, then those that do not, then those not tried.

    Raises:
        QATError: the float model is not fit for any recipe.
    """
    with preserved_torch_state(seed=0):
        checked_model(case)
    entries: list[Entry] = []
    for workflow in _ENGINE_WORKFLOWS:
        best, losers = _fastest_engine(case, workflow, assess)
        entries += losers
        if best is not None:
            entries.append(_judged(assess(case, best, False), done))
    for name in COMPLETE_RECIPES:
        recipe = get_recipe(name)
        if recipe.workflow in _ENGINE_WORKFLOWS and recipe.runtime == "torch":
            continue
        try:
            recipe.require_packages()
        except MissingPackage as missing:
            entries.append(Entry(recipe=name, holds=False, judged=False,
                                 note=f"not tried: {missing.message} {missing.hint}"))
            continue
        if recipe.workflow == "torchao" and (share := _linear_share(case)) < LEAST_LINEAR_SHARE:
            entries.append(Entry(recipe=name, holds=False, judged=False, note=(
                f"not tried: {share:.0%} of the multiply-accumulates are in linear layers")))
            continue
        entries.append(_judged(assess(case, name, False), done))
    return sorted(entries, key=lambda entry: (
        not entry.holds, entry.latency_s is None, entry.latency_s or 0.0))


def _fastest_engine(case: QATCase, workflow: str,
                    assess: Callable[[QATCase, str, bool], Assessment]) -> tuple[str | None, list[Entry]]:
    """Return the recipe of the fastest engine, and an entry for each of the others."""
    names = [name for name, recipe in RECIPES.items() if recipe.workflow == workflow and recipe.runtime == "torch"]
    glance = _untrained(case)
    latency: dict[str, float] = {}
    refused: list[Entry] = []
    for name in names:
        if get_recipe(name).engine not in torch.backends.quantized.supported_engines:
            refused.append(Entry(recipe=name, holds=False, judged=False,
                                 note="not tried: this machine lacks the engine"))
            continue
        run = assess(glance, name, True).run
        try:
            latency[name] = run.speed(0.0).like_for_like.candidate.p50
        except (StageFailed, QATError) as failed:
            error = failed.error if isinstance(failed, StageFailed) else failed
            refused.append(Entry(recipe=name, holds=False, note=_sentence(error)))
        finally:
            run.close()
    if not latency:
        return None, refused
    best = min(latency, key=lambda name: latency[name])
    return best, refused + [
        Entry(recipe=name, holds=False, judged=False, latency_s=seconds, note=f"untrained; slower than {best}")
        for name, seconds in latency.items() if name != best]


def _untrained(case: QATCase) -> QATCase:
    with preserved_torch_state(seed=0):
        batches = calibration_batches(case, limit=1)
    return dataclasses.replace(case, train=None, train_data=None, loss_fn=None, optimizer=None, eval_data=None,
                               calibration_data=batches)


def _judged(assessment: Assessment, done: Callable[[Assessment], None]) -> Entry:
    results = [assessment.check(check) for check in CHECKS]
    record = assessment.record()
    done(assessment)
    wrong = [result for result in results if result.verdict.outcome.value in ("failed", "inconclusive")
             and not (result.check in ("parity", "roundtrip") and result.verdict.outcome.value == "inconclusive")]
    metrics = record["metrics"]
    return Entry(
        recipe=record["recipe"], holds=not wrong,
        note="; ".join(f"{result.check}: {result.verdict.reasons[0]}" for result in wrong),
        latency_s=_inside(metrics["latency_s"], "int8"), speedup=_inside(metrics["speedup"], "estimate"),
        accuracy=_inside(metrics["accuracy"], "int8"), size_bytes=_inside(metrics["size_bytes"], "int8"))


def _inside(metric: Mapping[str, Any] | None, key: str) -> Any:
    return None if metric is None else metric[key]


def _sentence(error: Exception) -> str:
    if isinstance(error, CheckFailed):
        return error.reasons[0]
    return error.message if isinstance(error, QATError) else f"{type(error).__name__}: {headline(error)}"


def _linear_share(case: QATCase) -> float:
    """Return the share of the MACs that linear layers do."""
    model = copy.deepcopy(case.model).eval()
    counted = count_macs(model, case.example_inputs).by_module
    names = set(_linear_layers(model))
    return sum(macs for name, macs in counted.items() if name in names) / max(1, sum(counted.values()))


def _linear_layers(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name
