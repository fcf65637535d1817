"""Whose rounding changes a model's outputs: each fake-quantizer is switched off in turn, and the outputs compared.

A layer that torch.ao replaces by many modules, such as an LSTM, is one place, and where single places cannot be looked
at in time, or none of them makes much of the error, whole parts of the model are switched off, from large to small.

The reference is the same prepared model with every fake-quantizer off, so that what training changed is no part of the
error. An error is the squared difference in units of the reference's variance over the samples, for each column (dim 1)
of each output by itself, at most 1, and averaged: a column of small values counts as much as one of large values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
_MOST_PARTS = 2
_LARGEST = 8
_ONE_LAYER = 3
"""A layer with so many fake-quantizers inside is one that torch.ao takes apart, as it does an LSTM."""
Errors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """What one fake-quantizer rounds, or all those of a part of the model.

    Attributes:
        module: The user's module; empty for the model's inputs.
        kind: `weight`, `output` (of the module, or what is made behind it), `input` (of the model), or `part`.
        quantizers: Their names in the prepared model: one, or several for a part.
    """

    module: str
    kind: str
    quantizers: tuple[str, ...]

    def __str__(self) -> str:
        if self.kind == "part":
            return f"{self.module} ({len(self.quantizers)} weights and activations)"
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
        largest: Modules by the share of the error that goes away without rounding there, the largest first, as far as
            they were looked at.
    """

    error: float
    few: Effect | None
    tried: int
    of: int
    largest: tuple[tuple[str, float], ...] = ()


def places_of(prepared: nn.Module) -> list[Place]:
    """Return what the fake-quantizers of a prepared model round, in the order of its modules."""
    own = user_names(prepared)
    single = []
    for name, _ in fake_quantizers(prepared):
        module, _, _ = own[name].partition("activation_post_process")
        if ".parametrizations." in module:
            module = module.replace(".parametrizations.", ".").removesuffix(".0")
        owner, dot, leaf = module.rstrip(".").rpartition(".")
        weight = leaf.endswith("weight_fake_quant") or leaf == "weight"
        user = (owner if dot else "") if weight else module.rstrip(".")
        single.append(Place(user, "weight" if weight else "output" if user else "input", (name,)))
    outermost = {user: actual for actual, user in reversed(own.items()) if user}
    layers = {user: tuple(place for place in single if place.module == user
                          and place.quantizers[0].startswith(f"{actual}.")) for user, actual in outermost.items()}
    many = {user: _joined(user, [place for place in single if place.module == user])
            for user, places in layers.items() if len(places) >= _ONE_LAYER}
    inside = {name for place in many.values() for name in place.quantizers}
    return [*(place for place in single if place.quantizers[0] not in inside), *many.values()]


def _joined(module: str, places: Sequence[Place]) -> Place:
    return Place(module, "part", tuple(name for place in places for name in place.quantizers))


def effects_of(prepared: nn.Module, batches: Sequence[Any], reference: Sequence[list[Tensor]], whole: Errors, *,
               budget_s: float, passed_s: float) -> Effects:
    """Find the few places whose rounding makes most of the error of a prepared model.

    Each place is switched off alone; then, beginning with the one that helps most, further ones are added. If that
    leads nowhere, each is left on alone, and the worst are switched off together; then parts of the model are switched
    off. Parts come first where there is no time for each place.

    Args:
        prepared: Calibrated, in eval mode; switched about, and left as it was.
        batches: What to run it on.
        reference: What it returns with nothing rounded.
        whole: Its error as it is, which is not zero.
        budget_s: Most seconds.
        passed_s: Seconds that a pass over the batches takes.
    """
    places = [place for place in places_of(prepared) if any(
        rounds(prepared.get_submodule(name)) for name in place.quantizers)]
    ends = time.monotonic() + budget_s
    with torch.inference_mode(), progress.step("looking whose rounding matters", unit="passes",
                                               limit_s=budget_s) as shown:
        def error_without(off: Collection[Place]) -> Errors:
            with switched_off(prepared, [name for place in off for name in place.quantizers]):
                shown.advance()
                return error_of(reference, prepared, batches)

        search = _Search(whole=whole, places=places, error_without=error_without,
                         in_time=lambda: time.monotonic() < ends)
        if passed_s * len(places) > budget_s:
            return search.told(search.parts())
        return search.told(search.few() or search.few_that_hide_each_other() or search.parts())


def error_of(reference: Sequence[list[Tensor]], model: nn.Module, batches: Sequence[Any]) -> Errors:
    """Return the error of each sample, where a model's outputs on some batches are compared with known ones."""
    return _errors(reference, [float_tensors(call(model, inputs)) for inputs in batches])


@dataclass(kw_only=True)
class _Search:
    """A search for the few places whose rounding makes most of an error.

    Attributes:
        whole: The error with all places rounded.
        places: All of them.
        error_without: Measures the error with some switched off.
        in_time: Whether there is time left.
        alone: The error without each place, as far as that is known.
    """

    whole: Errors
    places: Sequence[Place]
    error_without: Callable[[Collection[Place]], Errors]
    in_time: Callable[[], bool]
    alone: dict[Place, Errors] = field(default_factory=dict)

    def told(self, few: Effect | None) -> Effects:
        """Return what was found."""
        shares: dict[str, float] = {}
        for place, left in self.alone.items():
            if place.module:
                shares[place.module] = shares.get(place.module, 0.0) + self._share(left)
        largest = sorted(((module, round(share, 4)) for module, share in shares.items() if share > 0),
                         key=lambda each: -each[1])[:_LARGEST]
        return Effects(error=float(self.whole.mean()), few=few, tried=len(self.alone), of=len(self.places),
                       largest=tuple(largest))

    def few(self) -> Effect | None:
        """Return the fewest places, found by adding the one that helps most, that make most of the error."""
        for place in self.places:
            if not self.in_time():
                break
            self.alone[place] = self.error_without((place,))
        return self._grown(self.alone, most=_MOST)

    def _grown(self, alone: Mapping[Place, Errors], *, most: int) -> Effect | None:
        best = sorted(alone, key=lambda place: float(alone[place].mean()))[:_CANDIDATES]
        if not best:
            return None
        chosen: tuple[Place, ...] = (best[0],)
        left = alone[best[0]]
        while (share := self._share(left)) < _ENOUGH and len(chosen) < most:
            further = {}
            for place in best:
                if place not in chosen:
                    if not self.in_time():
                        return None
                    further[place] = self.error_without((*chosen, place))
            if not further:
                break
            helps = min(further, key=lambda place: float(further[place].mean()))
            if self._share(further[helps]) < share + _LEAST:
                break
            chosen, left = (*chosen, helps), further[helps]
        return self._effect(chosen, left)

    def few_that_hide_each_other(self) -> Effect | None:
        """Return the fewest places that make most of the error, beginning with those that make most of it alone.

        Where each of two places destroys the outputs, leaving one of them unrounded shows nothing.
        """
        if len(self.alone) < len(self.places):
            return None
        made: dict[Place, float] = {}
        for place in self.places:
            if not self.in_time():
                return None
            made[place] = float(self.error_without([other for other in self.places if other != place]).mean())
        worst = sorted(made, key=lambda place: -made[place])
        for count in range(1, min(_MOST, len(worst)) + 1):
            if found := self._effect(tuple(worst[:count]), self.error_without(worst[:count])):
                return found
        return None

    def parts(self) -> Effect | None:
        """Return the smallest part of the model, or two, whose rounding makes most of the error.

        A part that holds more than half of all places is none: it says nothing about where to look.
        """
        found: Effect | None = None
        parts = _parts_of(self.places)
        while len(parts) > 1:
            without = {}
            for part in parts:
                if not self.in_time():
                    return found
                without[part] = self.error_without((part,))
            grown = self._grown(without, most=_MOST_PARTS)
            if grown is None:
                return found
            count = sum(len(part.quantizers) for part in grown.places)
            if 2 * count <= sum(len(place.quantizers) for place in self.places) or self._is_one_layer(grown):
                found = grown
            inside = {name for part in grown.places for name in part.quantizers}
            parts = _parts_of([place for place in self.places if place.quantizers[0] in inside])
        return found

    def _is_one_layer(self, effect: Effect) -> bool:
        return len(effect.places) == 1 and effect.places[0] in self.places

    def _share(self, left: Errors) -> float:
        return float(1 - left.mean() / self.whole.mean())

    def _effect(self, places: tuple[Place, ...], left: Errors) -> Effect | None:
        share = self._share(left)
        return Effect(places=places, share=share, interval=_interval(self.whole, left)) if share >= _ENOUGH else None


def _parts_of(places: Sequence[Place]) -> list[Place]:
    """Return places by the part of the model that they lie in: the first level of names at which they differ."""
    depth = 1
    while True:
        parts: dict[str, list[Place]] = {}
        for place in places:
            parts.setdefault(".".join(place.module.split(".")[:depth]), []).append(place)
        if len(parts) > 1 or depth > max((place.module.count(".") for place in places), default=0):
            return [held[0] if len(held) == 1 else _joined(name, held) for name, held in parts.items() if name] + (
                parts.get("", []))
        depth += 1


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
