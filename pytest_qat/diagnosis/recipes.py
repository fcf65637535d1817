"""What else would do for a model that failed a check, found by trying it; only what was tried is recommended.

Other recipes are tried, and this one with the modules to blame left in float (`skip=`), see `pipeline.probing`. A trial
shows whether the model is taken, how much of it runs in int8, how small the artifact is, whether it computes what
fake-quantize simulates, and how close that is to float. After a failed speedup, artifacts are timed, too. No trial
shows an accuracy, so none is promised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_qat.case import Tolerances
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.changes import skippable
from pytest_qat.findings import Finding
from pytest_qat.pipeline.probe import OUT_OF_TIME, Probe, Trial, best_first
from pytest_qat.pipeline.probing import ProbeSettings, try_all
from pytest_qat.pipeline.run import ModelRun
from pytest_qat.recipe import RECIPES, Recipe

__all__ = ["Need", "need_of", "recipes_that_take", "takes_text"]

_CANDIDATES = ("fx-x86", "eager-x86", "torchao-int8", "pt2e-inductor", "pt2e-executorch", "pt2e-onnxruntime",
               "pt2e-litert")
"""One recipe of each workflow and runtime, the quickest to try first."""
_QUICK = ("fx-torchscript", "pt2e-onnxruntime", "pt2e-litert", "pt2e-executorch")
"""One recipe of each runtime, those first that take the least time to build. Inductor's are missing: a trial is a
forked process, in which its compiler may wait forever."""
_CLOSE = ("torchao-int8", "fx-onednn", "pt2e-executorch", "pt2e-onnxruntime", "pt2e-litert", "eager-onednn",
          "pt2e-inductor", "fx-x86")
"""One recipe of each way to round, those first that round the least: a scale per token, eight bits, seven."""
_TIMEOUT_S = 90.0
_NAMED = 3
_CLOSER_DB = 6.0
"""A recipe with half the noise is worth a word after accuracy has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a trial must show, so that the check that failed would not fail again for what is known.

    Attributes:
        holds: Whether a recipe that takes the model shows it.
        what: The same in words.
        numbers: Whether the trial has to compare outputs.
        floor: The speedup that the trial has to time for; None: nothing is timed.
        order: Sort key of those that show it, the best first.
    """

    holds: Callable[[Probe], bool]
    what: str
    numbers: bool = False
    floor: float | None = None
    order: Callable[[Probe], Any] = best_first


def need_of(check: str, tolerances: Tolerances, *, float_db: float = 0.0) -> Need:
    """Return what a recipe must show after a check has failed.

    Args:
        check: `prepare`, `convert`, `coverage`, `parity`, `accuracy`, `size` or `speedup`.
        tolerances: The bounds of the check.
        float_db: To how many dB fake-quantize leaves the float model's outputs in the run, for `accuracy`.
    """
    floor, smaller = tolerances.coverage_floor, tolerances.min_size_reduction

    def covered(probe: Probe) -> bool:
        return probe.mac_share is None or probe.mac_share >= floor

    match check:
        case "coverage":
            return Need(holds=lambda probe: probe.mac_share is not None and probe.mac_share >= floor,
                        what=f"at least {percent(floor)} of MACs in int8")
        case "parity":
            return Need(holds=lambda probe: covered(probe) and probe.agrees is True, numbers=True,
                        what="outputs as fake-quantize simulates them")
        case "accuracy":
            closer = float_db + _CLOSER_DB
            return Need(holds=lambda probe: covered(probe) and probe.agrees is True and (
                            probe.float_db is None or probe.float_db >= closer), numbers=True,
                        order=lambda probe: -math.inf if probe.float_db is None else -probe.float_db,
                        what=f"outputs within {closer:.1f} dB of float's, where this recipe reaches {float_db:.1f} dB")
        case "size":
            return Need(holds=lambda probe: covered(probe) and (probe.size_reduction or 0.0) >= smaller,
                        what=f"an artifact {smaller:.2f}x smaller")
        case "speedup":
            faster = tolerances.min_speedup
            return Need(holds=lambda probe: covered(probe) and probe.speedup_ci is not None and (
                            probe.speedup_ci[0] >= faster), floor=faster, what=f"at least {faster:.2f}x float's speed",
                        order=lambda probe: -(probe.speedup or 0.0))
        case _:
            return Need(holds=covered, what=f"at least {percent(floor)} of MACs in int8")


def recipes_that_take(run: ModelRun, need: Need, *, command: str, check: str,
                      blamed: Collection[str] = ()) -> Finding:
    """Try other recipes, and this one with modules left in float, and return which of them do.

    Args:
        run: The run that failed.
        need: What a trial must show.
        command: What checks the model again, without a recipe; empty: its recipe stands in a marker.
        check: The check that failed.
        blamed: Modules that its findings name.
    """
    own = _own_stages(run)
    names = dict.fromkeys((run.recipe.name, *_CANDIDATES)) if own else _others(run.recipe, check)
    trials = [Trial(recipe=name, numbers=need.numbers, floor=need.floor) for name in names]
    # After a failed accuracy these were tried by `remedies`, with all that follows.
    if not own and check != "accuracy" and (skip := skippable(run, blamed)):
        trials.insert(0, Trial(recipe=run.recipe.name, skip=skip, numbers=need.numbers, floor=need.floor))
    found = sorted(_made(run, trials, need), key=best_first)
    evidence = {"check": check, "need": need.what, "probes": [_as_evidence(probe) for probe in found]}
    doing = sorted((probe for probe in found if probe.takes and need.holds(probe)), key=need.order)
    if not doing:
        return Finding(code="no-recipe-takes-it", severity="note", evidence=evidence, message=_none_text(found, need),
                       remedy=_more_time(found, run.settings.diagnose_s))
    also = [_name(probe) for probe in doing[1:_NAMED]]
    others = f"; {' and '.join(also)} {'does' if len(also) == 1 else 'do'}, too" if also else ""
    return Finding(code="recipe-takes-it", severity="note", evidence=evidence,
                   message=f"{takes_text(doing[0])}{others}.", remedy=_remedy(doing[0], command, own))


def _made(run: ModelRun, trials: Sequence[Trial], need: Need) -> list[Probe]:
    """Return what came of trials, within the time that is left."""
    def some(wanted: Sequence[Trial], at_once: int) -> list[Probe]:
        left_s = max(0.0, run.settings.diagnose_s - run.shared.probing_s)
        settings = ProbeSettings(timeout_s=min(_TIMEOUT_S, left_s), budget_s=left_s, seed=run.settings.seed,
                                 at_once=at_once, locks=True, floor=run.settings.tolerances.coverage_floor)
        began = time.monotonic()
        found = run.shared.probed(wanted, lambda missing: try_all(run.case, missing, settings=settings))
        run.shared.probing_s += time.monotonic() - began
        return found

    if need.floor is None:
        return some(trials, 2)
    found: list[Probe] = []
    for trial in trials:  # one at a time, since a timing needs the machine, and no more than are needed
        found += some([trial], 1)
        if found[-1].takes and need.holds(found[-1]):
            break
    return found


def takes_text(probe: Probe) -> str:
    """Return how a recipe takes a model, as a clause."""
    parts = [] if probe.mac_share is None else [f"{percent(probe.mac_share)} of MACs in int8"]
    parts += [] if probe.size_reduction is None else [f"{probe.size_reduction:.2f}x smaller"]
    parts += [f"{probe.speedup:.2f}x as fast as float{_interval(probe)}"] if probe.speedup is not None else []
    parts += [f"outputs within {probe.sqnr_db:.1f} dB of the simulated ones"] if probe.sqnr_db is not None else []
    parts += [f"those within {probe.float_db:.1f} dB of float's"] if probe.float_db is not None else []
    return f"{_name(probe)} takes it ({', '.join([*parts, f'tried in {probe.seconds:.0f} s'])})"


def _interval(probe: Probe) -> str:
    return "" if probe.speedup_ci is None else f" [{probe.speedup_ci[0]:.2f}, {probe.speedup_ci[1]:.2f}]"


def _name(probe: Probe) -> str:
    return f"{probe.recipe} with {_skip_text(probe)}" if probe.skip else probe.recipe


def _skip_text(probe: Probe) -> str:
    return f"skip={tuple(probe.skip)!r}"


def _remedy(probe: Probe, command: str, own: str = "") -> str:
    if own:
        return f"leave {own} out of the QATCase and {_remedy(probe, command)}"
    if probe.skip:
        return f"give the QATCase {_skip_text(probe)}."
    return f"run: {command} --qat-recipe={probe.recipe}" if command else f'give the marker recipe="{probe.recipe}".'


def _own_stages(run: ModelRun) -> str:
    """Return which stages the case brings, as keywords; a trial makes its own from the float model."""
    return " and ".join(f"{name}=" for name in ("prepared", "converted") if getattr(run.case, name) is not None)


def _none_text(found: Sequence[Probe], need: Need) -> str:
    """Return what came of trials of which none does."""
    refused = ", ".join(_name(probe) for probe in found if probe.takes is False)
    short = "; ".join(takes_text(probe) for probe in found if probe.takes)
    unknown = "; ".join(f"{_name(probe)}: {probe.reason.rstrip('.')}" for probe in found if probe.takes is None)
    parts = ([f"none shows {need.what}: {short}"] if short else []) + (
        [f"tried and refused as well: {refused}"] if refused else [])
    text = ". ".join(part[0].upper() + part[1:] if index else part for index, part in enumerate(parts))
    return f"{text or 'no other recipe could be tried'}." + (f" Without an answer: {unknown}." if unknown else "")


def _more_time(found: Sequence[Probe], given_s: float) -> str:
    """Return how the trials that had no time get it."""
    late = sum(probe.code == OUT_OF_TIME for probe in found)
    wanted = math.ceil((given_s + late * _TIMEOUT_S) / 60) * 60
    return f"give --qat-diagnose-time={wanted}, so that there is time for {late} more trials." if late else ""


def _as_evidence(probe: Probe) -> dict[str, Any]:
    return {"recipe": probe.recipe, "skip": list(probe.skip), "takes": probe.takes, "mac_share": probe.mac_share,
            "size_reduction": probe.size_reduction, "agrees": probe.agrees, "sqnr_db": probe.sqnr_db,
            "float_db": probe.float_db, "speedup": probe.speedup, "speedup_ci": probe.speedup_ci,
            "seconds": round(probe.seconds, 1), "reason": probe.reason}


def _others(failed: Recipe, check: str) -> Sequence[str]:
    """Return the recipes that may do better; what failed to prepare fails for each engine and runtime alike."""
    def alike(other: Recipe) -> bool:
        same = other.workflow == failed.workflow and _prepares_with(other) == _prepares_with(failed)
        return same if check == "prepare" else same and (other.engine, other.runtime) == (failed.engine, failed.runtime)

    if check == "speedup":
        return _quick(failed)
    if check == "accuracy":
        return [name for name in _CLOSE if _rounds_like(RECIPES[name]) != _rounds_like(failed)]
    names = [name for name in _CANDIDATES if not alike(RECIPES[name])]
    if check != "prepare" and failed.engine is not None:  # a kernel that fails in one engine may do in another
        names[:0] = [name for name, other in RECIPES.items() if name not in names and not alike(other)
                     and (other.workflow, other.runtime) == (failed.workflow, failed.runtime)]
    return names


def _rounds_like(recipe: Recipe) -> tuple[str | None, ...]:
    """Return what decides which values fake-quantize leaves; the runtime does not, nor, beside its bits, the engine."""
    bits = {"x86": "seven", "fbgemm": "seven", "qnnpack": "per tensor"}.get(recipe.engine or "", "eight")
    workflow = "torch.ao" if recipe.engine else recipe.workflow
    return workflow, _prepares_with(recipe), bits


def _quick(failed: Recipe) -> list[str]:
    """Return the recipes that may be faster: other engines, of which each has shapes that it is slow at, and runtimes.

    qnnpack is made for other processors, so it is no engine to send to.
    """
    engines = [f"{failed.workflow}-{engine}" for engine in ("x86", "onednn", "fbgemm")
               if failed.runtime == "torch" and failed.engine not in (None, engine)]
    alike = {"torch", "torchscript"} if failed.runtime == "torchscript" else {failed.runtime}
    return [*engines, *(name for name in _QUICK if RECIPES[name].runtime not in alike)]


def _prepares_with(recipe: Recipe) -> str | None:
    """Return the quantizer that annotates: LiteRT's recipe takes XNNPACK's and fixes some scales after it."""
    return recipe.quantizer and recipe.quantizer.removesuffix("-litert")
