"""Parse fractions, ratios and input shapes without torch, so that options are checked before it is imported."""

from __future__ import annotations

import math

from pytest_qat.errors import InvalidOption

__all__ = ["parse_fraction", "parse_ratio", "parse_shapes"]


def parse_shapes(text: str, *, name: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes written in `8x3x32x32`, several inputs separated by commas.

    Raises:
        InvalidOption: a dimension is not a whole number of at least 1.
    """
    shapes = []
    for part in text.split(","):
        try:
            shape = tuple(int(side) for side in part.strip().lower().split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise InvalidOption(
                f"{name} is {text!r}, expected whole numbers of at least 1 joined by x.",
                hint=f"Write {name}=1x3x224x224; separate several inputs with commas.")
        shapes.append(shape)
    return tuple(shapes)


def parse_fraction(value: object, *, name: str) -> float:
    """Return a fraction in [0, 1] from a number or from text such as `0.01` or `1%`.

    Raises:
        InvalidOption: not a number, not finite, negative, over 1 without a percent sign, or a drop of a bare 1.
    """
    text = str(value).strip()
    percent = text.endswith("%")
    number = _finite(text[:-1] if percent else text, seen=value, name=name, example="0.01 or 1%")
    if percent:
        number /= 100
    if number < 0:
        raise InvalidOption(f"{name} is {text}, which is negative.", hint=f"Give {name} as 0.01 or 1%.")
    if text == "1" and "drop" in name:  # as a floor, 1 is all of it
        raise InvalidOption(f"{name} is 1, which may be meant as 1% or as 100%.", hint="Write 1% or 100%.")
    if number > 1:
        if percent:
            raise InvalidOption(f"{name} is {text}, which is over 100%.", hint=f"Give {name} as 0.01 or 1%.")
        hint = f"If you meant {number:g} percent, write {name} as {number:g}%." if number <= 100 else (
            f"Give {name} as 0.01 or 1%.")
        raise InvalidOption(f"{name} is {text}, but it is a fraction between 0 and 1.", hint=hint)
    return number


def parse_ratio(value: object, *, name: str) -> float:
    """Return a finite ratio of at least 0 from a number or from text such as `1.5` or `1.5x`.

    Raises:
        InvalidOption: not a number, not finite, or negative.
    """
    text = str(value).strip()
    number = _finite(text.removesuffix("x"), seen=value, name=name, example="1.5")
    if number < 0:
        raise InvalidOption(f"{name} is {text}, which is negative.", hint=f"Give {name} as a ratio such as 1.5.")
    return number


def _finite(text: str, *, seen: object, name: str, example: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise InvalidOption(f"{name} is {seen!r}, which is not a number.", hint=f"Give it as {example}.") from None
    if not math.isfinite(number):
        raise InvalidOption(f"{name} is {seen}, which is not a finite number.", hint=f"Give it as {example}.")
    return number
