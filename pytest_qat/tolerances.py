"""`Tolerances` and the parsing of their values; no torch, so that options are checked before anything heavy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pytest_qat.errors import InvalidOption

__all__ = ["Tolerances", "parse_fraction", "parse_ratio"]


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


class _Builtin(float):
    """A default of the class, which nobody has given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What a quantized model must hold to pass. Fractions may be written as `0.01` or `"1%"`.

    Attributes:
        accuracy_drop: Largest allowed `metric(float) - metric(int8)`, a fraction; of float's score where scores are
            no shares (an error in pixels, a loss).
        min_accuracy: Lowest allowed score of the float model and of the int8 model, a fraction; None: no floor.
        min_speedup: Lowest allowed `time(float) / time(int8)`, like for like.
        min_size_reduction: Lowest allowed `bytes(float artefact) / bytes(int8 artefact)`.
        min_coverage: Lowest allowed share of multiply-accumulates in int8, a fraction; None: more than nothing.

    Raises:
        InvalidOption: a value is not a number, not finite, negative, or a fraction over 1.
    """

    accuracy_drop: float = _Builtin(0.01)
    min_accuracy: float | None = None
    min_speedup: float = _Builtin(1.0)
    min_size_reduction: float = _Builtin(1.5)
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, _Builtin):
                object.__setattr__(self, field.name, _parser(field.name)(value, name=field.name))
            elif value is None and field.default is not None:
                raise InvalidOption(f"{field.name} is None, but it needs a number.", hint="Leave it out instead.")

    def as_dict(self) -> dict[str, float | None]:
        """Return the values by name, as plain numbers."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: None if value is None else float(value) for name, value in values.items()}

    def override(self, **changes: Any) -> Tolerances:
        """Return a copy in which every change that is not None takes the place of the value here."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def or_else(self, defaults: Tolerances) -> Tolerances:
        """Return a copy in which values that nobody gave come from `defaults`; one given as the default stays."""
        return Tolerances(**{
            field.name: getattr(self if _is_given(getattr(self, field.name)) else defaults, field.name)
            for field in dataclasses.fields(self)
        })


def _is_given(value: float | None) -> bool:
    return value is not None and not isinstance(value, _Builtin)


_FRACTIONS = frozenset({"accuracy_drop", "min_accuracy", "min_coverage"})


def _parser(name: str) -> Any:
    return parse_fraction if name in _FRACTIONS else parse_ratio
