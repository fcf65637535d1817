"""torch's own runtime: the module runs as it is, and its `state_dict` is the file that ships."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import call, to_channels_last
from pytest_qat.core.files import save_whole, write_whole
from pytest_qat.core.torch_state import quantized_engine
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import MeasurementError, StageError
from pytest_qat.exported.model import ExportedModel
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings
from pytest_qat.runtimes.graph_kernels import kernels_of
from pytest_qat.runtimes.op_times import torch_op_times
from pytest_qat.runtimes.stored import stored_tensors

__all__ = ["TorchRuntime", "deploy_form", "deploy_in_layouts", "engine_session", "inputs_of", "load_traced_program",
           "trace", "unchanged"]


class TorchRuntime:
    """torch's eager kernels, float and quantized."""

    name: ClassVar[RuntimeName] = "torch"

    def deploy(self, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
               settings: DeploySettings) -> DeployedPair:
        """Save the state of both modules and return them ready to run, images in both memory layouts.

        Raises:
            StageError: a file cannot be written.
        """
        return deploy_in_layouts(fp32, int8, example_inputs, lambda module, name, last: deploy_form(
            module, folder / f"{name}.pt", engine=settings.engine, channels_last=last))

    def load_program(self, path: Path) -> Callable[[], object]:
        """Return a function that calls the model in a file that `Deployed.save_program` wrote once."""
        return load_traced_program(path)


def deploy_in_layouts(fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...],
                      form: Callable[[nn.Module, str, bool], Deployed]) -> DeployedPair:
    """Deploy both sides in contiguous layout, and in channels_last as well if any input is a 4-D tensor.

    Args:
        fp32: The float model.
        int8: The converted model.
        example_inputs: One batch.
        form: Deploys a module under a name, in channels_last or not.
    """
    images = any(isinstance(leaf, Tensor) and leaf.dim() == 4 for leaf in pytree.tree_leaves(example_inputs))
    fp32_forms, int8_forms = ([form(module, f"{side}-0", False)] + (
        _channels_last(module, f"{side}-1", example_inputs, form) if images else [])
        for side, module in (("fp32", fp32), ("int8", int8)))
    return DeployedPair(fp32={made.layout: made for made in fp32_forms},
                        int8={made.layout: made for made in int8_forms})


def _channels_last(module: nn.Module, name: str, example_inputs: tuple[Any, ...],
                   form: Callable[[nn.Module, str, bool], Deployed]) -> list[Deployed]:
    """Deploy in channels_last and run once; a model that cannot run in this layout ships in the contiguous one only."""
    try:
        made = form(module, name, True)
        with made.session():
            made.run(made.adapt(example_inputs))
    except StageError:
        raise  # such as a full disk
    except Exception:  # such as `view`, which needs contiguous tensors
        return []
    return [made]


def deploy_form(model: nn.Module, path: Path, *, engine: str | None, channels_last: bool) -> Deployed:
    """Save a module's state and return it ready to run in one memory layout."""
    state = model.state_dict()
    save_whole(state, path)
    module = copy.deepcopy(model).eval()
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    adapt = to_channels_last if channels_last else unchanged
    pristine = copy.deepcopy(module) if _holds_packed_weights(state) else None

    session = engine_session(engine)

    def save_program(inputs: Any, target: Path) -> None:
        with session():
            write_whole(_script(module, adapt(inputs)).save_to_buffer(), target)
        save_whole({"inputs": adapt(inputs), "engine": engine}, inputs_of(target))

    return Deployed(
        artifact=path,
        size_bytes=path.stat().st_size,
        tensors=stored_tensors(state),
        layout="channels_last" if channels_last else "contiguous",
        adapt=adapt,
        run=lambda inputs: call(module, inputs),
        session=session,
        save_program=save_program,
        kernels=kernels_of(model.graph_module) if isinstance(model, ExportedModel) else None,
        fresh=None if pristine is None else lambda: partial(call, copy.deepcopy(pristine)),
        op_times=lambda inputs: torch_op_times(partial(call, module, inputs)),
    )


def _holds_packed_weights(state: Mapping[str, Any]) -> bool:
    """Whether any weight is packed for an int8 kernel.

    oneDNN's quantized layers cache the primitive of their first call, which fits only its shape and number of threads.
    With others they make a new one in every later call, which takes up to twice the time.
    """
    return any(isinstance(leaf, torch.ScriptObject) or (isinstance(leaf, Tensor) and leaf.is_quantized)
               for leaf in pytree.tree_leaves(dict(state)))


def engine_session(engine: str | None) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a context manager that enters inference mode under an engine."""
    @contextlib.contextmanager
    def session() -> Iterator[None]:
        with quantized_engine(engine), torch.inference_mode():
            yield

    return session


def load_traced_program(path: Path) -> Callable[[], object]:
    """Return a function that calls a saved TorchScript program once; sets torch's quantized engine for good.

    Args:
        path: What `Deployed.save_program` of the runtime torch or torchscript wrote.
    """
    saved = torch.load(inputs_of(path))
    if saved["engine"] is not None:
        torch.backends.quantized.engine = saved["engine"]
    module, inputs = torch.jit.load(path), saved["inputs"]

    def run() -> object:
        with torch.inference_mode():
            return call(module, inputs)

    return run


def _script(module: nn.Module, inputs: Any) -> Any:
    try:
        return trace(module, inputs)
    except Exception as error:  # whatever a model does that a trace cannot record
        raise MeasurementError(f"TorchScript cannot trace the model: {headline(error)}",
                               hint="Leave out --qat-memory; no other check needs the trace.") from error


def trace(module: nn.Module, inputs: Any) -> Any:
    """Trace a module into TorchScript, which runs without its Python code (int8 modules do not pickle).

    Raises whatever torch.jit.trace or the module raises.
    """
    form = {"example_kwarg_inputs": dict(inputs)} if isinstance(inputs, Mapping) else {
        "example_inputs": tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that become constants
        return torch.jit.trace(module, strict=False, check_trace=False, **form)


def inputs_of(path: Path) -> Path:
    """Return the file that holds the inputs of a saved program."""
    return path.with_suffix(".inputs")


def unchanged(inputs: Any) -> Any:
    """Return the inputs as they are."""
    return inputs
