"""A model of which only parts can be traced: those are graphs, and Python runs what is around them.

The model is run on example inputs, and each module that is called is tried: the largest modules that trace, and whose
graphs then compute what the modules do, become parts. What holds them stays the user's own code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pytest_qat.core.batches import call, copied
from pytest_qat.core.tracebacks import summary_of
from pytest_qat.errors import StageError
from pytest_qat.workflows.fx.arguments import CallForm, Nested, NotPlain, form_of, taken_apart
from pytest_qat.workflows.fx.tracing import Traced, trace_call

__all__ = ["Chosen", "Part", "Partition", "agree", "failed_part", "find_parts", "naming_part",
           "serve_in_eval_mode"]

_SAME = 1e-3
"""Largest error of a graph, as a share of the output's norm (60 dB): folding and other orders of sums leave less."""
_MOST_PASSES = 12
_LIKE_WEIGHTS = "_like_the_weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A module that can be traced.

    Attributes:
        name: Its qualified name; "" for the model.
        form: The form of its calls.
        traced: Its graph.
        inputs: The tensors of its first call.
    """

    name: str
    form: CallForm
    traced: Traced
    inputs: tuple[Tensor, ...]


@dataclass(slots=True)
class Partition:
    """What can be traced, and what stopped the rest.

    Attributes:
        chosen: Parts by name, in the order of their calls.
        stopped: Why modules that were tried are no parts, by name; the model itself is "".
    """

    chosen: dict[str, Chosen] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)


def find_parts(model: nn.Module, batches: Sequence[Any], *, wanted: Callable[[str, nn.Module], bool],
               refused: dict[str, str]) -> Partition:
    """Return the largest modules that can be traced.

    Args:
        model: In eval mode.
        batches: Inputs; every module must be called in the same form in all of them to be a part.
        wanted: Whether a module, given by name, is worth being one.
        refused: Modules that cannot be one, with the reason.
    """
    found = Partition(stopped=dict(refused))
    traced: dict[str, Traced] = {}
    for _ in range(_MOST_PASSES):
        found.chosen.clear()
        search = _Search(model, found, wanted, traced)
        with torch.no_grad(), search.hooks():
            for inputs in batches:
                call(model, copied(inputs))
        if not search.undone:
            return found
    found.chosen.clear()
    return found


class _Search:
    """Hooks that try to trace each module as it is called."""

    def __init__(self, model: nn.Module, found: Partition, wanted: Callable[[str, nn.Module], bool],
                 traced: dict[str, Traced]) -> None:
        self._model = model
        self._found = found
        self._wanted = wanted
        self._traced = traced
        self._inside: list[tuple[str, list[Tensor]]] = []
        self._busy = False
        self.undone = False
        """Whether a module that was taken for a part turned out to be none, so that those inside it were missed."""

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the calls of all modules."""
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                if self._wanted(name, module):
                    enter, leave = self._hooks_of(name)
                    stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)
                    stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
            yield

    def _hooks_of(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._busy or self._inside or name in self._found.stopped:
                return
            tensors = self._tensors(name, module, args, kwargs)
            if tensors is not None:
                self._inside.append((name, [tensor.detach().clone() for tensor in tensors]))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._busy or not self._inside or self._inside[-1][0] != name:
                return
            _, tensors = self._inside.pop()
            self._check(name, tensors, output)

        return enter, leave

    def _tensors(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> list[Tensor] | None:
        """Return the tensors of the call of a part; None for a module that is none."""
        known = self._found.chosen.get(name)
        if known is not None:
            with contextlib.suppress(NotPlain):
                tensors = known.form.tensors_of(args, kwargs)
                if tensors is not None and _kinds(tensors) == _kinds(known.inputs):
                    return tensors
            self._stop(name, "it is called in more than one form")
            return None
        self._busy = True
        try:
            form, tensors = form_of(module.forward, args, kwargs)
            traced = self._traced.get(name) or trace_call(module, form, tensors)
            self._traced[name] = traced
        except Exception as error:  # whatever a model does that a trace cannot hold
            self._stop(name, summary_of(error))
            return None
        finally:
            self._busy = False
        self._found.chosen[name] = Chosen(name=name, form=form, traced=traced, inputs=tuple(
            tensor.detach().clone() for tensor in tensors))
        return tensors

    def _check(self, name: str, tensors: list[Tensor], output: Any) -> None:
        """Hold the graph to what the module returned."""
        chosen = self._found.chosen[name]
        assert chosen.traced.output is not None, "unreachable because trace_call notes it"
        self._busy = True
        try:
            wanted, nested = taken_apart(output)
            made = chosen.traced.module(*tensors)
            same = chosen.traced.output.fits(nested) and agree(wanted, made)
        except Exception as error:  # a graph may fail where the module does not
            self._stop(name, f"its graph raised {summary_of(error)}")
            return
        finally:
            self._busy = False
        if not same:
            self._stop(name, "its graph computes something else than the module: it depends on values, or keeps state")

    def _stop(self, name: str, reason: str) -> None:
        self.undone |= self._found.chosen.pop(name, None) is not None
        self._found.stopped[name] = reason


def agree(wanted: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are the same up to float arithmetic's own errors."""
    return len(wanted) == len(made) and all(_close(one, other) for one, other in zip(wanted, made, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    same = (one == other) | (one.isnan() & other.isnan())  # infinities included
    noise = torch.where(same, 0, one.double() - other.double()).norm()
    level = torch.where(torch.isfinite(one), one.double(), 0).norm()
    return bool(noise <= _SAME * level)


def _kinds(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, int]]:
    return [(tensor.dtype, tensor.dim()) for tensor in tensors]


class _Kept(dict[str, Any]):
    """Attributes that code around a part may read; copies of the part share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


class Part(nn.Module):
    """A module whose forward is a graph; to the code around it, it has the attributes that the module had."""

    def __init__(self, module: nn.Module, graph: nn.Module, *, form: CallForm, output: Nested, name: str) -> None:
        super().__init__()
        own = vars(nn.Module())
        self._kept = _Kept({name: value for name, value in vars(module).items() if name not in own})
        self._kind = type(module)
        self._form, self._output, self.name = form, output, name
        self.graph = graph
        # Code around it may ask `next(module.parameters()).device`, and a packed layer has no parameters.
        self.register_parameter(_LIKE_WEIGHTS, nn.Parameter(torch.empty(0), requires_grad=False))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + _LIKE_WEIGHTS]  # it does not ship

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph on the tensors of the call.

        Raises:
            StageError: the call has another form than the one that was traced.
        """
        tensors = self._form.tensors_of(args, kwargs)
        if tensors is None:
            raise StageError(f"{self.name or 'the model'} is called with other arguments than on the example inputs.",
                             hint="Give example_inputs in the form in which the model is called later.")
        return self._output.filled(self.graph(*tensors))

    def __getattr__(self, name: str) -> Any:
        """Return what the module had under this name: an attribute, a layer inside, or a weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # protocols are the part's own: torch's int8 layers copy themselves
                raise
        kept = self.__dict__.get("_kept", {})
        if name in kept:
            return kept[name]
        of_class = getattr(self.__dict__.get("_kind"), name, None)
        if of_class is not None and not hasattr(nn.Module, name):
            return of_class.__get__(self, type(self)) if hasattr(of_class, "__get__") else of_class
        found = getattr(self.graph.module, name)
        if name in ("weight", "bias") and callable(found) and not isinstance(found, nn.Module):
            value = found()  # an int8 layer packs them
            return value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value
        return found


@contextlib.contextmanager
def naming_part(name: str) -> Iterator[None]:
    """Let an error know in which part it was raised; `failed_part` tells."""
    try:
        yield
    except Exception as error:
        raise PartFailed(name) from error


class PartFailed(Exception):
    """Raised from the error that a part raised; its only argument is the part's name."""


def failed_part(error: BaseException) -> str | None:
    """Return the name of the part in which an error was raised, or None."""
    if isinstance(error, PartFailed):
        return str(error.args[0])
    trace, found = error.__traceback__, None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        found = owner.name if isinstance(owner, Part) else found
        trace = trace.tb_next
    return found


def serve_in_eval_mode(model: nn.Module) -> nn.Module:
    """Let the Python code of a model stay in eval mode, as it ships, whatever `train()` says; in place.

    The graphs and torch's own layers follow `train()`; the user's modules do not, and their own `train` is not called.
    """
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), {"train": _train, "__module__": kind.__module__})
    return model


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    for child in self.children():
        _switch(child, mode)
    return self


def _switch(module: nn.Module, mode: bool) -> None:
    if isinstance(module, (Part, GraphModule)) or type(module).__module__.startswith("torch.nn."):
        module.train(mode)
        return
    for child in module.children():
        _switch(child, mode)
