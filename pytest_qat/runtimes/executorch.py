"""ExecuTorch: what XNNPACK takes is delegated to it, and a `.pte` file ships."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.quiet import silenced
from pytest_qat.runtimes.base import DeployedPair, DeploySettings, Kernel, StoredTensor
from pytest_qat.runtimes.exported import Call, deploy_lowered, load_exported, load_flat_program
from pytest_qat.runtimes.graph_kernels import kernels_of

__all__ = ["deploy", "load", "load_exported", "load_program", "lower", "seen_in", "stored_in"]


def deploy(fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
           settings: DeploySettings) -> DeployedPair:
    """Lower both sides to XNNPACK (see `lowered.deploy_lowered`)."""
    return deploy_lowered(sys.modules[__name__], "executorch", fp32, int8, example_inputs, folder, settings)


def lower(exported: torch.export.ExportedProgram) -> tuple[bytes, tuple[Kernel, ...]]:
    """Return the `.pte` and what it computes, delegated or not."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    graph_module = edge.exported_program().graph_module
    found: list[Kernel] = []
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and hasattr(delegate := getattr(graph_module, str(node.target)), "original_module"):
            found += kernels_of(delegate.original_module.graph_module, lowered=True)
    outside = kernels_of(graph_module)
    found += [replace(kernel, int8=False, reason="not delegated to XNNPACK, so a portable float kernel runs it")
              for kernel in outside]
    return bytes(edge.to_executorch().buffer), tuple(found)


def seen_in(path: Path, kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return the kernels as lowering found them; the file holds them as opaque blobs."""
    del path
    return kernels


def stored_in(path: Path) -> tuple[StoredTensor, ...]:
    """Return what is stored: delegates keep their weights in blobs, so the file is one entry."""
    size = path.stat().st_size
    return (StoredTensor(name="program and delegate blobs", dtype="bytes", shape=(size,), size_bytes=size),)


class _Pool:
    """XNNPACK's threads, of which a process has one pool: each loaded program holds on to the pool of its time."""

    made = 0

    @classmethod
    def of(cls, threads: int) -> int:
        """Give the process a pool of so many threads, unless it has; return the pool's number."""
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:  # noqa: SLF001 - there is no other way
            portable_lib._unsafe_reset_threadpool(threads)  # noqa: SLF001
            cls.made += 1
        return cls.made


def load(path: Path, *, threads: int) -> Call:
    """Return one call of a `.pte`.

    A program whose pool has been replaced meanwhile, for another number of threads, is loaded again by the next call:
    running it would wait for threads that are gone.
    """
    execute, pool = _loaded(path, threads=threads)

    def call(inputs: Sequence[Tensor]) -> list[Tensor]:
        nonlocal execute, pool
        if pool != _Pool.made:
            execute, pool = _loaded(path, threads=threads)
        return list(execute(inputs))

    return call


def _loaded(path: Path, *, threads: int) -> tuple[Callable[[Sequence[Tensor]], Sequence[Tensor]], int]:
    with silenced():
        from executorch.runtime import Runtime

        pool = _Pool.of(threads)
        method = Runtime.get().load_program(path).load_method("forward")
    if method is None:
        raise RuntimeError("the program has no method forward")
    return method.execute, pool


def load_program(path: Path) -> Callable[[], object]:
    """Return one call of the artifact that `save_program` noted."""
    return load_flat_program(sys.modules[__name__], path)
