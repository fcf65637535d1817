"""Numbers as messages and reports write them."""

from __future__ import annotations

import math

__all__ = ["call_time", "duration", "fixed", "percent"]

_MOST_DIGITS = 4


def percent(share: float, *, digits: int = 1, unlike: float | None = None) -> str:
    """Return a share as a percentage that never rounds to a lie.

    What is not nothing does not show as 0 %, and what is not all does not show as 100 %: such a share takes more
    digits, up to four, and then a sign (`<0.0001%`, `>99.9999%`).

    Args:
        share: 1 is all.
        digits: Digits behind the point, where they are enough.
        unlike: Another share that differs and must not look the same, such as what is required.
    """
    if not math.isfinite(share):
        return f"{share:.{digits}%}"
    marks = [mark for mark in (0.0, 1.0, -1.0, unlike) if mark is not None and mark != share]
    for places in range(digits, max(digits, _MOST_DIGITS) + 1):
        text = f"{share:.{places}%}"
        if all(float(text[:-1]) != float(f"{mark:.{places}%}"[:-1]) for mark in marks):
            return text.removeprefix("-") if float(text[:-1]) == 0 else text
    nearest = next(mark for mark in marks if float(text[:-1]) == float(f"{mark:.{places}%}"[:-1]))
    step = 10.0 ** -places / 100
    edge = nearest + math.copysign(step, share - nearest)
    return f"{'<' if share < edge else '>'}{edge:.{places}%}"


def fixed(value: float, *, digits: int, unlike: float) -> str:
    """Return a number with so many digits behind the point, or up to four where it would look like another one.

    What would look like it with four digits, too, is said to be below or above it (`<1.00`).

    Args:
        value: The number.
        digits: Digits behind the point, where they are enough.
        unlike: What it must not be taken for unless it is the same, such as what is required.
    """
    for places in range(digits, _MOST_DIGITS + 1):
        text = f"{value:.{places}f}"
        if value == unlike or text != f"{unlike:.{places}f}":
            return text
    return f"{'<' if value < unlike else '>'}{unlike:.{digits}f}"


def duration(seconds: float) -> str:
    """Return a time span in whole seconds: `35 s`, `2 min 5 s`, `1 h 2 min`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def call_time(seconds: float) -> str:
    """Return the time of a call: `1.20 s`, `3.45 ms`, `67.8 µs`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.1f} µs"
