"""What every runtime offers and returns: an artifact on disk, its tensors and kernels, and ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pytest_qat.recipe import RuntimeName

__all__ = ["DeploySettings", "Deployed", "DeployedPair", "Kernel", "OpTime", "Runtime", "StoredTensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in an artifact.

    Attributes:
        name: Its name in the artifact.
        dtype: Such as `float32` or `qint8`.
        shape: Its dimensions.
        size_bytes: Bytes of its values.
        qparams: Whether it holds scales or zero points.
        digest: Of its values; equal ones are the same tensor stored again. Empty: not looked at.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    qparams: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A convolution, linear layer or matrix product as an artifact runs it.

    Attributes:
        int8: Whether an int8 kernel computes it.
        op: Its name in the artifact.
        module: Name of the user's module; None where the artifact does not record it.
        macs: Multiply-accumulates of one call; None where the artifact does not record shapes.
        reason: Why it runs in float; empty if it does not.
    """

    int8: bool
    op: str
    module: str | None = None
    macs: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """What an op takes in a call.

    Attributes:
        op: Its name in the runtime.
        shapes: Shapes of its first inputs, to tell ops of one name apart; empty: not recorded.
        seconds: Median time of the op by itself, without ops that it calls, of all that share name and shapes.
    """

    op: str
    shapes: str
    seconds: float


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
        save_program: Writes the model with the given inputs to a file. The runtime's `load_program` runs it from that
            file in another process.
        batch: The one batch size that the artifact accepts; None: any.
        shapes: Shapes of the inputs that it was built for.
        kernels: What the artifact computes, in order; None if the modules of the converted model have to be read.
        fresh: Makes another `run` that has not been called yet, for kernels that specialize on their first call;
            None if `run` does not depend on earlier calls.
        op_times: Times the ops of a call on adapted inputs, the longest first; gives none where the runtime has no way
            to.
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
    op_times: Callable[[Any], tuple[OpTime, ...]] = lambda inputs: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedPair:
    """The float and the int8 artifact in one runtime, by memory layout; of float none if settings left it out."""

    fp32: Mapping[str, Deployed]
    int8: Mapping[str, Deployed]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySettings:
    """How to deploy.

    Attributes:
        engine: torch's quantized engine, where the recipe has one.
        threads: Intra-op threads that the artifact runs with.
        timeout_s: Most seconds for each side, where another process builds it.
        load: Whether to load the artifacts now; False: at their first call, where another process has built them.
        int8_only: Whether to leave the float artifact out where building takes long; only a trial can do without.
    """

    engine: str | None
    threads: int
    timeout_s: float
    load: bool = True
    int8_only: bool = False


class Runtime(Protocol):
    """Where a model runs once it has shipped."""

    @property
    def name(self) -> RuntimeName:
        """The name that recipes, messages and reports use, and by which another process loads it."""

    def deploy(self, fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
               settings: DeploySettings) -> DeployedPair:
        """Write the artifacts of both sides to `folder` and return them ready to run.

        Args:
            fp32: The float model, in eval mode.
            int8: The converted model, in eval mode.
            example_inputs: One batch, as passed to `forward`.
            folder: Where the artifacts go.
            settings: Engine, threads and time limit.

        Raises:
            MissingPackage: the runtime needs a tool that is not installed.
            CheckFailed: the runtime cannot run the model, or crashes on it; the findings say why.
            StageError: writing or converting failed for another reason.
        """

    def load_program(self, path: Path) -> Callable[[], object]:
        """Return a function that calls the model that `Deployed.save_program` wrote to `path` once.

        Raises:
            MeasurementError: the runtime cannot run a saved program.
        """
