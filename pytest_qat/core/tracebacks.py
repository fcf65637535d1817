"""Find the user's module and the user's line that an exception comes from."""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from torch import nn

__all__ = ["Step", "calling_place", "defined_at", "headline", "line_of_trace", "locate_module", "name_of", "place_of",
           "raised_outside_of_torch", "source_of", "steps_of", "summary_of"]

_LONGEST = 300
_INSTALLED = tuple(Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))
_MACHINERY = (Path(__file__).parents[1], *(folder / "torch" for folder in _INSTALLED),
              *(folder / "torchao" for folder in _INSTALLED))
_STDLIB = Path(sysconfig.get_path("stdlib"))


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of a traceback.

    Attributes:
        frame: The frame, with the values of its names.
        line: The line that was running.
        origin: Whose code it is: torch's, Python's or this package's; another installed package's; or the user's.
    """

    frame: FrameType
    line: int
    origin: Literal["machinery", "installed", "own"]

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.frame.f_code.co_name

    @property
    def place(self) -> str:
        """The `file:line`."""
        return f"{Path(self.frame.f_code.co_filename).name}:{self.line}"

    @property
    def module(self) -> nn.Module | None:
        """The module whose method it is; None for other code, and for a module that its constructor raised in."""
        owner = self.frame.f_locals.get("self")
        return owner if isinstance(owner, nn.Module) and "_modules" in vars(owner) else None


def steps_of(error: BaseException) -> list[Step]:
    """Return the frames that an error passed through, the outermost first."""
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append(Step(trace.tb_frame, trace.tb_lineno, _kind_of(trace.tb_frame.f_code.co_filename)))
        trace = trace.tb_next
    return found


def raised_outside_of_torch(error: BaseException) -> bool:
    """Return whether a `raise` or an `assert` of the user or of another package made an error.

    What torch's C++ code raises ends in the line that called it, and that line is no `raise`.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    raises = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raises and _kind_of(code.co_filename) != "machinery"


def line_of_trace(text: str) -> str:
    """Return `file:line` of the innermost frame of a printed traceback that is the user's own code.

    Where none is, as with models out of installed packages, it is the innermost frame outside of torch; an empty
    string if there is no such frame either.
    """
    frames = [(path, line) for path, line in _FRAME.findall(text) if _kind_of(path) != "machinery"]
    own = [frame for frame in frames if _kind_of(frame[0]) == "own"]
    path, line = (own or frames or [("", "")])[-1]
    return f"{Path(path).name}:{line}" if path else ""


def locate_module(error: BaseException, model: nn.Module) -> str | None:
    """Return the qualified name of the innermost module of `model` whose method an exception passed through.

    Args:
        error: A caught exception, with its traceback.
        model: What was called, or what it is a copy of; modules are recognized by identity.

    Returns:
        The name, or None if no frame belongs to a submodule.
    """
    owners = [step.module for step in steps_of(error) if step.module is not None]
    own = dict(model.named_modules())
    for root in (model, *owners):  # what was called may be a copy of the model
        try:
            names = {id(module): name for name, module in root.named_modules()}
        except AttributeError:  # one that was being unpickled has parts that are not made yet
            continue
        for owner in reversed(owners):
            name: str | None = names.get(id(owner))
            if name and name in own and (root is model or type(owner).__name__ == type(own[name]).__name__):
                return name
    return None


def place_of(error: BaseException) -> str:
    """Return `file:line` of the innermost frame of an error that is the user's own code, for one-line messages.

    Where no frame is, it is the innermost one of an installed package that is neither torch nor this.
    """
    return _place(error, own_code_first=True)


def source_of(error: BaseException) -> str:
    """Return `file:line` of the innermost frame of an error that is neither torch's, Python's nor this package's."""
    return _place(error, own_code_first=False)


def calling_place() -> str:
    """Return `file:line` of the innermost running frame that is neither torch's, Python's nor this package's."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, and a whole stack costs too much per call
    while frame is not None:
        if _kind_of(frame.f_code.co_filename) != "machinery":
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown place"


def name_of(function: Any) -> str | None:
    """Return the name of a function, of the one that a partial calls, or of an object's class; None of a lambda."""
    inner = _inner(function)
    name = str(getattr(inner, "__name__", type(inner).__name__))
    return None if name == "<lambda>" else name


def defined_at(function: Any) -> str:
    """Return a function's name with the `file:line` of its definition, such as `auc (metrics.py:12)`.

    The place is left out where Python does not know it, or where it is torch's.
    """
    inner = _inner(function)
    name = name_of(inner) or "lambda"
    code = getattr(inner, "__code__", None) or getattr(vars(type(inner)).get("__call__"), "__code__", None)
    if code is None or _kind_of(code.co_filename) == "machinery":
        return name
    return f"{name} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _place(error: BaseException, *, own_code_first: bool) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    own = others = ""
    trace = error.__traceback__
    while trace is not None:
        kind = _kind_of(trace.tb_frame.f_code.co_filename)
        if kind != "machinery":
            others = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            own = others if kind == "own" else own
        trace = trace.tb_next
    if not others and "Original traceback:" in str(error):  # an exported graph was running
        others = line_of_trace(str(error).partition("Original traceback:")[2])
    return (own if own_code_first and own else others) or "unknown place"


def _kind_of(filename: str) -> Literal["machinery", "installed", "own"]:
    path = Path(filename)
    if filename.startswith("<") or any(path.is_relative_to(folder) for folder in _MACHINERY):
        return "machinery"
    if any(path.is_relative_to(folder) for folder in _INSTALLED):
        return "installed"
    return "machinery" if path.is_relative_to(_STDLIB) else "own"


def headline(error: BaseException) -> str:
    """Return the first line of an error's message, cut where it gets too long to read, or `no message`."""
    try:
        line = (str(error).splitlines() or ["no message"])[0]
    except Exception:  # an exception whose text raises
        return "no message"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rpartition(' ')[0] or line[:_LONGEST]} ..."


def summary_of(error: BaseException) -> str:
    """Return an error in one line: its type, the first sentence of its message, and its source where that is known."""
    place = source_of(error)
    first = headline(error).partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" + ("" if place == "unknown place" else f" ({place})")
