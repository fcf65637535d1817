"""Find the user's module and the user's line that an exception comes from."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from torch import nn

__all__ = ["headline", "locate_module", "place_of"]

_NOT_THE_USERS = (Path(__file__).parents[1],
                  *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")))


def locate_module(error: BaseException, model: nn.Module) -> str | None:
    """Return the qualified name of the innermost module of `model` whose method an exception passed through.

    Args:
        error: A caught exception, with its traceback.
        model: The object that was called, because modules are recognized by identity.

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
    return place


def headline(error: BaseException) -> str:
    """Return the first line of an error's message, or `no message`."""
    try:
        return (str(error).splitlines() or ["no message"])[0]
    except Exception:  # an exception whose text raises
        return "no message"
