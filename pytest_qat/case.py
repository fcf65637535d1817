"""`QATCase`: one float model with what is needed to fine-tune, calibrate, evaluate and judge its int8 form.

Only the form of the fields is checked here; whether the model runs on its inputs is the pipeline's first stage.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.batches import labeled
from pytest_qat.core.tracebacks import defined_at, name_of
from pytest_qat.errors import DataError, InvalidCase
from pytest_qat.tolerances import Tolerances

__all__ = ["QATCase", "ReplayedIterable", "Tolerances", "calibration_batches", "without_training"]


_TARGETS_FIRST = frozenset({"y_true", "target", "targets", "label", "labels", "truth"})
"""What functions call their first parameter that expect the targets there, as scikit-learn's do."""


class ReplayedIterable:
    """A one-shot iterator (a generator, say) made re-iterable by keeping what it yielded.

    Only what was asked for is read, so an endless generator is safe as calibration data.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count():
            if index == len(self._seen):
                try:
                    self._seen.append(next(self._source))
                except StopIteration:
                    return
            yield self._seen[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class QATCase:
    """A float model and everything the plugin may do with it.

    Attributes:
        model: The trained fp32 model, on the CPU. It is copied, never changed.
        example_inputs: The positional arguments of one `forward` call: one batch, as it would be served.
        name: Name in reports; default: the model's class name.
        train: The user's own fine-tuning loop; gets the prepared module in train mode, changes it in place.
        train_data: Or: batches `(inputs, target)` for the built-in loop, with `loss_fn`.
        loss_fn: `loss_fn(output, target)` returns a scalar tensor.
        optimizer: Makes the optimizer from the parameters; default: SGD, lr 1e-4, momentum 0.9.
        epochs: Passes over `train_data`.
        calibration_data: Batches of inputs only; default: the inputs of `train_data`, else `example_inputs`.
        eval_data: Batches `(inputs, target)`, the same in each pass. Without it, int8 is compared with float.
        metric: `metric(output, target)` returns one score per sample, shape `(N,)`. Default: top-1 for class indices
            (of a map, the share of its positions), and for float targets of the output's shape the error.
        set_metric: Or one score of the whole set: `set_metric(outputs, targets)` gets those of all batches, joined
            along the batch dimension on the CPU, and returns a number (AUC, mAP, F1, R2, perplexity).
        higher_is_better: False where a lower score is better (a loss, an error).
        recipes: Recipes of this model when the command line names none.
        fuse: Eager only: the module names to fuse, group by group; default: found by tracing a call.
        qconfig_mapping: torch.ao `QConfigMapping` for eager and FX; default: the engine's own for QAT.
        quantizer: PT2E quantizer.
        skip: Names of modules that stay in float on purpose.
        tolerances: What the int8 model must hold.
        prepared: The user's own QAT-prepared (and trained) module, taken as given.
        converted: The user's own converted module, measured as given.

    A batch's inputs are a tensor (one argument), a tuple or list (positional arguments) or a mapping (keywords).

    Raises:
        InvalidCase: a field has the wrong type or contradicts another.
        InvalidOption: a tolerance makes no sense.
    """

    model: nn.Module
    example_inputs: tuple[Any, ...]
    name: str | None = None
    train: Callable[[nn.Module], None] | None = None
    train_data: Iterable[Any] | None = None
    loss_fn: Callable[..., Tensor] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    epochs: int = 1
    calibration_data: Iterable[Any] | None = None
    eval_data: Iterable[Any] | None = None
    metric: Callable[[Any, Any], Tensor] | None = None
    set_metric: Callable[[Any, Any], float] | None = None
    higher_is_better: bool = True
    recipes: Sequence[str] = ()
    fuse: Sequence[Sequence[str]] | None = None
    qconfig_mapping: Any = None
    quantizer: Any = None
    skip: Sequence[str] = ()
    tolerances: Tolerances = Tolerances()
    prepared: nn.Module | None = None
    converted: nn.Module | None = None

    def __post_init__(self) -> None:
        self._check_model()
        self._check_inputs()
        self._check_training()
        self._check_metrics()
        self._check_names()
        for field in ("train_data", "calibration_data", "eval_data"):
            data = getattr(self, field)
            if data is not None:
                object.__setattr__(self, field, _reiterable(data, field=field))

    @property
    def label(self) -> str:
        """The name to print: `name`, else the class of the model."""
        return self.name or type(self.model).__name__

    @property
    def fine_tunes(self) -> bool:
        """Whether the case says how to train the prepared model."""
        return self.prepared is None and (self.train is not None or self.train_data is not None)

    def _check_model(self) -> None:
        for field in ("model", "prepared", "converted"):
            module = getattr(self, field)
            if module is None and field != "model":
                continue
            if not isinstance(module, nn.Module):
                raise InvalidCase(f"{field} is {_seen(module)}, expected an nn.Module instance.",
                                  hint=_instance_hint(module))
            self._refuse_torchscript(field, module)
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if not any(True for _ in self.model.parameters()):
            quantized = _quantized_module(self.model)
            if quantized is None:
                raise InvalidCase(
                    f"{type(self.model).__name__} has no parameters, so there is nothing to quantize.",
                    hint="Give the trained float model with its weights.",
                )
        quantized = _quantized_module(self.model)
        if quantized is not None:
            name, kind = quantized
            raise InvalidCase(
                f"the model is already quantized: {name or 'the model itself'} is {kind}.",
                hint="Give the float model as model=, and this one as converted= if it is to be measured as given.",
            )
        elsewhere = sorted({str(tensor.device) for tensor in tensors if tensor.device.type != "cpu"})
        if elsewhere:
            raise InvalidCase(
                f"the model has tensors on {', '.join(elsewhere)}, expected the CPU, where int8 kernels run.",
                hint="Load it on the CPU, with its weights; --qat-device chooses where fine-tuning takes place.",
            )

    def _refuse_torchscript(self, field: str, module: nn.Module) -> None:
        scripted = next((name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)),
                        None)
        if scripted is None:
            return
        if field == "model":
            raise InvalidCase(f"{scripted or 'the model'} is a TorchScript module, whose layers cannot be quantized.",
                              hint="Give the nn.Module that it was scripted from.")
        seen = f"holds a TorchScript module ({scripted})" if scripted else "is a TorchScript module"
        raise InvalidCase(
            f"{field} {seen}, which hides its layers, expected a module that runs in Python.",
            hint="Give the nn.Module that it was scripted from.")

    def _check_inputs(self) -> None:
        inputs: Any = self.example_inputs
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if not isinstance(inputs, (tuple, list)):
            raise InvalidCase(
                f"example_inputs is {_seen(inputs)}, expected a tuple with the arguments of one forward call.",
                hint="Write example_inputs=(batch,).",
            )
        if not inputs:
            raise InvalidCase("example_inputs is empty, expected the arguments of one forward call.",
                              hint="Write example_inputs=(batch,).")
        object.__setattr__(self, "example_inputs", tuple(inputs))

    def _check_training(self) -> None:
        for field in ("train", "loss_fn", "optimizer", "metric", "set_metric"):
            value = getattr(self, field)
            if value is not None and not callable(value):
                raise InvalidCase(f"{field} is {_seen(value)}, expected a callable.",
                                  hint=f"Pass a function as {field}.")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise InvalidCase(f"epochs is {self.epochs!r}, expected a whole number of at least 1.",
                              hint="Leave out train and train_data for calibration only.")
        if self.train is not None:
            return
        if self.train_data is not None and self.loss_fn is None:
            raise InvalidCase("train_data is given without loss_fn, so there is nothing to minimize.",
                              hint="Add loss_fn=torch.nn.functional.cross_entropy, or give train= instead.")
        if self.loss_fn is not None and self.train_data is None:
            raise InvalidCase("loss_fn is given without train_data, so there is nothing to train on.",
                              hint="Add train_data=, an iterable of (inputs, target) batches.")

    def _check_metrics(self) -> None:
        if self.metric is not None and self.set_metric is not None:
            raise InvalidCase("metric and set_metric are both given, but a model is judged by one score.",
                              hint="Keep metric for a score of each sample, or set_metric for one of the whole set.")
        if self.set_metric is not None and self.eval_data is None:
            raise InvalidCase("set_metric is given without eval_data, so there is nothing to score.",
                              hint="Add eval_data=, an iterable of (inputs, target) batches.")
        for field in ("metric", "set_metric"):
            first = _first_parameter(getattr(self, field))
            if first in _TARGETS_FIRST:
                raise InvalidCase(
                    f"{field} is called with the outputs first, but the first parameter of "
                    f"{defined_at(getattr(self, field))} is {first}.",
                    hint=f"Turn them around: {field}=lambda outputs, targets: "
                         f"{name_of(getattr(self, field)) or '…'}(targets, outputs).")

    def _check_names(self) -> None:
        known = {name for name, _ in self.model.named_modules() if name}
        if not isinstance(self.tolerances, Tolerances):
            raise InvalidCase(f"tolerances is {_seen(self.tolerances)}, expected a Tolerances.",
                              hint="Write tolerances=Tolerances(accuracy_drop=0.01).")
        for field in ("skip", "recipes"):
            _check_sequence(getattr(self, field), field=field, example=f'{field}=("name",)')
        for names in _check_sequence(() if self.fuse is None else self.fuse, field="fuse",
                                     example='fuse=[["conv", "bn"]]'):
            _check_sequence(names, field="each group of fuse", example='fuse=[["conv", "bn"]]')
        groups: list[tuple[str, Iterable[str]]] = [("skip", self.skip)]
        groups += [("fuse", names) for names in self.fuse or ()]
        for field, names in groups:
            unknown = [name for name in names if name not in known]
            if unknown:
                raise InvalidCase(f"{field} names {unknown[0]!r}, but the model has no module of that name.",
                                  hint="Use the names that model.named_modules() gives.")


def _first_parameter(function: Any) -> str | None:
    """Return the name of the first of at least two parameters; None where there are not so many, or none are known."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # nothing to call, or made in C
        return None
    return names[0] if len(names) > 1 else None


def _check_sequence(value: Any, *, field: str, example: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, (Sequence, set, frozenset)):
        seen = f"the plain string {value!r}" if isinstance(value, str) else _seen(value)
        raise InvalidCase(f"{field} is {seen}, expected a list of names.", hint=f"Write {example}.")
    return tuple(value)


def _reiterable(data: Any, *, field: str) -> Iterable[Any]:
    if isinstance(data, (str, bytes, Tensor)) or not isinstance(data, Iterable):
        raise InvalidCase(f"{field} is {_seen(data)}, expected an iterable of batches.",
                          hint=f"Give {field} as a DataLoader or a list of batches.")
    reader = data if isinstance(data, Iterator) else _only_reader(data)
    return data if reader is None else ReplayedIterable(reader)


def _only_reader(data: Iterable[Any]) -> Iterator[Any] | None:
    """Return the iterator that an iterable hands out every time, or None where each reading has its own.

    A DataLoader with persistent workers hands out one, too, but rewinds it; asking would start the workers.
    """
    if isinstance(data, (Sequence, ReplayedIterable, torch.utils.data.DataLoader)):
        return None
    try:
        first, second = iter(data), iter(data)
    except Exception:  # the stage that reads the data reports it
        return None
    return first if first is second else None


def _seen(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a dict"
    return f"{type(value).__name__} {value!r}"[:80]


def _instance_hint(value: object) -> str:
    if isinstance(value, type):
        return f"Return an instance: {value.__name__}(...)."
    return "Return the trained float model."


def _quantized_module(model: nn.Module) -> tuple[str, str] | None:
    """Name and type of the first module or tensor that is quantized already, if any."""
    for name, module in model.named_modules():
        path = type(module).__module__
        if ".quantized" in path and path.startswith("torch.ao.nn") and "FloatFunctional" not in type(module).__name__:
            return name, type(module).__name__
        if type(module).__name__ in {"FakeQuantize", "FusedMovingAvgObsFakeQuantize"}:
            return name, type(module).__name__
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_quantized or (type(tensor.data) is not Tensor and type(tensor).__module__.startswith("torchao")):
            return name, f"a {type(tensor).__name__} of {tensor.dtype}"
    return None


def calibration_batches(case: QATCase, *, limit: int) -> list[Any]:
    """Return at most `limit` batches of inputs to calibrate on: the case's own, its training inputs, or the example.

    Raises:
        DataError: the data are empty.
    """
    if case.calibration_data is not None:
        batches = list(itertools.islice(case.calibration_data, limit))
        field = "calibration_data"
    elif case.train_data is not None:
        batches = [inputs for inputs, _ in itertools.islice(labeled(case.train_data, field="train_data"), limit)]
        field = "train_data"
    else:
        return [case.example_inputs]
    if not batches:
        raise DataError(f"{field} is empty, expected at least one batch.", hint=f"Make {field} yield a batch.")
    return batches


def without_training(case: QATCase) -> QATCase:
    """Return the case with one batch to calibrate on and nothing to train or evaluate with.

    Raises:
        DataError: the calibration data are empty.
    """
    return replace(case, train=None, train_data=None, loss_fn=None, optimizer=None, eval_data=None,
                   set_metric=None, calibration_data=calibration_batches(case, limit=1))
