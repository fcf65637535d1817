"""Whose rounding changes a model's outputs: each fake-quantizer is switched off in turn, and the outputs compared.

The reference is the same prepared model with every fake-quantizer off, so that what training changed is no part of the
error. An error is the squared difference in units of the reference's variance over the samples, for each column (dim 1)
of each output by itself, at most 1, and averaged: a column of small values counts as much as one of large values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pytest_qat.core import progress
from pytest_qat.core.batches import call, float_tensors
from pytest_qat.workflows.names import user_names
from pytest_qat.workflows.observers import fake_quantizers, rounds, switch_quantizers

__all__ = ["Effect", "Effects", "Errors", "Place", "effects_of", "error_of", "places_of", "switched_off"]

_RESAMPLES = 400
_ENOUGH = 0.7
"""Share of the error that a few places must make to be named together."""
_LEAST = 0.1
"""A place whose rounding makes less than this share of the error is not named."""
_MOST = 4
"""More places than this are not "a few"."""
_CANDIDATES = 8
Errors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """What one fake-quantizer rounds.

    Attributes:
        module: The user's module; empty for the model's inputs.
        kind: `weight`, `output` (of the module, or what is made behind it) or `input` (of the model).
        quantizer: Its name in the prepared model.
    """

    module: str
    kind: str
    quantizer: str

    def __str__(self) -> str:
        return "the model's input" if self.kind == "input" else f"the {self.kind} of {self.module or 'the model'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What rounding at some places does to the outputs.

    Attributes:
        places: Where.
        share: Share of the whole error that goes away without it.
        interval: 95 % interval of the share, over the samples.
    """

    places: tuple[Place, ...]
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Whose rounding changes the outputs.

    Attributes:
        error: The whole error, from 0 to 1.
        few: The few places that make most of it; None if none do, or time was up before that was known.
        tried: How many places were looked at.
        of: How many there are.
    """

    error: float
    few: Effect | None
    tried: int
    of: int


def places_of(prepared: nn.Module) -> list[Place]:
    """Return what each fake-quantizer of a prepared model rounds, in the order of its modules."""
    own = user_names(prepared)
    found = []
    for name, _ in fake_quantizers(prepared):
        module, _, _ = own[name].partition("activation_post_process")
        owner, dot, leaf = module.rstrip(".").rpartition(".")
        weight = leaf.endswith("weight_fake_quant") or leaf == "weight"
        user = (owner if dot else "") if weight else module.rstrip(".")
        found.append(Place(user, "weight" if weight else "output" if user else "input", name))
    return found


def effects_of(prepared: nn.Module, batches: Sequence[Any], reference: Sequence[list[Tensor]], whole: Errors, *,
               budget_s: float) -> Effects:
    """Find the few places whose rounding makes most of the error of a prepared model.

    Each place is switched off alone; then, beginning with the one that helps most, further ones are added. If that
    leads nowhere, each is left on alone, and the worst are switched off together.

    Args:
        prepared: Calibrated, in eval mode; switched about, and left as it was.
        batches: What to run it on.
        reference: What it returns with nothing rounded.
        whole: Its error as it is, which is not zero.
        budget_s: Most seconds.
    """
    places = [place for place in places_of(prepared) if rounds(prepared.get_submodule(place.quantizer))]
    ends = time.monotonic() + budget_s
    with torch.inference_mode(), progress.step("looking whose rounding matters", total=len(places), unit="places",
                                               limit_s=budget_s) as shown:
        def error_without(off: Collection[Place]) -> Errors:
            with switched_off(prepared, [place.quantizer for place in off]):
                return error_of(reference, prepared, batches)

        alone: dict[Place, Errors] = {}
        for place in places:
            if time.monotonic() > ends:
                break
            alone[place] = error_without((place,))
            shown.advance()
        few = _few(whole, alone, error_without, in_time=lambda: time.monotonic() < ends)
        if few is None and len(alone) == len(places):
            few = _few_that_hide_each_other(whole, places, error_without, in_time=lambda: time.monotonic() < ends)
    return Effects(error=float(whole.mean()), few=few, tried=len(alone), of=len(places))


def error_of(reference: Sequence[list[Tensor]], model: nn.Module, batches: Sequence[Any]) -> Errors:
    """Return the error of each sample, where a model's outputs on some batches are compared with known ones."""
    return _errors(reference, [float_tensors(call(model, inputs)) for inputs in batches])


def _few(whole: Errors, alone: dict[Place, Errors], error_without: Callable[[Collection[Place]], Errors], *,
         in_time: Callable[[], bool]) -> Effect | None:
    """Return the fewest places, found by adding the one that helps most, that make most of the error."""
    best = sorted(alone, key=lambda place: float(alone[place].mean()))[:_CANDIDATES]
    if not best:
        return None
    chosen: tuple[Place, ...] = (best[0],)
    left = alone[best[0]]
    while (share := 1 - left.mean() / whole.mean()) < _ENOUGH and len(chosen) < _MOST:
        further = {}
        for place in best:
            if place not in chosen:
                if not in_time():
                    return None
                further[place] = error_without((*chosen, place))
        if not further:
            break
        helps = min(further, key=lambda place: float(further[place].mean()))
        if 1 - further[helps].mean() / whole.mean() < share + _LEAST:
            break
        chosen, left = (*chosen, helps), further[helps]
    share = float(1 - left.mean() / whole.mean())
    return Effect(places=chosen, share=share, interval=_interval(whole, left)) if share >= _ENOUGH else None


def _few_that_hide_each_other(whole: Errors, places: Sequence[Place],
                              error_without: Callable[[Collection[Place]], Errors], *,
                              in_time: Callable[[], bool]) -> Effect | None:
    """Return the fewest places that make most of the error, beginning with those that make most of it alone.

    Where each of two places destroys the outputs, leaving one of them unrounded shows nothing.
    """
    made: dict[Place, float] = {}
    for place in places:
        if not in_time():
            return None
        made[place] = float(error_without([other for other in places if other != place]).mean())
    worst = sorted(made, key=lambda place: -made[place])
    for count in range(1, min(_MOST, len(worst)) + 1):
        left = error_without(worst[:count])
        if (share := float(1 - left.mean() / whole.mean())) >= _ENOUGH:
            return Effect(places=tuple(worst[:count]), share=share, interval=_interval(whole, left))
    return None


def _interval(whole: Errors, left: Errors) -> tuple[float, float]:
    """Return the 95 % interval of a share of the error, by drawing samples again."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(whole), size=(_RESAMPLES, len(whole)))
    before, after = whole[drawn].mean(1), left[drawn].mean(1)
    shares = 1 - after / np.where(before > 0, before, 1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def _errors(reference: Sequence[list[Tensor]], outputs: Sequence[list[Tensor]]) -> Errors:
    """Return the error of each sample: one per column, at most 1, averaged over columns and outputs."""
    samples: list[Errors] = []
    for index in range(len(reference[0])):
        want = torch.cat([_columns(each[index]) for each in reference]).double()
        made = torch.cat([_columns(each[index]) for each in outputs]).double()
        spread = want.var((0, 2), correction=0, keepdim=True)
        alive = (spread > 1e-12 * spread.max()).flatten()
        if not bool(alive.any()):
            continue
        error = ((made - want) ** 2 / spread.clamp_min(torch.finfo(torch.float64).tiny))[:, alive]
        samples.append(error.nan_to_num(1.0).mean(2).clamp_max(1.0).mean(1).numpy())
    sizes = {len(each) for each in samples}
    if len(sizes) != 1:  # outputs without a batch dimension, or none that varies
        return np.array([float(np.mean([each.mean() for each in samples]))] if samples else [0.0])
    return np.asarray(np.mean(samples, axis=0), dtype=np.float64)


def _columns(output: Tensor) -> Tensor:
    """Return an output as samples x columns x positions."""
    if output.dim() < 2:
        return output.reshape(-1, 1, 1)
    return output.flatten(2) if output.dim() > 2 else output.unsqueeze(2)


@contextmanager
def switched_off(prepared: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Switch fake-quantizers off, all of which are on, and on again."""
    quantizers = [prepared.get_submodule(name) for name in names]
    switch_quantizers(quantizers, on=False)
    try:
        yield
    finally:
        switch_quantizers(quantizers, on=True)
