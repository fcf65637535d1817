"""Where the time of a slow int8 call goes, kind by kind, against the float call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pytest_qat.core.text import call_time
from pytest_qat.findings import Finding
from pytest_qat.runtimes.base import OpTime

__all__ = ["cause_in_ops"]

_EXPLAINED = 0.5
"""Kinds are named, the worst first, until they make at least this share of what int8 takes too long."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of work: the code of its finding, the names of its ops in the runtimes, and what it is called."""

    code: str
    names: str
    title: str
    verb: str = "take"


_OUTSIDE = _Kind("slow-calls", "(?!)", "work outside of ops (modules in Python, dispatch, generated code)", "takes")
_KINDS = (
    _Kind("slow-int8-kernels", r"conv(?!ert)|::linear|qlinear_|matmul|matrix multiply|fully connected|gemm|mm$|"
          r"attention|lstm|gru", "convolutions, linear layers and matrix products"),
    _Kind("slow-conversions", r"quantize(?!d)|choose_qparams|^convert", "quantizing and dequantizing"),
    _Kind("slow-copies", r"copy|clone|contiguous|_to|::cat|concat|stack|permute|transpose|reorder|pad|slice|split",
          "copies and changes of layout"),
    _OUTSIDE,
    _Kind("slow-other-ops", r"", "other ops"),
)
"""An op is of the first kind that its name matches."""


@dataclass(frozen=True, slots=True)
class _Side:
    """What a call takes, as a whole and by kind, and its ops, in seconds."""

    whole: float
    by_kind: Mapping[_Kind, float]
    ops: Mapping[_Kind, tuple[OpTime, ...]]


def cause_in_ops(fp32: Sequence[OpTime], int8: Sequence[OpTime], *, calls_s: tuple[float, float],
                 floor: float) -> Finding | None:
    """Return which kind of work makes int8 too slow; None if the runtime did not tell.

    Args:
        fp32: Times of the float model's ops.
        int8: Times of the int8 model's.
        calls_s: Seconds of a float and of an int8 call, timed without a profiler.
        floor: The speedup that is required.
    """
    if not (fp32 and int8):
        return None
    base, made = _side(fp32, calls_s[0]), _side(int8, calls_s[1])
    excess = {kind: made.by_kind[kind] - base.by_kind[kind] / floor for kind in _KINDS}
    late = made.whole - base.whole / floor
    worst: list[_Kind] = []
    for kind in sorted(_KINDS, key=lambda kind: -excess[kind]):
        worst.append(kind)
        if sum(excess[each] for each in worst) >= _EXPLAINED * late:
            break
    return Finding(
        code=worst[0].code, severity="warning",
        evidence={"floor": floor, "seconds": {side: {kind.code: found.by_kind[kind] for kind in _KINDS}
                                              for side, found in (("fp32", base), ("int8", made))}},
        message="; ".join(_text(kind, base, made) for kind in worst) + ".")


def _text(kind: _Kind, base: _Side, made: _Side) -> str:
    longest = ", ".join(f"{each.op}{f' on {each.shapes}' if each.shapes else ''} {call_time(each.seconds)}"
                        for each in made.ops[kind][:_NAMED])
    return (f"{kind.title} {kind.verb} {call_time(made.by_kind[kind])} of an int8 call's {call_time(made.whole)}, and "
            f"{call_time(base.by_kind[kind])} of a float call's {call_time(base.whole)}"
            f"{f' (in int8 {longest})' if longest else ''}")


def _side(times: Sequence[OpTime], call_s: float) -> _Side:
    """Sort ops by kind; a profiler slows calls down, so that ops may take more than a call without it."""
    ops: dict[_Kind, tuple[OpTime, ...]] = dict.fromkeys(_KINDS, ())
    for each in times:
        kind = next(kind for kind in _KINDS if re.search(kind.names, each.op, re.IGNORECASE))
        ops[kind] = (*ops[kind], each)
    by_kind = {kind: sum(each.seconds for each in found) for kind, found in ops.items()}
    by_kind[_OUTSIDE] = max(0.0, call_s - sum(by_kind.values()))
    return _Side(sum(by_kind.values()), MappingProxyType(by_kind), MappingProxyType(ops))
