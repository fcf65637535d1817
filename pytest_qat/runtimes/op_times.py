"""How long each op of a call takes, in runtimes that run torch's ops."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from pytest_qat.core.quiet import silenced
from pytest_qat.runtimes.base import OpTime

__all__ = ["longest_first", "repeat", "torch_op_times"]

_CALLS, _MOST_S = 10, 2.0


def torch_op_times(call: Callable[[], object]) -> tuple[OpTime, ...]:
    """Profile a call, which must have been made before, and return what each of torch's ops takes by itself.

    Args:
        call: One call of the model.
    """
    with silenced(), torch.autograd.profiler.profile(record_shapes=True) as profile:  # its logger writes to stderr
        calls = repeat(call)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profile.function_events or ():
        if "::" not in event.name:  # a range around ops, such as a compiled region
            continue
        shapes = [f"[{', '.join(map(str, shape))}]" for shape in event.input_shapes or () if shape]
        seconds[event.name, " x ".join(shapes[:2])].append(event.self_cpu_time_total / 1e6)
    return longest_first([
        OpTime(op=op, shapes=shapes, seconds=statistics.median(found) * len(found) / calls)
        for (op, shapes), found in seconds.items()])


def repeat(call: Callable[[], object]) -> int:
    """Make a few calls, no more than take two seconds, and return how many."""
    ends, made = time.monotonic() + _MOST_S, 0
    while made < _CALLS and time.monotonic() < ends:
        call()
        made += 1
    return made


def longest_first(found: list[OpTime]) -> tuple[OpTime, ...]:
    """Return the ops by their time."""
    return tuple(sorted(found, key=lambda each: -each.seconds))
