"""What every runtime gives back: an artefact on disk and a way to run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

__all__ = ["Deployed", "Runtime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A model as it ships.

    Attributes:
        artefact: The file that ships.
        size_bytes: Its size.
        layout: Memory layout of 4-D inputs, `contiguous` or `channels_last`.
        adapt: Turns a batch of inputs into what `run` takes; not part of the latency.
        run: Calls the model on adapted inputs.
        session: Enters the state that `run` needs: engine, inference mode.
    """

    artefact: Path
    size_bytes: int
    layout: str
    adapt: Callable[[Any], Any]
    run: Callable[[Any], Any]
    session: Callable[[], AbstractContextManager[None]]


class Runtime(Protocol):
    """What each module of `pytest_qat.runtimes` offers."""

    def deploy(self, model: nn.Module, example_inputs: tuple[Any, ...], path: Path, *, engine: str,
               channels_last: bool) -> Deployed:
        """Write the artefact of `model` to `path` and return it ready to run."""
