"""`Tolerances`: what a quantized model must meet to pass. Options use this before torch is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pytest_qat.core.parsing import parse_fraction, parse_ratio
from pytest_qat.errors import InvalidOption

__all__ = ["MIN_COVERAGE", "Tolerances"]

MIN_COVERAGE = 0.1
"""Default of `min_coverage`: with a smaller share of the multiply-accumulates in int8, a model is hardly quantized."""


class _Builtin(float):
    """A default value of the class, to distinguish it from the same value given by the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What a quantized model must meet to pass. Fractions may be written as `0.01` or `"1%"`.

    Attributes:
        accuracy_drop: Largest allowed `metric(float) - metric(int8)`, a fraction; relative to float's score if scores
            are not fractions (an error in pixels, a loss).
        min_accuracy: Lowest allowed score of the float model and of the int8 model, a fraction; None: no
            lower bound.
        min_speedup: Lowest allowed `time(float) / time(int8)`, like for like.
        min_size_reduction: Lowest allowed `bytes(float artifact) / bytes(int8 artifact)`.
        min_coverage: Lowest allowed share of multiply-accumulates in int8, a fraction; None: 10 %.

    Raises:
        InvalidOption: a value is not a number, not finite or negative, or a fraction is over 1.
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
                raise InvalidOption(f"{field.name} is None, expected a number.", hint=f"Remove {field.name}.")

    @property
    def coverage_floor(self) -> float:
        """Lowest allowed share of multiply-accumulates in int8: `min_coverage`, or the default."""
        return MIN_COVERAGE if self.min_coverage is None else self.min_coverage

    def as_dict(self) -> dict[str, float | None]:
        """Return the values by name, as plain numbers."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: None if value is None else float(value) for name, value in values.items()}

    def override(self, **changes: Any) -> Tolerances:
        """Return a copy with the given values; a value of None keeps the current one."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def or_else(self, defaults: Tolerances) -> Tolerances:
        """Return a copy that takes the values that were not given from `defaults`; a given value always stays."""
        return Tolerances(**{
            field.name: getattr(self if _is_given(getattr(self, field.name)) else defaults, field.name)
            for field in dataclasses.fields(self)
        })


def _is_given(value: float | None) -> bool:
    return value is not None and not isinstance(value, _Builtin)


_FRACTIONS = frozenset({"accuracy_drop", "min_accuracy", "min_coverage"})


def _parser(name: str) -> Any:
    return parse_fraction if name in _FRACTIONS else parse_ratio
