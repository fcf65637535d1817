"""The latency figures of one run: like for like, over eager, float against itself, by batch size, and energy.

All comparisons share one budget. If the model is too slow for it, each side is called only once or twice, and the
other figures are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_qat.core.batches import float_tensors, sample_count, with_batch
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import MeasurementError
from pytest_qat.measure.energy import NOT_MOVING, Energy, find_meter, measure_energy
from pytest_qat.measure.latency import Speedup, TimingSettings, compare_latency
from pytest_qat.measure.parity import HEALTHY_DB, sqnr_db
from pytest_qat.runtimes.base import Deployed

__all__ = ["BatchSpeed", "Speed", "bound", "faster_layout", "measure_speed", "overhead_share"]

_SIDE_SHARE = 0.1
"""Share of the budget for each comparison other than the main one."""
SIDE_PAIRS = 12
LAYOUT_PAIRS = 40
_LAYOUT_GAIN = 1.03
"""channels_last is chosen only if it is faster by this factor, so that repeated runs choose the same layout."""
_TOO_SLOW_SHARE = 0.25
_ENERGY_WINDOW_S, _ENERGY_SETTLE_S = 0.5, 2.0

Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpeed:
    """The like-for-like comparison at one batch size.

    Attributes:
        batch: Number of samples.
        speedup: Result of the comparison; None if the model cannot run this batch size.
        problem: Why it cannot.
        overhead: Share of an int8 call that does not grow with the batch; None if only one size could be run.
    """

    batch: int
    speedup: Speedup | None
    problem: str | None = None
    overhead: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The timings of one run on the example inputs.

    Attributes:
        like_for_like: Deployed int8 against deployed float, same runtime and threads.
        over_eager: Deployed int8 against the user's model as written, in eager fp32; None if there was no time for it.
        noise: Float against itself, which gives 1 on a steady machine; None if there was no time for it.
        layouts: Memory layout chosen for each side: contiguous, unless channels_last is at least 3 % faster.
        samples: Batch size.
        batches: The comparison by batch size, smallest first, including the example inputs' own size; empty if no other
            sizes were requested.
        energy: Energy of a sample; None where it cannot be counted.
        energy_note: Why it cannot.
    """

    like_for_like: Speedup
    over_eager: Speedup | None
    noise: Speedup | None
    layouts: dict[str, str]
    samples: int
    batches: tuple[BatchSpeed, ...]
    energy: Energy | None
    energy_note: str | None

    @property
    def noise_floor(self) -> float | None:
        """The largest difference from 1 in the interval of float against itself, a fraction; None if unknown."""
        return None if self.noise is None else max(self.noise.ci[1] - 1, 1 - self.noise.ci[0])


def overhead_share(latency_s: Mapping[int, float], batch: int) -> float:
    """Return the share of a call at `batch` that does not grow with the batch.

    Args:
        latency_s: Seconds of a call by batch size, for at least two sizes; the overhead is read from a straight line
            through the smallest and the largest.
        batch: One of these batch sizes.
    """
    small, large = min(latency_s), max(latency_s)
    per_sample = (latency_s[large] - latency_s[small]) / (large - small)
    fixed = latency_s[small] - per_sample * small
    return min(1.0, max(0.0, fixed / latency_s[batch]))


def measure_speed(*, fp32: Mapping[str, Deployed], int8: Mapping[str, Deployed], eager: Call, inputs: tuple[Any, ...],
                  floor: float, settings: TimingSettings, batches: Sequence[int] = ()) -> Speed:
    """Time both sides. Call this with the number of threads set and the machine's lock held.

    Args:
        fp32: The deployed float model, by layout.
        int8: The deployed int8 model, by layout.
        eager: One call of the user's model as written.
        inputs: The example inputs.
        floor: The speedup to decide about.
        settings: Budget of everything except the batch sizes and the energy.
        batches: Other batch sizes to compare at.
    """
    ends = time.monotonic() + settings.max_time_s
    brief = replace(settings, max_time_s=settings.max_time_s * _SIDE_SHARE, max_pairs=SIDE_PAIRS, least_s=0.0)
    samples = sample_count(inputs)
    with fp32["contiguous"].session(), int8["contiguous"].session():
        float_call = bound(fp32["contiguous"], inputs, "float")
        int8_call = bound(int8["contiguous"], inputs, "int8")
        first = compare_latency(float_call, int8_call, settings=replace(settings, max_pairs=1))
        if first.elapsed_s > settings.max_time_s * _TOO_SLOW_SHARE:
            return Speed(like_for_like=first, over_eager=None, noise=None, samples=samples, batches=(), energy=None,
                         layouts=dict.fromkeys(("fp32", "int8"), "contiguous"),
                         energy_note="not measured: --qat-max-time leaves no time for it")
        choice = replace(brief, max_pairs=LAYOUT_PAIRS, margin=1.0)
        float_layout, slow = faster_layout(fp32, float_call, inputs, choice, "float")
        int8_layout, fast = faster_layout(int8, int8_call, inputs, choice, "int8")
        chosen = {"fp32": fp32[float_layout], "int8": int8[int8_layout]}
        noise = compare_latency(slow, slow, settings=brief)
        left_s = max(ends - time.monotonic() - brief.max_time_s, brief.max_time_s)
        main = compare_latency(slow, fast, floor=floor, settings=replace(settings, max_time_s=left_s))
        with torch.inference_mode():
            over_eager = compare_latency(eager, fast, settings=brief)
        sweep = [_at_batch(chosen, inputs, batch, replace(brief, max_pairs=None), floor)
                 for batch in batches if batch != samples]
        energy, note = _energy({"fp32": slow, "int8": fast}, samples)
    return Speed(like_for_like=main, over_eager=over_eager, noise=noise, samples=samples, energy=energy,
                 layouts={"fp32": float_layout, "int8": int8_layout}, energy_note=note,
                 batches=_with_overhead([*sweep, BatchSpeed(batch=samples, speedup=main)]) if batches else ())


def _at_batch(forms: Mapping[str, Deployed], inputs: tuple[Any, ...], batch: int, settings: TimingSettings,
              floor: float) -> BatchSpeed:
    try:
        resized = with_batch(inputs, batch)
        sides = [bound(forms[side], resized, side) for side in ("fp32", "int8")]
        for call in sides:
            call()
    except Exception as error:  # models and runtimes for a fixed batch size raise all kinds of errors
        cause = error.__cause__ if isinstance(error, MeasurementError) and error.__cause__ else error
        return BatchSpeed(batch=batch, speedup=None, problem=f"{type(cause).__name__}: {headline(cause)}")
    return BatchSpeed(batch=batch, speedup=compare_latency(*sides, settings=settings, floor=floor))


def _with_overhead(sweep: Sequence[BatchSpeed]) -> tuple[BatchSpeed, ...]:
    latency = {entry.batch: entry.speedup.candidate.p50 for entry in sweep if entry.speedup is not None}
    ordered = sorted(sweep, key=lambda entry: entry.batch)
    if len(latency) < 2:
        return tuple(ordered)
    return tuple(replace(entry, overhead=overhead_share(latency, entry.batch)) if entry.batch in latency else entry
                 for entry in ordered)


def _energy(calls: Mapping[str, Call], samples: int) -> tuple[Energy | None, str | None]:
    meter, reason = find_meter()
    if meter is None:
        return None, reason
    try:
        energy = measure_energy(meter, calls, samples=samples, seconds=_ENERGY_WINDOW_S,
                                settle_s=_ENERGY_SETTLE_S)
    except Exception as error:  # a counter that fails must not cost the speed verdict
        return None, f"reading the energy counters failed: {type(error).__name__}: {headline(error)}"
    return energy, NOT_MOVING if energy is None else None


def faster_layout(forms: Mapping[str, Deployed], contiguous: Call, inputs: tuple[Any, ...], settings: TimingSettings,
                  side: str) -> tuple[str, Call]:
    """Return the name of the faster memory layout, and the call in that layout."""
    if "channels_last" not in forms:
        return "contiguous", contiguous
    channels_last = bound(forms["channels_last"], inputs, side)
    if not _same_answers(contiguous(), channels_last()):
        return "contiguous", contiguous
    gain = compare_latency(contiguous, channels_last, settings=settings, floor=_LAYOUT_GAIN).estimate
    return ("channels_last", channels_last) if gain >= _LAYOUT_GAIN else ("contiguous", contiguous)


def _same_answers(one: object, other: object) -> bool:
    """Whether two layouts give the same outputs up to rounding; a layout with other outputs must not be timed."""
    mine, others = float_tensors(one), float_tensors(other)
    return [tensor.shape for tensor in mine] == [tensor.shape for tensor in others] and all(
        sqnr_db(signal, noisy) >= HEALTHY_DB for signal, noisy in zip(mine, others, strict=True))


def bound(form: Deployed, inputs: tuple[Any, ...], side: str) -> Call:
    """Return a function that makes one call of a deployed model on these inputs; this function does not call the model.

    Some kernels choose their implementation in their first call, so make the first call with the number of threads
    that will be used for the timing.
    """
    adapted, model = form.adapt(inputs), form.run if form.fresh is None else form.fresh()

    def run() -> object:
        try:
            return model(adapted)
        except Exception as error:
            raise MeasurementError(f"the {side} model raised {type(error).__name__} while it was timed: "
                                   f"{headline(error)}.") from error

    return run
