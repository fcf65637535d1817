"""torch's own runtime: the module runs as it is, and its `state_dict` is the file that ships."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.batches import call, to_channels_last
from pytest_qat.errors import MeasurementError
from pytest_qat.isolation import quantized_engine
from pytest_qat.locate import headline
from pytest_qat.runtimes.base import Deployed, StoredTensor

__all__ = ["deploy", "load_program", "stored_tensors"]


def deploy(model: nn.Module, example_inputs: tuple[Any, ...], path: Path, *, engine: str,
           channels_last: bool) -> Deployed:
    """Save the module's state and return it ready to run.

    Args:
        model: In eval mode; float, or converted by torch.ao.
        example_inputs: Unused: this runtime does not specialise.
        path: Where the `state_dict` goes.
        engine: torch's quantized engine to run under; float models do not look at it.
        channels_last: Lay 4-D weights and inputs out as NHWC, which convolutions may prefer.
    """
    del example_inputs
    state = model.state_dict()
    torch.save(state, path)
    module = copy.deepcopy(model).eval()
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    adapt = to_channels_last if channels_last else _unchanged

    @contextlib.contextmanager
    def session() -> Iterator[None]:
        with quantized_engine(engine), torch.inference_mode():
            yield

    def save_program(inputs: Any, target: Path) -> None:
        with session():
            _script(module, adapt(inputs)).save(target)
        torch.save({"inputs": adapt(inputs), "engine": engine}, _inputs_of(target))

    return Deployed(
        artefact=path,
        size_bytes=path.stat().st_size,
        tensors=stored_tensors(state),
        layout="channels_last" if channels_last else "contiguous",
        adapt=adapt,
        run=lambda inputs: call(module, inputs),
        session=session,
        save_program=save_program,
    )


def load_program(path: Path) -> Callable[[], object]:
    """Return one call of the model in a file that `save_program` wrote, for a process of its own."""
    told = torch.load(_inputs_of(path))
    torch.backends.quantized.engine = told["engine"]
    module, inputs = torch.jit.load(path), told["inputs"]

    def run() -> object:
        with torch.inference_mode():
            return call(module, inputs)

    return run


def _script(module: nn.Module, inputs: Any) -> Any:
    """Trace a module into TorchScript, which runs without its Python code (int8 modules do not pickle)."""
    form = {"example_kwarg_inputs": dict(inputs)} if isinstance(inputs, Mapping) else {
        "example_inputs": tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that the trace fixes do not matter: the same inputs are run
        try:
            return torch.jit.trace(module, strict=False, check_trace=False, **form)
        except Exception as error:  # whatever a model does that a trace cannot hold
            raise MeasurementError(f"TorchScript cannot trace the model: {headline(error)}",
                                   hint="Nothing else depends on it.") from error


def _inputs_of(path: Path) -> Path:
    return path.with_suffix(".inputs")


def stored_tensors(state: Mapping[str, Any]) -> tuple[StoredTensor, ...]:
    """Return the tensors of a `state_dict`, packed parameters of quantized modules included; shared ones once."""
    found: list[StoredTensor] = []
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in state.items():
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for index, leaf in enumerate(leaves):
            key = (leaf.data_ptr(), tuple(leaf.shape))
            if leaf.numel() == 0 or (key in seen and leaf.data_ptr() != 0):
                continue
            seen.add(key)
            found.append(StoredTensor(
                name=name if len(leaves) == 1 else f"{name}[{index}]", dtype=str(leaf.dtype).removeprefix("torch."),
                shape=tuple(leaf.shape), size_bytes=leaf.numel() * leaf.element_size()))
    return tuple(found)


def _unchanged(inputs: Any) -> Any:
    return inputs
