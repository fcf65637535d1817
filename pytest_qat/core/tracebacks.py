"""Where an exception comes from: the user's module, the user's line."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import torch
from torch import nn

__all__ = ["headline", "line_of_trace", "locate_module", "place_of"]

_NOT_THE_USERS = (Path(__file__).parents[1],
                  *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")))


_TORCH = Path(torch.__file__).parent
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def line_of_trace(text: str) -> str:
    """Return `file:line` of the innermost frame of a printed traceback that is the user's own code.

    Where none is, as with models out of installed packages, it is the innermost frame outside of torch; an empty
    string if there is no such frame either.
    """
    frames = [(path, line) for path, line in _FRAME.findall(text) if not path.startswith("<")]
    own = [frame for frame in frames if not any(Path(frame[0]).is_relative_to(folder) for folder in _NOT_THE_USERS)]
    others = [frame for frame in frames if not Path(frame[0]).is_relative_to(_TORCH)]
    path, line = (own or others or [("", "")])[-1]
    return f"{Path(path).name}:{line}" if path else ""


def locate_module(error: BaseException, model: nn.Module) -> str | None:
    """Return the qualified name of the innermost module of `model` whose method an exception passed through.

    Args:
        error: A caught exception, with its traceback.
        model: The very object that was called: modules are recognized by identity.

    Returns:
        The name, or None if no frame belongs to a submodule.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: str | None = None
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = names[id(owner)]
        trace = trace.tb_next
    return found


def place_of(error: BaseException) -> str:
    """Return `file:line` of the innermost frame of an error that is the user's own code, for one-line messages."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    trace = error.__traceback__
    place = "unknown place"
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith("<") and not any(Path(path).is_relative_to(folder) for folder in _NOT_THE_USERS):
            place = f"{Path(path).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    if place == "unknown place" and "Original traceback:" in str(error):  # an exported graph was running
        return line_of_trace(str(error).partition("Original traceback:")[2]) or place
    return place


def headline(error: BaseException) -> str:
    """Return the first line of an error's message, or `no message`."""
    try:
        return (str(error).splitlines() or ["no message"])[0]
    except Exception:  # an exception whose text raises
        return "no message"
