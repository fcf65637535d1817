"""torch's own runtime: the module runs as it is, and its `state_dict` is the file that ships."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_qat.batches import call, to_channels_last
from pytest_qat.isolation import quantized_engine
from pytest_qat.runtimes.base import Deployed

__all__ = ["deploy"]


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
    torch.save(model.state_dict(), path)
    module = copy.deepcopy(model).eval()
    if channels_last:
        module = module.to(memory_format=torch.channels_last)

    @contextlib.contextmanager
    def session() -> Iterator[None]:
        with quantized_engine(engine), torch.inference_mode():
            yield

    return Deployed(
        artefact=path,
        size_bytes=path.stat().st_size,
        layout="channels_last" if channels_last else "contiguous",
        adapt=to_channels_last if channels_last else _unchanged,
        run=lambda inputs: call(module, inputs),
        session=session,
    )


def _unchanged(inputs: Any) -> Any:
    return inputs
