"""Where an exception comes from: the user's module, the user's line."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from torch import nn

__all__ = ["headline", "locate_module", "place_of", "source_of"]

_INSTALLED = tuple(Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))
_MACHINERY = (Path(__file__).parents[1], *(folder / "torch" for folder in _INSTALLED),
              *(folder / "torchao" for folder in _INSTALLED))
_STDLIB = Path(sysconfig.get_path("stdlib"))


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
    """Return `file:line` of the innermost frame of an error that is the user's own code, for one-line messages.

    Where no frame is, it is the innermost one of an installed package that is neither torch nor this.
    """
    return _place(error, own_code_first=True)


def source_of(error: BaseException) -> str:
    """Return `file:line` of the innermost frame of an error that is neither torch's, Python's nor this package's."""
    return _place(error, own_code_first=False)


def _place(error: BaseException, *, own_code_first: bool) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    own = others = ""
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        machinery = str(path).startswith("<") or any(path.is_relative_to(folder) for folder in _MACHINERY)
        installed = any(path.is_relative_to(folder) for folder in _INSTALLED)
        if not machinery and (installed or not path.is_relative_to(_STDLIB)):
            others = f"{path.name}:{trace.tb_lineno}"
            own = own if installed else others
        trace = trace.tb_next
    return (own if own_code_first and own else others) or "unknown place"


def headline(error: BaseException) -> str:
    """Return the first line of an error's message, or `no message`."""
    try:
        return (str(error).splitlines() or ["no message"])[0]
    except Exception:  # an exception whose text raises
        return "no message"
