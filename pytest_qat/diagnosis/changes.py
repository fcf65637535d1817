"""Which changes to a case may mend what was found in its model, the likeliest first.

A change is something to paste into the `QATCase`. Those that fit a measured cause come first; then modules are left in
float, those whose rounding costs most first.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call, labeled
from pytest_qat.findings import Finding
from pytest_qat.finetune import default_optimizer
from pytest_qat.measure.evaluation import CALIBRATION_BATCHES
from pytest_qat.pipeline.run import ModelRun
from pytest_qat.recipe import RECIPES, Recipe

__all__ = ["Change", "changes_for", "skippable", "with_next"]

_SLOWER = 0.1
_SIZES = (1, 2, 4, 8)
_TAKEN_APART = (nn.LSTM, nn.GRU, nn.MultiheadAttention)
"""Layers that torch.ao replaces by one module for each step and gate, of which each rounds."""
_LEAST_LEFT = 0.5
"""Where no module is to blame, at least so many of the layers stay in int8."""


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
        seen = [inputs for inputs, _ in itertools.islice(labeled(case.eval_data, field="eval_data"),
                                                         CALIBRATION_BATCHES)]
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
    data = tree_map_only(Tensor, lambda tensor: tensor.clamp(low, high) if tensor.is_floating_point() else tensor,
                         calibration_batches(case, limit=CALIBRATION_BATCHES))
    return Change(text=f"calibration_data=[inputs.clamp({low:.3g}, {high:.3g}) for inputs in calibration_data]",
                  fields={"calibration_data": data})


def _changes_of_training(case: QATCase) -> list[Change]:
    none = Change(text="train=None, train_data=None", fields={
                      "train": None, "train_data": None, "loss_fn": None,
                      "calibration_data": calibration_batches(case, limit=CALIBRATION_BATCHES)},
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


def _skips(run: ModelRun, findings: Sequence[Finding]) -> Iterator[Change]:
    """Yield modules to leave in float: those to blame, then those whose rounding costs most."""
    blamed = [finding.module for finding in findings
              if finding.module and (finding.severity == "error" or "place" in finding.evidence)]
    largest = [module for finding in findings for module, _ in finding.evidence.get("largest", ()) if module]
    named = skippable(run, blamed)
    sets = [named, *(skippable(run, largest[:size]) for size in _SIZES if size <= len(largest))]
    if not named and not largest:  # simulating such a layer is so slow that there was no time to look
        sets.append(skippable(run, [name for name, module in run.case.model.named_modules()
                                    if isinstance(module, _TAKEN_APART)]))
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
