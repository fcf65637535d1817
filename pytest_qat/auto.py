"""`--qat-recipe=auto`: try which recipes take a model, train and judge those that do, and rank what holds by latency.

Trying (`pipeline.probing`) costs no training. For torch's own kernels the engine is then chosen by the latency of an
untrained int8 model, which does not depend on the weights; only the fastest engine is trained and judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_qat.case import QATCase, Tolerances, without_training
from pytest_qat.checks import CheckResult, ModelChecks, error_text
from pytest_qat.core.system import can_fork
from pytest_qat.core.text import percent
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.errors import QATError
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.pipeline.probe import Probe, held_to
from pytest_qat.pipeline.probing import not_installed
from pytest_qat.pipeline.run import ModelRun, StageFailed
from pytest_qat.recipe import COMPLETE_RECIPES, get_recipe
from pytest_qat.record.schema import CHECKS, RankingEntry
from pytest_qat.verdict import Outcome

__all__ = ["Glance", "rank"]

_ENGINE_WORKFLOWS = ("fx", "eager")
_MAY_BE_UNCLEAR = ("parity", "roundtrip")
"""Checks that are inconclusive where there is nothing to look at, which is nothing against a recipe."""

Glance = Callable[[QATCase, str], ModelRun]
"""Makes a run that is only asked for its latency and closed afterwards."""


def rank(case: QATCase, tolerances: Tolerances, *, probe: Callable[[Sequence[str]], Sequence[Probe]],
         checks: Callable[[str], ModelChecks], glance: Glance,
         done: Callable[[ModelChecks], None]) -> list[RankingEntry]:
    """Try the recipes on a case, and train and judge those that take it, the best first.

    Args:
        case: The user's model.
        tolerances: The bounds that the checks are made with.
        probe: Tries recipes without training, and returns what came of each, the best first.
        checks: Makes the checks of the case by a recipe.
        glance: Makes a run of another case by a recipe, with little time for its latency.
        done: Told about each recipe that was judged, for the record.

    Returns:
        The entries, best first: those that hold by latency, then those that do not, then those not judged.

    Raises:
        QATError: the float model is not fit for any recipe.
    """
    with preserved_torch_state(seed=0):
        checked_model(case)
    brings_stages = case.prepared is not None or case.converted is not None  # a trial would make other ones
    if brings_stages or not can_fork():
        reasons = {name: not_installed(get_recipe(name)) for name in COMPLETE_RECIPES}
    else:
        reasons = {found.recipe: _reason_against(found, tolerances) for found in probe(COMPLETE_RECIPES)}
    entries = [_not_judged(name, reason) for name, reason in reasons.items() if reason]
    taking = [name for name, reason in reasons.items() if not reason]
    for workflow in _ENGINE_WORKFLOWS:
        engines = [name for name in taking if (recipe := get_recipe(name)).workflow == workflow
                   and recipe.runtime == "torch"]
        entries += _slower_engines(case, engines, glance)
    slower = {entry["recipe"] for entry in entries}
    entries += [_judged(checks(name), done) for name in taking if name not in slower]
    return sorted(entries, key=lambda entry: (
        not entry["holds"], not entry["judged"], entry["latency_s"] is None, entry["latency_s"] or 0.0))


def _reason_against(probe: Probe, tolerances: Tolerances) -> str:
    """Return why a recipe need not be trained: it refuses the model, or fails coverage with any weights; else empty."""
    if not probe.takes:
        return probe.reason
    floor, share = tolerances.coverage_floor, probe.mac_share
    if share is None or held_to(probe, floor).takes:
        return ""
    return (f"not trained: {percent(share, unlike=floor)} of the multiply-accumulates would run in int8; required is "
            f"{percent(floor)}")


def _slower_engines(case: QATCase, names: Sequence[str], glance: Glance) -> list[RankingEntry]:
    """Return an entry for each recipe but the one that is the fastest without training."""
    if len(names) < 2:
        return []
    with preserved_torch_state(seed=0):
        untrained = without_training(case)
    latency: dict[str, float] = {}
    failed: list[RankingEntry] = []
    for name in names:
        run = glance(untrained, name)
        try:
            latency[name] = run.speed(0.0).like_for_like.candidate.p50
        except (StageFailed, QATError) as error:
            failed.append(_not_judged(name, error_text(error.error if isinstance(error, StageFailed) else error)))
        finally:
            run.close()
    best = min(latency, key=lambda name: latency[name], default=None)
    return failed + [_not_judged(name, f"untrained; slower than {best}", latency_s=seconds)
                     for name, seconds in latency.items() if name != best]


def _not_judged(recipe: str, note: str, *, latency_s: float | None = None) -> RankingEntry:
    return {"recipe": recipe, "holds": False, "latency_s": latency_s, "speedup": None, "accuracy": None,
            "is_fraction": None, "size_bytes": None, "note": note, "judged": False}


def _judged(checks: ModelChecks, done: Callable[[ModelChecks], None]) -> RankingEntry:
    results = [with_causes(checks, checks.check(check), others=False) for check in CHECKS]
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
