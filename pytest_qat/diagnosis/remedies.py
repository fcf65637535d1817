"""What mends a model that lost accuracy: changes to its case, each tried by running the whole pipeline again.

A change is something to paste into the `QATCase`. It is tried on a copy of the case, from `prepare` to `roundtrip`,
and judged by the tolerances of the run. Changes that fit a measured cause come first; then modules are left in float,
those whose rounding costs most first. The first change with which the accuracy holds is recommended, with whatever
else fails then.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import pickle
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.checks import ModelChecks
from pytest_qat.core import progress
from pytest_qat.core.batches import call, labeled
from pytest_qat.core.forked import run_forked
from pytest_qat.core.system import can_fork
from pytest_qat.findings import Finding, json_number
from pytest_qat.finetune import default_optimizer
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.evaluation import CALIBRATION_BATCHES
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings, StageFailed
from pytest_qat.recipe import RECIPES, Recipe, get_recipe
from pytest_qat.record.schema import CHECKS, RemedyRecord
from pytest_qat.verdict import Outcome, score_text

__all__ = ["Change", "Remedy", "changes_for", "mended", "skippable", "with_next"]

_TIMING_S = 4.0
_SLOWER = 0.1
_SIZES = (1, 2, 4, 8)
_LEAST_LEFT = 0.5
"""Where no module is to blame, at least so many of the layers stay in int8."""
_HOPEFUL = 0.2
_RUN_IN_FORKS = frozenset({"torch", "torchscript"})
"""Others keep threads and compiled code that a fork does not have."""
_COSTLY = ("prepare", "convert", "deploy", "coverage", "parity", "accuracy")
_FEWER_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change to a case.

    Attributes:
        text: What to paste, as keywords of `QATCase`.
        fields: The same for `dataclasses.replace`.
        recipe: Another recipe to use; None: the same.
        advice: What to do in the user's own terms, where pasting the text would be no more than a stand-in for it.
    """

    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What came of a change.

    Attributes:
        change: The change.
        outcomes: Outcome of each check by its name; empty if it was not tried.
        accuracy: The scores, where there are any.
        speedup: How much faster than float, where that is known.
        size_reduction: How much smaller than float, where that is known.
        seconds: What the trial took.
        why_not: Why it was not tried, or what failed.
    """

    change: Change
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    speedup: float | None = None
    size_reduction: float | None = None
    seconds: float = 0.0
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
    tried: list[Remedy] = []
    for change in dict.fromkeys(change.text for change in changes):
        tried.append(_tried(run, next(each for each in changes if each.text == change)))
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
        parts.append(f"scores {score_text(found, found.int8)} of float's {score_text(found, found.fp32)} "
                     f"(drop {score_text(found, found.drop)}, 95% interval [{low}, {high}])")
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
                return replace(_judged(case, recipe, settings), change=change, seconds=time.monotonic() - began)
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
    return replace(found, change=change, seconds=time.monotonic() - began)


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
    if outcomes.get("accuracy") not in (Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE):
        return None
    with contextlib.suppress(StageFailed):
        return trial.accuracy()
    return None


_NOTHING = Change(text="")


# -- which changes ------------------------------------------------------------------------------------------------


def changes_for(run: ModelRun, findings: Sequence[Finding]) -> list[Change]:
    """Return what may mend what was found, the likeliest first.

    Args:
        run: The run whose accuracy check failed.
        findings: What is known about it.
    """
    codes = {finding.code for finding in findings}
    changes: list[Change] = []
    case = run.case
    if case.converted is not None:
        return []
    if codes & _BY_DATA and case.eval_data is not None:
        seen = _first_inputs(case.eval_data, field="eval_data")
        if case.train_data is not None and case.calibration_data is not None:
            changes.append(Change(text="calibration_data=None", fields={"calibration_data": None}))
        changes.append(Change(
            text="calibration_data=[inputs for inputs, _ in eval_data]", fields={"calibration_data": seen},
            advice="give calibration_data that look like eval_data; it was tried with those inputs themselves, for "
                   "which other ones of the same kind should stand in."))
    if (clipped := _clipped(case, findings)) is not None:
        changes.append(clipped)
    if codes & _BY_TRAINING and case.fine_tunes:
        changes += _changes_of_training(case)
    if codes & _BY_RANGES:
        own = {name: None for name in ("prepared", "qconfig_mapping", "quantizer") if getattr(case, name) is not None}
        if own:
            changes.append(Change(text=", ".join(f"{name}=None" for name in own), fields=own))
    if "lost-in-conversion" in codes:
        changes += [Change(text=f"recipes=({name!r},)", recipe=name) for name in _other_engines(run.recipe)]
    return changes if codes & (_BY_DATA | _BY_TRAINING) else [*changes, *_skips(run, findings)]


def _other_engines(recipe: Recipe) -> list[str]:
    return [name for name, other in RECIPES.items() if other.engine not in (None, recipe.engine)
            and (other.workflow, other.runtime) == (recipe.workflow, recipe.runtime)]


_BY_DATA = {"calibration-unlike-evaluation"}
_BY_TRAINING = {"lost-in-training", "batch-norm-drifted", "qat-below-ptq"}
_BY_RANGES = {"stale-range", "range-does-not-fit", "one-scale-for-all-channels", "outliers-set-the-range",
              "one-range-for-all-calls"}


def _clipped(case: QATCase, findings: Sequence[Finding]) -> Change | None:
    """Return calibration on data without their outermost values, where those set the ranges."""
    known = next((each.evidence for each in findings if each.code == "outliers-set-the-range"
                  and "without_outliers" in each.evidence), None)
    if known is None:
        return None
    low, high = known["without_outliers"]
    data = [_mapped(inputs, lambda tensor: tensor.clamp(low, high) if tensor.is_floating_point() else tensor)
            for inputs in calibration_batches(case, limit=CALIBRATION_BATCHES)]
    return Change(text=f"calibration_data=[inputs.clamp({low:.3g}, {high:.3g}) for inputs in calibration_data]",
                  fields={"calibration_data": data})


def _mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch of inputs with its tensors changed."""
    return tree_map_only(Tensor, change, inputs)


def _changes_of_training(case: QATCase) -> list[Change]:
    none = Change(text="train=None, train_data=None", fields={"train": None, "train_data": None, "loss_fn": None,
                                                             "calibration_data": _calibration(case)},
                  advice="leave out train and train_data (their inputs are good for calibration_data).")
    if case.train is None:
        make = case.optimizer or default_optimizer

        def slower(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            made = make(parameters)
            for group in made.param_groups:
                group["lr"] *= _SLOWER
            return made

        return [Change(text=f"a learning rate of {_SLOWER:g} times that of the optimizer", fields={"optimizer": slower},
                       advice=f"multiply the learning rate of the optimizer by {_SLOWER:g}."), none]
    train = case.train

    def with_statistics_kept(prepared: nn.Module) -> None:
        for module in prepared.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 0.0
        train(prepared)

    has_norms = any(isinstance(module, _BatchNorm) for module in case.model.modules())
    keeping = Change(text="train with momentum=0 in every batch norm", fields={"train": with_statistics_kept},
                     advice="set momentum to 0 in every batch norm of the prepared model before training it, so that "
                            "its running statistics stay those of the float model.")
    return [keeping, none] if has_norms else [none]


def _calibration(case: QATCase) -> Any:
    if case.calibration_data is not None or case.train_data is None:
        return case.calibration_data
    return _first_inputs(case.train_data, field="train_data")


def _first_inputs(data: Iterable[Any], *, field: str) -> list[Any]:
    """Return the inputs of as many batches as calibration reads."""
    return [inputs for inputs, _ in itertools.islice(labeled(data, field=field), CALIBRATION_BATCHES)]


def _skips(run: ModelRun, findings: Sequence[Finding]) -> Iterator[Change]:
    """Yield modules to leave in float: those to blame, then those whose rounding costs most."""
    blamed = [finding.module for finding in findings
              if finding.module and (finding.severity == "error" or "place" in finding.evidence)]
    largest = [module for finding in findings for module, _ in finding.evidence.get("largest", ()) if module]
    named = skippable(run, blamed)
    sets = [named, *(skippable(run, largest[:size]) for size in _SIZES if size <= len(largest))]
    for names in dict.fromkeys(each for each in sets if each):
        for given in dict.fromkeys((names, with_next(run, names))):
            if _left(run, given) >= (_LEAST_LEFT if names != named else 1e-9):
                own = "" if run.case.prepared is None else "prepared=None, "
                yield Change(text=f"{own}skip={(*run.case.skip, *given)!r}",
                             fields={"skip": (*run.case.skip, *given), "prepared": None})


def _left(run: ModelRun, names: Collection[str]) -> float:
    """Return the share of the layers with weights that stay in int8."""
    layers = [name for name, module in run.case.model.named_modules()
              if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))]
    left_out = [name for name in layers if any(name == each or name.startswith(f"{each}.") for each in names)]
    return 1 - len(left_out) / len(layers) if layers else 0.0


def skippable(run: ModelRun, blamed: Collection[str]) -> tuple[str, ...]:
    """Return the names among these that `skip=` takes; none if one of them is no module of the user's."""
    if run.recipe.workflow == "pt2e" and run.case.quantizer is not None:
        return ()  # a quantizer of the user's own decides by itself
    modules = dict(run.case.model.named_modules())
    names = tuple(dict.fromkeys(name for name in blamed if name))
    if not set(names) <= set(modules) - set(run.case.skip):
        return ()
    # What calls methods of a module, as with these, cannot be told apart by the module.
    return tuple(name for name in names if not isinstance(modules[name], FloatFunctional))


def with_next(run: ModelRun, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return these modules and the layers that are called next after each, where what they return is rounded."""
    called: list[str] = []
    model = run.inputs()
    with torch.inference_mode(), contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, _BatchNorm):
                hooks.callback(module.register_forward_hook(lambda *_, name=name: called.append(name)).remove)
        call(model, run.case.example_inputs)
    inside = [any(each == name or each.startswith(f"{name}.") for name in names) for each in called]
    after = [name for name, before, now in zip(called[1:], inside, inside[1:], strict=False) if before and not now]
    return tuple(dict.fromkeys((*names, *after)))
