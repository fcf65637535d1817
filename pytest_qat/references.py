"""From a reference on the command line to a `QATCase`.

Accepted: `pkg.mod:fn`, `path/file.py:fn`, `torchvision:name`, `timm:name`, `hf:ConfigClass`; the last three also with
keyword arguments, as in `hf:BertConfig(num_hidden_layers=2)`. The function may return a `QATCase`, an `nn.Module`, or a
`(model, example_inputs)` pair.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase
from pytest_qat.core.libraries import LIBRARIES, LibraryModel
from pytest_qat.core.parsing import parse_shapes
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.core.tracebacks import place_of
from pytest_qat.errors import InvalidCase, QATError, ReferenceNotFound

__all__ = ["as_case", "load_case", "load_value", "resolve"]

_MISSING = object()
_NAMED = 6
_DRAWN_SAMPLES, _DRAWN_BATCHES = 64, 16
_DRAWN_MACS = 2e11
"""About what all drawn batches may cost in one pass: ten times ViT-B at 224 pixels."""
_PATCH = 3 * 16 * 16
_FORMS = ("Write it as package.module:function, path/file.py:function, torchvision:model_name, timm:model_name or "
          "hf:ConfigClass.")


def load_case(reference: str, *, root: Path, shapes: str | None = None, seed: int = 0) -> QATCase:
    """Resolve a reference, call what it names, and return the case.

    Args:
        reference: `pkg.mod:fn`, `path/file.py:fn`, `torchvision:name`, `timm:name` or `hf:ConfigClass`.
        root: Folder that relative paths and modules are looked for in first.
        shapes: Input shapes (`--qat-inputs`), for functions that return a bare model.
        seed: Seed of torch's generator while the function runs.

    Raises:
        ReferenceNotFound: module, file or attribute does not exist.
        InvalidCase: the function raised, or what it returned is not a model.
    """
    with preserved_torch_state(seed=seed):
        return as_case(_value(reference, root), source=reference, shapes=shapes)


def load_value(reference: str, *, root: Path, seed: int = 0) -> object:
    """Resolve a reference, call what it names, and return what it gives, whatever that is.

    Raises:
        ReferenceNotFound: module, file or attribute does not exist.
        InvalidCase: the function raised.
    """
    with preserved_torch_state(seed=seed):
        return _value(reference, root)


def as_case(value: object, *, source: str, shapes: str | None = None) -> QATCase:
    """Return a `QATCase` from one of the accepted forms.

    Raises:
        InvalidCase: the value is none of them, or a bare model has no inputs.
    """
    if isinstance(value, QATCase):
        return value
    if isinstance(value, LibraryModel):
        draw = value.draw if shapes is None else partial(_of_shapes, shapes)
        return _drawn_case(value.model, draw, source=source, name=value.label, problem=value.problem)
    if isinstance(value, nn.Module):
        if shapes is not None:
            return _drawn_case(value, partial(_of_shapes, shapes), source=source)
        return QATCase(model=value, example_inputs=_own_inputs(value, source=source))
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], nn.Module):
        return QATCase(model=value[0], example_inputs=value[1])
    seen = "None" if value is None else (
        f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.60}")
    hint = f"Return an instance: {value.__name__}(...)." if isinstance(value, type) else (
        "Return one of these from the function.")
    raise InvalidCase(
        f"{source} gave {seen}, expected a QATCase, an nn.Module or a (model, example_inputs) pair.", hint=hint)


def _drawn_case(model: nn.Module, draw: Callable[[], tuple[Any, ...]] | None, *, source: str,
                name: str | None = None, problem: str = "") -> QATCase:
    """Return a case on drawn inputs: one batch of noise is too little to compare float and int8 on, so more follow."""
    if draw is None:
        raise _unknown_inputs(model, source, problem)
    inputs = draw()
    enough = min(_DRAWN_BATCHES, -(-_DRAWN_SAMPLES // max(1, inputs[0].shape[0])))
    count = max(2, min(enough, int(_DRAWN_MACS // max(1, _about_macs(model, inputs)))))
    return QATCase(model=model, example_inputs=inputs, name=name,
                   calibration_data=[inputs, *(draw() for _ in range(count - 1))])


def _about_macs(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Return about how many multiply-accumulates a call takes: each weight for each token, or patch of 16x16 pixels.

    That is within a factor of three for vision and language transformers and for convolutional nets that halve their
    resolution five times, and known without a call, which may take half a minute.
    """
    places = max(leaf.numel() // (_PATCH if leaf.is_floating_point() else 1) for leaf in pytree.tree_leaves(inputs)
                 if isinstance(leaf, torch.Tensor))
    return max(1, places) * sum(weight.numel() for weight in model.parameters())


def _of_shapes(shapes: str) -> tuple[Any, ...]:
    return tuple(torch.randn(shape) for shape in parse_shapes(shapes, name="--qat-inputs"))


def _own_inputs(model: nn.Module, *, source: str) -> tuple[Any, ...]:
    own = getattr(model, "example_inputs", None)
    if callable(own):
        own = own()
    if own is None:
        raise _unknown_inputs(model, source)
    return own if isinstance(own, tuple) else (own,)


def _unknown_inputs(model: nn.Module, source: str, problem: str = "") -> InvalidCase:
    """Return that a model came without inputs, and what it raised on those that its library says."""
    return InvalidCase(
        f"{source} gave a bare {type(model).__name__}, so its inputs are unknown{_arguments_of(model)}"
        f"{f': {problem}' if problem else ''}.",
        hint="Give --qat-inputs=1x3x224x224 (its shape), or return (model, example_inputs).")


def _arguments_of(model: nn.Module) -> str:
    """Return the first arguments of a model's forward, as a clause."""
    try:
        names = [name for name, each in inspect.signature(model.forward).parameters.items()
                 if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):  # written in C, or by a decorator that hides them
        return ""
    return f" (its forward takes {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})" if names else ""


def resolve(reference: str, *, root: Path) -> Any:
    """Return the object that a reference names, without calling it.

    Raises:
        ReferenceNotFound: with what is missing, near matches, and the accepted forms.
    """
    library, _, model = reference.partition(":")  # a model may have arguments with a colon in them
    place, _, attribute = (library, "", model) if library in LIBRARIES else reference.rpartition(":")
    if not place or not attribute:
        raise ReferenceNotFound(f"the reference {reference!r} has no ':' between module and function.", hint=_FORMS)
    if place in LIBRARIES:
        return partial(LIBRARIES[place], attribute)
    with _first_on_path(root):
        module = _load_file(place, root=root) if place.endswith(".py") else _load_module(place, root=root)
    found: Any = module
    for part in attribute.split("."):
        inner = getattr(found, part, _MISSING)
        if inner is _MISSING:
            near = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=3)
            known = f"Did you mean {' or '.join(near)}?" if near else f"Define {part} there, or name another function."
            raise ReferenceNotFound(f"{place} has no attribute {part!r}.", hint=known)
        found = inner
    return found


def _value(reference: str, root: Path) -> object:
    """Return what a reference gives; the caller has seeded torch, and what it draws next goes on from there."""
    named = resolve(reference, root=root)
    if isinstance(named, (QATCase, nn.Module, str)) or not callable(named):
        return named
    if isinstance(named, type) and not issubclass(named, nn.Module):
        return named
    try:
        return named()
    except QATError:
        raise
    except (Exception, SystemExit) as error:  # a script may parse its arguments when it is imported
        raise InvalidCase(
            f"{reference} raised {type(error).__name__}: {error} ({place_of(error)}).",
            hint="Make the function run without arguments; call it once in a Python shell to see it fail.",
        ) from error


@contextlib.contextmanager
def _first_on_path(root: Path) -> Iterator[None]:
    entry = str(root)
    if entry not in sys.path:
        sys.path.insert(0, entry)
    importlib.invalidate_caches()
    yield


def _load_module(name: str, *, root: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise ReferenceNotFound(f"module {name} imports {missing}, which is not installed.",
                                    hint=f"Install {missing}, or drop the import.") from error
        raise ReferenceNotFound(f"no module is named {missing!r}.", hint=_near_modules(name, root)) from error
    except (Exception, SystemExit) as error:  # a script may parse its arguments when it is imported
        raise ReferenceNotFound(
            f"importing {name} raised {type(error).__name__}: {error} ({place_of(error)}).",
            hint=f"Run `python -c 'import {name}'` to see the whole traceback.") from error


def _near_modules(name: str, root: Path) -> str:
    parent, _, leaf = name.rpartition(".")
    if parent and parent in sys.modules:
        folders = [Path(entry) for entry in getattr(sys.modules[parent], "__path__", [])]
    else:
        folders, leaf = [root], name.partition(".")[0]
    names = [path.stem for folder in folders if folder.is_dir() for path in folder.iterdir()
             if path.suffix == ".py" or path.is_dir()]
    near = difflib.get_close_matches(leaf, names, n=3)
    return f"Did you mean {' or '.join(near)}? {_FORMS}" if near else _FORMS


def _load_file(path_text: str, *, root: Path) -> Any:
    path = Path(path_text).expanduser()
    path = path if path.is_absolute() else root / path
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else _FORMS
        raise ReferenceNotFound(f"there is no file {path_text}.", hint=hint)
    path = path.resolve()
    name = f"_qat_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ReferenceNotFound(f"{path_text} cannot be loaded as Python.", hint=_FORMS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may parse its arguments when it is imported
        del sys.modules[name]
        raise ReferenceNotFound(
            f"importing {path_text} raised {type(error).__name__}: {error} ({place_of(error)}).",
            hint=f"Run `python {path_text}` to see the whole traceback.") from error
    return module

