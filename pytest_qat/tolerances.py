"""`Tolerances`: what a quantized model must hold to pass. No torch, so that options are checked before it loads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pytest_qat.core.parsing import parse_fraction, parse_ratio
from pytest_qat.errors import InvalidOption

__all__ = ["MIN_COVERAGE", "Tolerances"]

MIN_COVERAGE = 0.1
"""Share of the multiply-accumulates in int8 below which a model is not worth the name, where nobody says otherwise."""


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
        min_size_reduction: Lowest allowed `bytes(float artifact) / bytes(int8 artifact)`.
        min_coverage: Lowest allowed share of multiply-accumulates in int8, a fraction; None: 10 %.

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

    @property
    def coverage_floor(self) -> float:
        """Lowest allowed share of multiply-accumulates in int8, whoever gave it."""
        return MIN_COVERAGE if self.min_coverage is None else self.min_coverage

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
