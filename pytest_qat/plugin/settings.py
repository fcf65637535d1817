"""The options of a session, parsed and checked before anything heavy starts. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_qat.core.parsing import parse_fraction, parse_ratio, parse_shapes
from pytest_qat.errors import InvalidOption
from pytest_qat.plugin.options import OPTIONS, Option
from pytest_qat.recipe import AUTO, COMPLETE_RECIPES, DEFAULT_RECIPE, get_recipe
from pytest_qat.report.json import check_writable
from pytest_qat.tolerances import Tolerances

__all__ = ["Options", "read_options"]

_MOST_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The values of the command line and the ini file, checked.

    Attributes:
        recipes: Recipe names from the command line; empty: each model's own.
        default_recipes: Recipe names for models without any of their own: the ini file's, else the built-in one.
        shapes: Input shapes as text, or None.
        explicit: Tolerances from the command line, by field name.
        defaults: Tolerances from the ini file over the built-in ones.
        threads: Intra-op threads while timing.
        max_time_s: Budget of one speed verdict.
        stage_timeout_s: Most seconds for building artifacts in other processes.
        seed: Seed of every stage.
        device: Where to fine-tune.
        strict: Whether inconclusive fails.
        batches: Further batch sizes to compare latencies at.
        memory: Whether to measure peak memory.
        fuzz_s: Seconds to fuzz for, or None.
        json: Path of the record, or None.
        diagnose_s: Most seconds to look for what helps after a failure; 0: none.
        probe: Whether only to try which recipes take each model.
    """

    recipes: tuple[str, ...]
    default_recipes: tuple[str, ...]
    shapes: str | None
    explicit: Mapping[str, float]
    defaults: Tolerances
    threads: int
    max_time_s: float
    stage_timeout_s: float
    seed: int
    device: str
    strict: bool
    batches: tuple[int, ...]
    memory: bool
    fuzz_s: float | None
    json: Path | None
    diagnose_s: float
    probe: bool

    def tolerances(self, own: Tolerances) -> Tolerances:
        """Return the tolerances of a case: the command line's, else its own, else the ini file's, else the defaults."""
        return own.or_else(self.defaults).override(**self.explicit)


def read_options(config: pytest.Config) -> Options:
    """Return the checked options.

    Raises:
        QATError: a value is bad.
    """
    line, file = _values(config)
    merged = {option.key: line.get(option.key, file.get(option.key, option.default)) for option in OPTIONS}
    path = config.invocation_params.dir / merged["qat_json"] if merged["qat_json"] else None
    if path is not None and not hasattr(config, "workerinput"):
        check_writable(path, name="--qat-json")
    if "qat_fuzz" in line and not config.getoption("qat_ops"):
        raise InvalidOption("--qat-fuzz is given without --qat-ops, which names the implementation to fuzz.",
                            hint="Add --qat-ops=package.module:function.")
    memory = path is not None if merged["qat_memory"] is None else merged["qat_memory"]
    return Options(
        recipes=_recipes(line), default_recipes=_recipes(file) or (DEFAULT_RECIPE,),
        shapes=merged["qat_inputs"], explicit=_tolerances(line), defaults=Tolerances().override(**_tolerances(file)),
        threads=merged["qat_threads"], max_time_s=merged["qat_max_time"],
        stage_timeout_s=merged["qat_stage_timeout"], seed=merged["qat_seed"],
        device=merged["qat_device"], strict=merged["qat_strict"], json=path,
        batches=merged["qat_batches"] or (), memory=memory, fuzz_s=merged["qat_fuzz"],
        diagnose_s=0.0 if merged["qat_diagnose"] == "off" else merged["qat_diagnose_time"], probe=merged["qat_probe"])


def _values(config: pytest.Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parsed values by key, from the command line and from the ini file; keys that were not given are absent."""
    line: dict[str, Any] = {}
    file: dict[str, Any] = {}
    for option in OPTIONS:
        given = config.getoption(option.key)
        if given is not None:
            line[option.key] = _parsed(option, given, name=f"--{option.name}")
        written = config.getini(option.key) if option.ini else None
        if written:
            file[option.key] = _parsed(option, written, name=option.key)
    return line, file


def _parsed(option: Option, value: Any, *, name: str) -> Any:
    if option.repeat:
        return [_PARSERS[option.parse](single, name=name) for single in value]
    return _PARSERS[option.parse](value, name=name)


def _recipes(values: Mapping[str, Any]) -> tuple[str, ...]:
    names = values.get("qat_recipe", ())
    return COMPLETE_RECIPES if "all" in names else tuple(dict.fromkeys(names))


def _tolerances(values: Mapping[str, Any]) -> dict[str, float]:
    fields = ("accuracy_drop", "min_accuracy", "min_speedup", "min_size_reduction", "min_coverage")
    return {field: values[f"qat_{field}"] for field in fields if f"qat_{field}" in values}


def _recipe(value: object, *, name: str) -> str:
    text = str(value).strip()
    if text not in ("all", AUTO):
        get_recipe(text)
    return text


def _whole(minimum: int) -> Callable[..., int]:
    def parse(value: object, *, name: str) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise InvalidOption(f"{name} is {value}, expected a whole number of at least {minimum}.",
                                hint=f"Write {name}={max(minimum, 1)}.")
        return number
    return parse


def _counts(value: object, *, name: str) -> tuple[int, ...]:
    parts = [part.strip() for part in str(value).split(",")]
    if not all(part.isdecimal() and len(part) <= _MOST_DIGITS and int(part) > 0 for part in parts):
        raise InvalidOption(f"{name} is {value}, expected batch sizes separated by commas.",
                            hint=f"Write {name}=1,8,32.")
    return tuple(sorted({int(part) for part in parts}))


def _seconds(value: object, *, name: str) -> float:
    try:
        number = float(str(value).removesuffix("s"))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InvalidOption(f"{name} is {value}, expected a number of seconds above 0.", hint=f"Write {name}=20.")
    return number


def _text(value: object, *, name: str) -> str:
    text = str(value).strip()
    if not text:
        raise InvalidOption(f"{name} is empty, expected a value.", hint=f"Give {name} a value, or leave it out.")
    return text


def _shapes(value: object, *, name: str) -> str:
    parse_shapes(str(value), name=name)
    return str(value)


def _switch(value: object, *, name: str) -> bool:
    text = str(value).strip().lower()
    if text not in _SWITCH:
        raise InvalidOption(f"{name} is {value}, expected on or off.", hint=f"Write {name}=on.")
    return _SWITCH[text]


def _diagnose(value: object, *, name: str) -> str:
    text = str(value).strip().lower()
    if text not in ("auto", "off"):
        raise InvalidOption(f"{name} is {value}, expected auto or off.", hint=f"Write {name}=auto.")
    return text


_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_PARSERS: Mapping[str, Callable[..., Any]] = {
    "count": _whole(1), "counts": _counts, "diagnose": _diagnose,
    "fraction": parse_fraction, "natural": _whole(0), "ratio": parse_ratio,
    "recipe": _recipe, "seconds": _seconds, "shapes": _shapes, "switch": _switch, "text": _text}
