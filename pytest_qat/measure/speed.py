"""The latency figures of one run: like for like, over eager, float against itself, and energy where it is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_qat.batches import sample_count
from pytest_qat.measure.energy import find_counters, joules_per_call
from pytest_qat.measure.latency import Speedup, TimingSettings, compare_latency
from pytest_qat.runtimes.base import Deployed

__all__ = ["Speed", "measure_speed"]

_SIDE_BUDGET_S = 2.0
_ENERGY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What timing found, on the example inputs.

    Attributes:
        like_for_like: Deployed int8 against deployed float, same runtime and threads.
        over_eager: Deployed int8 against the user's model as written.
        noise_floor: How far float against itself lies from 1, a fraction.
        layouts: Memory layout chosen for each side, the faster one.
        samples: Batch size.
        energy_j_per_sample: Joules per sample by side; None where the machine has no counter.
    """

    like_for_like: Speedup
    over_eager: Speedup
    noise_floor: float
    layouts: dict[str, str]
    samples: int
    energy_j_per_sample: dict[str, float] | None


def measure_speed(*, fp32: Mapping[str, Deployed], int8: Mapping[str, Deployed], eager: Callable[[], object],
                  inputs: tuple[Any, ...], floor: float, settings: TimingSettings) -> Speed:
    """Time both sides; call it with threads pinned and the machine's lock held.

    Args:
        fp32: The deployed float model, by layout.
        int8: The deployed int8 model, by layout.
        eager: One call of the user's model as written.
        inputs: The example inputs.
        floor: The speedup to decide about.
        settings: Budget.
    """
    brief = replace(settings, max_time_s=min(_SIDE_BUDGET_S, settings.max_time_s), min_time_s=0.0,
                    block_s=settings.block_s / 4, discard_s=settings.discard_s / 4, max_pairs=settings.first_look)
    with fp32["contiguous"].session(), int8["contiguous"].session():
        slow, slow_layout = _faster(fp32, inputs, brief)
        fast, fast_layout = _faster(int8, inputs, brief)
        noise = compare_latency(slow, slow, settings=brief)
        main = compare_latency(slow, fast, floor=floor, settings=settings)
        with torch.inference_mode():
            over_eager = compare_latency(eager, fast, settings=brief)
        samples = sample_count(inputs)
        counters = find_counters()
        energy = {side: joules_per_call(run, counters, seconds=_ENERGY_S) / samples
                  for side, run in (("fp32", slow), ("int8", fast))} if counters else None
    return Speed(like_for_like=main, over_eager=over_eager, noise_floor=abs(noise.estimate - 1), samples=samples,
                 layouts={"fp32": slow_layout, "int8": fast_layout}, energy_j_per_sample=energy)


def _faster(forms: Mapping[str, Deployed], inputs: tuple[Any, ...],
            settings: TimingSettings) -> tuple[Callable[[], object], str]:
    """Return a call of the faster layout, and its name."""
    calls = {layout: _bound(form, inputs) for layout, form in forms.items()}
    if len(calls) == 1:
        layout = next(iter(calls))
        return calls[layout], layout
    gain = compare_latency(calls["contiguous"], calls["channels_last"], settings=settings).estimate
    layout = "channels_last" if gain > 1 else "contiguous"
    return calls[layout], layout


def _bound(form: Deployed, inputs: tuple[Any, ...]) -> Callable[[], object]:
    adapted = form.adapt(inputs)
    return lambda: form.run(adapted)
