"""What came of trying one recipe on a model without training; how that is done is in `probing`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_qat.core.text import percent
from pytest_qat.recipe import RECIPES

__all__ = ["OUT_OF_TIME", "Probe", "Trial", "best_first", "held_to"]

OUT_OF_TIME = "out-of-time"
"""The code of a trial that was not made, or not to its end, for want of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to try.

    Attributes:
        recipe: Name of the recipe.
        skip: Modules to leave in float beside those that the case leaves.
        numbers: Whether to run the artifact and compare its outputs with those that fake-quantize simulates. No float
            artifact is built then where that takes long.
        floor: The speedup to decide about, as `min_speedup`; None: nothing is timed.
    """

    recipe: str
    skip: tuple[str, ...] = ()
    numbers: bool = False
    floor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What came of trying one recipe.

    Attributes:
        recipe: Its name.
        takes: Whether the recipe takes the model; None: it was not tried, or no answer came within the time limit.
        seconds: How long the trial took.
        reason: Why it does not take the model, or why it was not tried; empty if it takes it.
        module: The user's module that it stopped at, where that is known.
        code: Code of the finding behind the reason, where there is one.
        mac_share: Share of the multiply-accumulates that run in int8; None where the artifact does not tell, or the
            model multiplies nothing.
        size_reduction: bytes(float artifact) / bytes(int8 artifact); None where no float artifact was built.
        skip: Modules that were left in float for the trial, beside those that the case leaves.
        agrees: Whether the artifact computes what fake-quantize simulates, as the parity check judges it; None: that
            was not looked at.
        sqnr_db: To how many dB it does; None where it was not looked at, or is infinite.
        float_db: To how many dB fake-quantize, without training, leaves the float model's outputs; None as above.
        speedup: time(float artifact) / time(int8 artifact); None where that was not timed.
        speedup_ci: Its 95 % interval; None as above.
    """

    recipe: str
    takes: bool | None
    seconds: float = 0.0
    reason: str = ""
    module: str | None = None
    code: str | None = None
    mac_share: float | None = None
    size_reduction: float | None = None
    skip: tuple[str, ...] = ()
    agrees: bool | None = None
    sqnr_db: float | None = None
    float_db: float | None = None
    speedup: float | None = None
    speedup_ci: tuple[float, float] | None = None


def best_first(probe: Probe) -> tuple[int, float, bool, float]:
    """Return a sort key: recipes that take the model by share in int8, machine and size, then those that do not."""
    rank = {True: 0, None: 1, False: 2}[probe.takes]
    other_machine = probe.recipe in RECIPES and not RECIPES[probe.recipe].suits_machine
    return rank, -round(probe.mac_share or 0.0, 2), other_machine, -(probe.size_reduction or 0.0)


def held_to(probe: Probe, floor: float) -> Probe:
    """Return a probe as the coverage check will judge it: a recipe that leaves too much in float takes nothing.

    Args:
        probe: What came of a trial.
        floor: The least share of the multiply-accumulates in int8.
    """
    if not probe.takes or probe.mac_share is None or probe.mac_share >= floor:
        return probe
    return replace(probe, takes=False, code="too-little-int8", reason=(
        f"it runs, but only {percent(probe.mac_share, unlike=floor)} of the multiply-accumulates would be in int8, and "
        f"coverage requires {percent(floor)}."))
