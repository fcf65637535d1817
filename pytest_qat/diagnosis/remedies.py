"""What mends a model that lost accuracy: changes to its case, each tried by running the whole pipeline again.

A change is something to paste into the `QATCase`. It is tried on a copy of the case, from `prepare` to `roundtrip`,
and judged by the tolerances of the run. Changes that fit a measured cause come first; then modules are left in float,
those whose rounding costs most first. The first change with which the accuracy holds is recommended, with whatever
else fails then.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pytest_qat.case import QATCase
from pytest_qat.checks import ModelChecks
from pytest_qat.core import progress
from pytest_qat.core.forked import run_forked
from pytest_qat.core.system import can_fork
from pytest_qat.diagnosis.changes import Change
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings, StageFailed
from pytest_qat.recipe import Recipe, get_recipe
from pytest_qat.record.schema import CHECKS, RemedyRecord
from pytest_qat.verdict import Outcome, score_text

__all__ = ["Remedy", "mended"]

_TIMING_S = 4.0
_NOTHING = Change(text="")
_HOPEFUL = 0.2
_RUN_IN_FORKS = frozenset({"torch", "torchscript"})
"""Others keep threads and compiled code that a fork does not have."""
_COSTLY = ("prepare", "convert", "deploy", "coverage", "parity", "accuracy")
_FEWER_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What came of a change.

    Attributes:
        change: The change.
        outcomes: Outcome of each check by its name; empty if it was not tried.
        accuracy: The scores, where there are any.
        speedup: How much faster than float, where that is known.
        size_reduction: How much smaller than float, where that is known.
        why_not: Why it was not tried, or what failed.
    """

    change: Change
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    speedup: float | None = None
    size_reduction: float | None = None
    why_not: str = ""

    @property
    def restores(self) -> bool:
        """Whether the accuracy holds with it, whatever else fails."""
        return self.outcomes.get("accuracy") is Outcome.PASSED

    def as_dict(self) -> RemedyRecord:
        """Return it in the form of `--qat-json`."""
        return {"change": self.change.text, "patch": None if self.change.advice else self.change.text,
                "tried": bool(self.outcomes), "speedup": self.speedup,
                "accuracy": None if self.accuracy is None else json_number(self.accuracy.int8),
                "size_reduction": self.size_reduction, "why_not": self.why_not or None}


def mended(run: ModelRun, changes: Sequence[Change]) -> Finding | None:
    """Try changes until one mends the model, and return what came of them; None if there is none to try.

    Args:
        run: The run whose accuracy check failed.
        changes: What to try, the likeliest first.
    """
    unlike: dict[str, Change] = {}
    for change in changes:
        unlike.setdefault(change.text, change)
    tried: list[Remedy] = []
    for change in unlike.values():
        tried.append(_tried(run, change))
        if tried[-1].restores:
            break
    if not tried:
        return None
    evidence = {"remedies": [each.as_dict() for each in tried]}
    best = tried[-1]
    if best.restores:
        advice = best.change.advice or f"give the QATCase {best.change.text}."
        return Finding(code="remedy-mends", severity="note", evidence=evidence, remedy=advice,
                       message=f"{_told(best)}.")
    shown = "; ".join(_told(each) for each in tried[:_FEWER_SHOWN])
    return Finding(code="no-remedy-mends", severity="note", evidence=evidence, message=f"{shown}.")


def _told(remedy: Remedy) -> str:
    if not remedy.outcomes:
        return f"{remedy.change.text}: {remedy.why_not}"
    parts = []
    if (found := remedy.accuracy) is not None:
        low, high = (score_text(found, end) for end in found.drop_ci)
        parts.append(f"scores {score_text(found, found.int8)} (float {score_text(found, found.fp32)}, drop "
                     f"{score_text(found, found.drop)}, 95% interval [{low}, {high}])")
    parts += [f"runs {remedy.speedup:.2f}x as fast as float"] if remedy.speedup is not None else (
        ["runs at a speed that was not measured in time"] if remedy.restores else [])
    parts += [f"is {remedy.size_reduction:.2f}x smaller"] if remedy.size_reduction is not None else []
    failing = [name for name, outcome in remedy.outcomes.items() if outcome is Outcome.FAILED]
    open_ = [name for name, outcome in remedy.outcomes.items() if outcome is Outcome.INCONCLUSIVE]
    still = "" if remedy.restores else "still "
    reason = "" if remedy.accuracy is not None or not remedy.why_not else f" ({remedy.why_not.rstrip('.')})"
    verdict = f"{' and '.join(failing)} {still}fail{'s' if len(failing) == 1 else ''}{reason}" if failing else (
        f"no check fails ({' and '.join(open_)}: inconclusive)" if open_ else "every check passes")
    numbers = f"it {' and '.join([', '.join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)}: " if parts else ""
    return f"with {remedy.change.text} {numbers}{verdict}"


def _tried(run: ModelRun, change: Change) -> Remedy:
    """Run the whole pipeline with a change, within the time that is left.

    Where a forked process can run the artifact, it does: it can be stopped, and a crash stays there.
    """
    left_s = run.settings.diagnose_s - run.shared.probing_s
    needed_s = sum(run.seconds.get(stage, 0.0) for stage in _COSTLY) + _TIMING_S
    recipe = run.recipe if change.recipe is None else get_recipe(change.recipe)
    case = replace(run.case, **change.fields)
    # Once this process has trained, torch may refuse to train in a fork of it.
    forks = can_fork() and recipe.runtime in _RUN_IN_FORKS and not case.fine_tunes
    # A module in float may make a run much quicker, but no run that cannot be stopped is begun without the time for it.
    if left_s < (needed_s * _HOPEFUL if forks else needed_s):
        return Remedy(change=change, why_not=(
            f"not tried, because it takes about {needed_s:.0f} s, and {max(0.0, left_s):.0f} s of --qat-diagnose-time "
            "are left"))
    began = time.monotonic()
    settings = replace(run.settings, diagnose_s=0.0, memory=False, batches=(), stage_timeout_s=max(1.0, left_s),
                       max_time_s=min(run.settings.max_time_s, _TIMING_S))
    try:
        with progress.step(f"trying {change.text}", limit_s=left_s):
            if not forks:
                return replace(_judged(case, recipe, settings), change=change)
            alone = replace(settings, threads=1, work_threads=1)  # a fork has no other threads, and would wait for them
            ended = run_forked(lambda writer: _judged(case, recipe, alone, known=partial(_send, writer)),
                               timeout_s=left_s)
    finally:
        run.shared.probing_s += time.monotonic() - began
    found = _received(ended.written)
    if ended.hung and not (found and found.restores):
        return Remedy(change=change, why_not=f"not settled within {left_s:.0f} s, the rest of --qat-diagnose-time")
    if found is None or (ended.by is not None and not ended.hung):
        return Remedy(change=change, why_not="its process ended without an answer")
    return replace(found, change=change)


def _send(writer: int, remedy: Remedy) -> None:
    """Write what has come of a trial so far to a pipe, as a line, without what may be large."""
    small = remedy.accuracy and replace(remedy.accuracy, flips=(), resampling=None)
    os.write(writer, base64.b64encode(pickle.dumps(replace(remedy, accuracy=small))) + b"\n")


def _received(written: bytes) -> Remedy | None:
    """Return the last line that a child wrote to its end."""
    whole = written.rpartition(b"\n")[0].rpartition(b"\n")[2]
    found: Remedy | None = pickle.loads(base64.b64decode(whole)) if whole else None  # noqa: S301 - of our own child
    return found


def _judged(case: QATCase, recipe: Recipe, settings: RunSettings, *,
            known: Callable[[Remedy], None] = lambda remedy: None) -> Remedy:
    """Make every check of a case, up to one that makes the rest pointless.

    Args:
        case: The changed case.
        recipe: Its recipe.
        settings: Of the trial.
        known: Is told what is known after each check.
    """
    trial = ModelRun(case, recipe, settings, lock=MachineLock())
    try:
        checks = ModelChecks(trial, reference=case.label)
        outcomes: dict[str, Outcome] = {}
        why_not = ""
        found = Remedy(change=_NOTHING)
        for name in CHECKS:
            result = checks.check(name)
            outcomes[name] = result.verdict.outcome
            if result.verdict.outcome is Outcome.FAILED:
                why_not = why_not or result.verdict.reasons[0]
            metrics = checks.record()["metrics"]
            speedup = metrics["speedup"]
            found = replace(found, outcomes=dict(outcomes), accuracy=_known_accuracy(trial, outcomes), why_not=why_not,
                            speedup=None if speedup is None else speedup["estimate"],
                            size_reduction=metrics["size_reduction"])
            known(found)
            if name == "accuracy" and result.verdict.outcome is not Outcome.PASSED:
                break  # whatever else it does, it mends nothing
        return found
    finally:
        trial.close()


def _known_accuracy(trial: ModelRun, outcomes: Mapping[str, Outcome]) -> Accuracy | None:
    if outcomes.get("accuracy", Outcome.BLOCKED) is Outcome.BLOCKED:
        return None
    with contextlib.suppress(StageFailed):
        return trial.accuracy()
    return None
