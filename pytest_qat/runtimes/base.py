"""What every runtime gives back: an artefact on disk, what is stored in it, and ways to run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

__all__ = ["Deployed", "Runtime", "StoredTensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in an artefact.

    Attributes:
        name: As the artefact calls it.
        dtype: Such as `float32` or `qint8`.
        shape: Its sides.
        size_bytes: Bytes of its values.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A model as it ships.

    Attributes:
        artefact: The file that ships.
        size_bytes: Its size.
        tensors: What is stored in it.
        layout: Memory layout of 4-D inputs, `contiguous` or `channels_last`.
        adapt: Turns a batch of inputs into what `run` takes; not part of the latency.
        run: Calls the model on adapted inputs.
        session: Enters the state that `run` needs: engine, inference mode.
        save_program: Writes the model with the given inputs to a file from which the runtime's `load_program` runs
            it in another process.
    """

    artefact: Path
    size_bytes: int
    tensors: tuple[StoredTensor, ...]
    layout: str
    adapt: Callable[[Any], Any]
    run: Callable[[Any], Any]
    session: Callable[[], AbstractContextManager[None]]
    save_program: Callable[[Any, Path], None]


class Runtime(Protocol):
    """What each module of `pytest_qat.runtimes` offers."""

    def deploy(self, model: nn.Module, example_inputs: tuple[Any, ...], path: Path, *, engine: str,
               channels_last: bool) -> Deployed:
        """Write the artefact of `model` to `path` and return it ready to run."""

    def load_program(self, path: Path) -> Callable[[], object]:
        """Return one call of the model that `Deployed.save_program` wrote to `path`."""
