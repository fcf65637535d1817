"""The table of options, which argparse, the ini file and the reference page are made from.

Every pytest session loads this module, so it imports almost nothing; `settings` parses the values.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import pytest

__all__ = ["OPTIONS", "Option", "add_options", "given"]


class Option(NamedTuple):
    """One option of the command line.

    Attributes:
        name: Name without the leading dashes.
        metavar: Placeholder for the value in the help; empty for a switch.
        help: Description in one sentence.
        parse: Name of its parser in `settings`.
        default: Value if neither the command line nor the ini file sets the option.
        repeat: Whether it may be given several times.
        bare: Value if the option is given without a value; None: a value is required.
        ini: Whether there is an ini key of the same name, with underscores.
    """

    name: str
    metavar: str
    help: str
    parse: str
    default: Any = None
    repeat: bool = False
    bare: str | None = None
    ini: bool = True

    @property
    def key(self) -> str:
        """Name in argparse and in the ini file."""
        return self.name.replace("-", "_")


OPTIONS = (
    Option(name="qat-model", metavar="REF", repeat=True, ini=False, parse="text",
           help="Quantize and check this model: package.module:function, path/file.py:function, torchvision:name, "
                "timm:name or hf:ConfigClass."),
    Option(name="qat-recipe", metavar="NAME", repeat=True, parse="recipe",
           help="Recipe to use, such as fx-x86 (the default) or pt2e-litert; all for every recipe; auto to rank them."),
    Option(name="qat-inputs", metavar="SHAPE", parse="shapes",
           help="Input shape for a model without example inputs, such as 8x3x32x32; separate several with commas."),
    Option(name="qat-accuracy-drop", metavar="F", parse="fraction",
           help="Largest allowed drop in accuracy, as 0.01 or 1% (default: 1%)."),
    Option(name="qat-min-accuracy", metavar="F", parse="fraction",
           help="Lowest allowed accuracy of the float model and of the int8 model (default: none)."),
    Option(name="qat-min-speedup", metavar="X", parse="ratio",
           help="Lowest allowed time(float) / time(int8), like for like (default: 1.0)."),
    Option(name="qat-min-size-reduction", metavar="X", parse="ratio",
           help="Lowest allowed bytes(float) / bytes(int8) of the artifacts (default: 1.5)."),
    Option(name="qat-min-coverage", metavar="F", parse="fraction",
           help="Lowest allowed share of the multiply-accumulates in int8, as 0.5 or 50% (default: 10%)."),
    Option(name="qat-threads", metavar="N", parse="count", default=1,
           help="Number of intra-op threads during timings, the same on both sides (default: 1)."),
    Option(name="qat-stage-timeout", metavar="S", parse="seconds", default=900.0,
           help="Maximum time for a runtime to build both artifacts, in seconds (default: 900)."),
    Option(name="qat-max-time", metavar="S", parse="seconds", default=20.0,
           help="Maximum time for a comparison of speed, or for the interval of a set_metric, in seconds "
                "(default: 20)."),
    Option(name="qat-batches", metavar="N,N", parse="counts", bare="1,8,32",
           help="Also compare latencies at these batch sizes; without a value at 1, 8 and 32 (default: none)."),
    Option(name="qat-memory", metavar="on|off", parse="switch",
           help="Whether to measure peak memory, in two extra processes (default: on with --qat-json, else off)."),
    Option(name="qat-seed", metavar="N", parse="natural", default=0,
           help="Seed for fine-tuning, the order of calibration and Hypothesis (default: 0)."),
    Option(name="qat-device", metavar="DEVICE", parse="text", default="cpu",
           help="Where to fine-tune, such as cuda:0 (default: cpu); int8 always runs on the CPU."),
    Option(name="qat-probe", metavar="", parse="switch", default=False, ini=False,
           help="Only find out which recipes work with the model, without training, and print a table."),
    Option(name="qat-diagnose", metavar="auto|off", parse="diagnose", default="auto",
           help="Whether to diagnose failed checks and try remedies (default: auto)."),
    Option(name="qat-diagnose-time", metavar="S", parse="seconds", default=120.0,
           help="Maximum time to diagnose and try remedies, in seconds for each model (default: 120)."),
    Option(name="qat-strict", metavar="", parse="switch", default=False,
           help="Count inconclusive checks as failed."),
    Option(name="qat-ops", metavar="REF", repeat=True, ini=False, parse="text",
           help="Test quantization ops against the laws; REF is a function that returns a QuantOps, or torch."),
    Option(name="qat-fuzz", metavar="S", parse="seconds",
           help="Fuzz the laws of --qat-ops for this many seconds in total, instead of a fixed number of examples."),
    Option(name="qat-replay", metavar="PATH", repeat=True, ini=False, parse="text",
           help="Run a saved failing example again, or a folder of them."),
    Option(name="qat-json", metavar="PATH", ini=False, parse="text",
           help="Write everything that was measured to this file."),
)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options and their ini keys."""
    group = parser.getgroup("qat", "quantized models (pytest-qat)")
    for option in OPTIONS:
        text = option.help.replace("%", "%%")  # argparse formats it; pytest prints the help of an ini key unchanged
        if not option.metavar:
            group.addoption(f"--{option.name}", dest=option.key, action="store_true", default=None, help=text)
        else:
            form = {"nargs": "?", "const": option.bare} if option.bare is not None else {}
            group.addoption(f"--{option.name}", dest=option.key, metavar=option.metavar, help=text,
                            action="append" if option.repeat else "store", default=None, **form)
        if option.ini:
            kind: Literal["args", "string"] = "args" if option.repeat else "string"
            parser.addini(option.key, option.help, kind, default=None)


def given(config: pytest.Config) -> bool:
    """Whether the command line has any of the options."""
    return any(config.getoption(option.key) is not None for option in OPTIONS)
