"""The command line: one table of options, from which argparse, the ini file and the README's list are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pytest_qat.errors import InvalidOption, QATError
from pytest_qat.recipe import RECIPES, get_recipe
from pytest_qat.report.json import check_writable
from pytest_qat.shapes import parse_shapes
from pytest_qat.tolerances import Tolerances, parse_fraction, parse_ratio

__all__ = ["OPTIONS", "Option", "Options", "add_options", "read_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of the command line.

    Attributes:
        name: Without the leading dashes.
        metavar: What the help shows as its value; empty for a switch.
        help: One sentence.
        parse: Turns the text into a value; raises `InvalidOption`.
        default: Value when neither the command line nor the ini file gives one.
        repeat: Whether it may be given several times.
        ini: Whether there is an ini key of the same name, with underscores.
    """

    name: str
    metavar: str
    help: str
    parse: Callable[..., Any]
    default: Any = None
    repeat: bool = False
    ini: bool = True

    @property
    def key(self) -> str:
        """Name in argparse and in the ini file."""
        return self.name.replace("-", "_")


def _recipe(value: object, *, name: str) -> str:
    text = str(value).strip()
    if text != "all":
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


def _seconds(value: object, *, name: str) -> float:
    try:
        number = float(str(value).removesuffix("s"))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InvalidOption(f"{name} is {value}, expected seconds over 0.", hint=f"Write {name}=20.")
    return number


def _text(value: object, *, name: str) -> str:
    text = str(value).strip()
    if not text:
        raise InvalidOption(f"{name} is empty.", hint="Give it a value, or leave it out.")
    return text


def _shapes(value: object, *, name: str) -> str:
    parse_shapes(str(value), name=name)
    return str(value)


def _switch(value: object, *, name: str) -> bool:
    return str(value).lower() in ("1", "true", "yes", "on")


OPTIONS = (
    Option(name="qat-model", metavar="REF", repeat=True, ini=False, parse=_text,
           help="Quantize and check this model: package.module:function, path/file.py:function or torchvision:name."),
    Option(name="qat-recipe", metavar="NAME", repeat=True, parse=_recipe,
           help=f"Recipe to use (default: the model's own, else fx-x86), or all: {', '.join(RECIPES)}."),
    Option(name="qat-inputs", metavar="SHAPE", parse=_shapes,
           help="Input shape for a bare model, such as 8x3x32x32; several inputs with commas."),
    Option(name="qat-accuracy-drop", metavar="F", parse=parse_fraction,
           help="Largest allowed drop in accuracy, as 0.01 or 1% (default: 1%)."),
    Option(name="qat-min-accuracy", metavar="F", parse=parse_fraction,
           help="Lowest allowed accuracy of the float and of the int8 model (default: none)."),
    Option(name="qat-min-speedup", metavar="X", parse=parse_ratio,
           help="Lowest allowed time(float) / time(int8), like for like (default: 1.0)."),
    Option(name="qat-min-size-reduction", metavar="X", parse=parse_ratio,
           help="Lowest allowed bytes(float) / bytes(int8) of the artefacts (default: 1.5)."),
    Option(name="qat-threads", metavar="N", parse=_whole(1), default=1,
           help="Intra-op threads while timing, on both sides (default: 1)."),
    Option(name="qat-max-time", metavar="S", parse=_seconds, default=20.0,
           help="Most seconds to spend on one speed verdict (default: 20)."),
    Option(name="qat-seed", metavar="N", parse=_whole(0), default=0,
           help="Seed of fine-tuning, calibration order and Hypothesis (default: 0)."),
    Option(name="qat-device", metavar="DEVICE", parse=_text, default="cpu",
           help="Where to fine-tune, such as cuda:0 (default: cpu); int8 always runs on the CPU."),
    Option(name="qat-strict", metavar="", parse=_switch, default=False,
           help="Demand proof: inconclusive counts as failed."),
    Option(name="qat-json", metavar="PATH", ini=False, parse=_text, help="Write the whole record to this file."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line and the ini file say, checked.

    Attributes:
        models: References, in order, without repetition.
        recipes: Recipe names; empty: each model's own.
        shapes: Input shapes as text, or None.
        explicit: Tolerances from the command line, by field name.
        defaults: Tolerances from the ini file over the built-in ones.
        threads: Intra-op threads while timing.
        max_time_s: Budget of one speed verdict.
        seed: Seed of every stage.
        device: Where to fine-tune.
        strict: Whether inconclusive fails.
        json: Path of the record, or None.
    """

    models: tuple[str, ...]
    recipes: tuple[str, ...]
    shapes: str | None
    explicit: Mapping[str, float]
    defaults: Tolerances
    threads: int
    max_time_s: float
    seed: int
    device: str
    strict: bool
    json: Path | None

    def tolerances(self, own: Tolerances) -> Tolerances:
        """Return what holds for a case: command line, else the case's own, else the ini file, else the defaults."""
        return own.or_else(self.defaults).override(**self.explicit)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options and their ini keys."""
    group = parser.getgroup("qat", "quantized models (pytest-qat)")
    for option in OPTIONS:
        if not option.metavar:
            group.addoption(f"--{option.name}", dest=option.key, action="store_true", default=None, help=option.help)
        else:
            group.addoption(f"--{option.name}", dest=option.key, metavar=option.metavar, help=option.help,
                            action="append" if option.repeat else "store", default=None)
        if option.ini:
            kind: Literal["args", "string"] = "args" if option.repeat else "string"
            parser.addini(option.key, option.help, kind, default=None)


def read_options(config: pytest.Config) -> Options:
    """Return the checked options.

    Raises:
        pytest.UsageError: a value makes no sense; pytest exits with 4.
    """
    try:
        line, file = _values(config)
        merged = {option.key: line.get(option.key, file.get(option.key, option.default)) for option in OPTIONS}
        path = Path(merged["qat_json"]) if merged["qat_json"] else None
        if path is not None:
            path = config.invocation_params.dir / path
            if not hasattr(config, "workerinput"):
                check_writable(path, name="--qat-json")
    except QATError as error:
        raise pytest.UsageError(str(error)) from None
    names = merged["qat_recipe"] or []
    return Options(
        models=tuple(dict.fromkeys(merged["qat_model"] or ())),
        recipes=tuple(RECIPES) if "all" in names else tuple(dict.fromkeys(names)),
        shapes=merged["qat_inputs"], explicit=_tolerances(line), defaults=Tolerances().override(**_tolerances(file)),
        threads=merged["qat_threads"], max_time_s=merged["qat_max_time"], seed=merged["qat_seed"],
        device=merged["qat_device"], strict=merged["qat_strict"], json=path)


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
        return [option.parse(single, name=name) for single in value]
    return option.parse(value, name=name)


def _tolerances(values: Mapping[str, Any]) -> dict[str, float]:
    fields = ("accuracy_drop", "min_accuracy", "min_speedup", "min_size_reduction")
    return {field: values[f"qat_{field}"] for field in fields if f"qat_{field}" in values}
