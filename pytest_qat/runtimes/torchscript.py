"""TorchScript: the traced and frozen module is the file that ships, and torch's interpreter runs it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from pytest_qat.core.batches import call, to_channels_last
from pytest_qat.core.files import save_whole, write_whole
from pytest_qat.core.tracebacks import headline, locate_module, place_of
from pytest_qat.errors import CheckFailed
from pytest_qat.findings import Finding
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes import torch as torch_runtime
from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings
from pytest_qat.runtimes.op_times import torch_op_times
from pytest_qat.runtimes.stored import stored_tensors
from pytest_qat.runtimes.torch import (
    deploy_in_layouts,
    engine_session,
    inputs_of,
    load_traced_program,
    unchanged,
)

__all__ = ["TorchScriptRuntime", "trace"]


class TorchScriptRuntime:
    """torch's kernels, called by the TorchScript interpreter."""

    name: ClassVar[RuntimeName] = "torchscript"

    def deploy(self, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
               settings: DeploySettings) -> DeployedPair:
        """Trace, freeze, save and load both sides, images in both memory layouts.

        Raises:
            CheckFailed: TorchScript cannot trace the model.
            StageError: a file cannot be written.
        """
        return deploy_in_layouts(fp32, int8, example_inputs, lambda module, name, last: _form(
            module, example_inputs, folder / f"{name}.torchscript", engine=settings.engine, channels_last=last))

    def load_program(self, path: Path) -> Callable[[], object]:
        """Return a function that calls the model in a file that `Deployed.save_program` wrote once."""
        return load_traced_program(path)


def trace(module: nn.Module, inputs: Any) -> Any:
    """Trace a module in eval mode into TorchScript, which runs without its Python code.

    Raises:
        CheckFailed: the trace fails.
    """
    try:
        return torch_runtime.trace(module, inputs)
    except Exception as error:  # whatever a model does that a trace cannot record
        raise CheckFailed(["TorchScript cannot trace the model."], findings=[Finding(
            code="not-traceable", severity="error", module=locate_module(error, module) or None,
            message=f"torch.jit.trace fails: {headline(error).rstrip('.')} ({place_of(error)}).",
            evidence={"error": type(error).__name__})]) from error


def _form(model: nn.Module, example_inputs: tuple[Any, ...], path: Path, *, engine: str | None,
          channels_last: bool) -> Deployed:
    adapt = to_channels_last if channels_last else unchanged
    session = engine_session(engine)
    module = copy.deepcopy(model)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    with session(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen: Any = torch.jit.freeze(trace(module.eval(), adapt(example_inputs)).eval())
        write_whole(frozen.save_to_buffer(), path)
        loaded: Any = torch.jit.load(str(path))

    def save_program(inputs: Any, target: Path) -> None:
        write_whole(path.read_bytes(), target)
        save_whole({"inputs": adapt(inputs), "engine": engine}, inputs_of(target))

    return Deployed(
        artifact=path, size_bytes=path.stat().st_size, tensors=stored_tensors(model.state_dict()),
        layout="channels_last" if channels_last else "contiguous", adapt=adapt,
        run=lambda inputs: call(loaded, inputs), session=session, save_program=save_program,
        fresh=lambda: partial(call, torch.jit.load(str(path))),
        op_times=lambda inputs: torch_op_times(partial(call, loaded, inputs)))
