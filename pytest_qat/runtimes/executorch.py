"""ExecuTorch: what XNNPACK supports is delegated to it, and a `.pte` file ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pytest_qat.core.quiet import silenced
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Kernel, StoredTensor
from pytest_qat.runtimes.exported import Call, ExportedRuntime, Lowered
from pytest_qat.runtimes.graph_kernels import kernels_of

__all__ = ["ExecuTorchRuntime"]


class ExecuTorchRuntime(ExportedRuntime):
    """XNNPACK's kernels in ExecuTorch.

    A process has one pool of XNNPACK threads, and each loaded program keeps using the pool that existed when it was
    loaded. The object counts the pools that it has made, so a process must have only one object of this class (see
    `load_runtime`).
    """

    name: ClassVar[RuntimeName] = "executorch"
    suffix: ClassVar[str] = ".pte"

    def __init__(self) -> None:
        self._pools_made = 0

    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        """Return the `.pte` and what it computes, delegated or not."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        graph_module = edge.exported_program().graph_module
        found: list[Kernel] = []
        for node in graph_module.graph.nodes:
            if node.op != "get_attr":
                continue
            delegate = getattr(graph_module, str(node.target))
            if hasattr(delegate, "original_module"):
                found += kernels_of(delegate.original_module.graph_module, lowered=True)
        outside = kernels_of(graph_module)
        found += [replace(kernel, int8=False, reason="not delegated to XNNPACK, so a portable float kernel runs it")
                  for kernel in outside]
        return Lowered(content=bytes(edge.to_executorch().buffer), kernels=tuple(found))

    def load(self, path: Path, *, threads: int) -> Call:
        """Return a function that calls a `.pte`.

        If the pool has been replaced since, for another number of threads, the next call loads the program again: it
        would wait for threads that no longer exist.
        """
        execute, pool = self._load_once(path, threads=threads)

        def call(inputs: Sequence[Tensor]) -> list[Tensor]:
            nonlocal execute, pool
            if pool != self._pools_made:
                execute, pool = self._load_once(path, threads=threads)
            return list(execute(inputs))

        return call

    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        """Return the kernels that lowering found, because the file holds them as opaque blobs."""
        return named

    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return the file as one entry, because delegates keep their weights in blobs."""
        size = path.stat().st_size
        return (StoredTensor(name="program and delegate blobs", dtype="bytes", shape=(size,), size_bytes=size),)

    def _load_once(self, path: Path, *, threads: int) -> tuple[Callable[[Sequence[Tensor]], Sequence[Tensor]], int]:
        """Return a function that calls a `.pte` as long as the pool has the number that is returned with it."""
        with silenced():
            from executorch.runtime import Runtime

            pool = self._pool_of(threads)
            method = Runtime.get().load_program(path).load_method("forward")
        if method is None:
            raise RuntimeError(f"{path.name} has no method named forward")
        return method.execute, pool

    def _pool_of(self, threads: int) -> int:
        """Make a pool of so many threads unless the process has one, and return the pool's number."""
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:  # noqa: SLF001 - there is no public way
            portable_lib._unsafe_reset_threadpool(threads)  # noqa: SLF001 - see above
            self._pools_made += 1
        return self._pools_made
