"""What every runtime gives back: an artifact on disk, what is stored in it, what runs in int8, and ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

__all__ = ["DeploySettings", "Deployed", "DeployedPair", "Kernel", "Runtime", "StoredTensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in an artifact.

    Attributes:
        name: As the artifact calls it.
        dtype: Such as `float32` or `qint8`.
        shape: Its sides.
        size_bytes: Bytes of its values.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A convolution, linear layer or matrix product as an artifact runs it.

    Attributes:
        int8: Whether an int8 kernel does it.
        op: What the artifact calls it.
        module: Name of the user's module; None where the artifact does not say.
        macs: Multiply-accumulates of one call; None where the artifact does not say.
        reason: Why it runs in float; empty if it does not.
    """

    int8: bool
    op: str
    module: str | None = None
    macs: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A model as it ships.

    Attributes:
        artifact: The file that ships.
        size_bytes: Its size.
        tensors: What is stored in it.
        layout: Memory layout of 4-D inputs, `contiguous` or `channels_last`.
        adapt: Turns a batch of inputs into what `run` takes; not part of the latency.
        run: Calls the model on adapted inputs.
        session: Enters the state that `run` needs: engine, inference mode.
        save_program: Writes the model with the given inputs to a file from which the runtime's `load_program` runs
            it in another process.
        batch: The one batch size that the artifact is made for; None: any.
        shapes: Shapes of the inputs that it is made for.
        kernels: What the artifact computes, in order; None: the modules of the converted model tell.
        fresh: Makes another `run` that nobody has called yet, for kernels that settle with their first call; None:
            `run` is the same whatever it was called with before.
    """

    artifact: Path
    size_bytes: int
    tensors: tuple[StoredTensor, ...]
    layout: str
    adapt: Callable[[Any], Any]
    run: Callable[[Any], Any]
    session: Callable[[], AbstractContextManager[None]]
    save_program: Callable[[Any, Path], None]
    batch: int | None = None
    shapes: frozenset[tuple[int, ...]] = frozenset()
    kernels: tuple[Kernel, ...] | None = None
    fresh: Callable[[], Callable[[Any], Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedPair:
    """The float and the int8 artifact in one runtime, in each layout that was deployed."""

    fp32: Mapping[str, Deployed]
    int8: Mapping[str, Deployed]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySettings:
    """How to deploy.

    Attributes:
        engine: torch's quantized engine, where the recipe has one.
        threads: Intra-op threads that the artifact runs with.
        timeout_s: Most seconds for each side, where a process of its own does it.
    """

    engine: str | None
    threads: int
    timeout_s: float


class Runtime(Protocol):
    """What each module of `pytest_qat.runtimes` offers."""

    def deploy(self, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
               settings: DeploySettings) -> DeployedPair:
        """Write the artifact of both sides to `folder` and return them ready to run.

        Raises:
            CheckFailed: the runtime cannot take the model, or crashes on it; the findings say why.
            StageError: writing or converting failed otherwise.
        """

    def load_program(self, path: Path) -> Callable[[], object]:
        """Return one call of the model that `Deployed.save_program` wrote to `path`."""
