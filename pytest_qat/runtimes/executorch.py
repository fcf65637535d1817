"""ExecuTorch: what XNNPACK supports is delegated to it, and a `.pte` file ships."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.quiet import quiet_loggers, silenced
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Kernel, OpTime, StoredTensor
from pytest_qat.runtimes.executorch_trial import try_program
from pytest_qat.runtimes.exported import Call, ExportedRuntime, Lowered
from pytest_qat.runtimes.graph_kernels import kernels_of
from pytest_qat.runtimes.naming import without_wrapper
from pytest_qat.runtimes.op_times import longest_first, repeat
from pytest_qat.runtimes.stored import digest_of

__all__ = ["ExecuTorchRuntime"]

_PORTABLE = "native_call_"
"""How the event trace calls the kernels outside of delegates."""


class ExecuTorchRuntime(ExportedRuntime):
    """XNNPACK's kernels in ExecuTorch.

    A process has one pool of XNNPACK threads, and each loaded program keeps using the pool that existed when it was
    loaded. The object counts the pools that it has made, so a process must have only one object of this class (see
    `load_runtime`).
    """

    name: ClassVar[RuntimeName] = "executorch"
    suffix: ClassVar[str] = ".pte"
    seconds_per_step: ClassVar[Mapping[str, float]] = MappingProxyType({"LSTM": 1.5, "GRU": 1.5, "RNN": 1.5})

    def __init__(self) -> None:
        self._pools_made = 0
        self._seen: dict[str, tuple[str, str, tuple[int, ...]]] = {}

    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        """Return the `.pte` and what it computes, delegated or not.

        Raises:
            CheckFailed: an operator has no kernel, or its kernel does not take its values.
        """
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
        from executorch.runtime import Runtime

        # Operators outside of the core set may well have a kernel, such as FFT; the trial below tells which have not.
        unchecked = EdgeCompileConfig(_check_ir_validity=False)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()], compile_config=unchecked)
        graph_module = edge.exported_program().graph_module
        found: list[Kernel] = []
        for node in graph_module.graph.nodes:
            if node.op != "get_attr":
                continue
            delegate = getattr(graph_module, str(node.target))
            if hasattr(delegate, "original_module"):
                found += kernels_of(delegate.original_module.graph_module, lowered=True)
                self._note_tensors(delegate.original_module)
        self._note_tensors(edge.exported_program())
        outside = kernels_of(graph_module)
        found += [replace(kernel, int8=False, reason="not delegated to XNNPACK, so a portable float kernel runs it")
                  for kernel in outside]
        manager = edge.to_executorch()
        try_program(manager, [leaf for leaf in pytree.tree_leaves(exported.example_inputs) if isinstance(leaf, Tensor)],
                    runtime=Runtime.get())
        return Lowered(content=bytes(manager.buffer), kernels=tuple(found))

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

    def op_times(self, path: Path, call: Call, values: Sequence[Tensor], *, threads: int) -> tuple[OpTime, ...]:
        """Time each op, portable or within XNNPACK, by ExecuTorch's event trace; nothing if this build cannot trace."""
        self._pool_of(threads)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), silenced(), quiet_loggers():
            warnings.simplefilter("ignore")
            from executorch.devtools import Inspector
            from executorch.extension.pybindings import portable_lib

            program = portable_lib._load_for_executorch(str(path), enable_etdump=True)  # noqa: SLF001 - no public name
            if not program.has_etdump():
                return ()
            repeat(partial(program.forward, tuple(values)))
            trace = Path(folder) / "trace.etdp"
            program.write_etdump_result_to_file(str(trace))
            blocks = Inspector(etdump_path=str(trace)).event_blocks
        return longest_first([
            OpTime(op=event.name.removeprefix(_PORTABLE), shapes="",
                   seconds=statistics.median(event.perf_data.raw) / 1e3)
            for block in blocks for event in block.events
            if event.perf_data is not None and (event.is_delegated_op or event.name.startswith(_PORTABLE))])

    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        """Return the kernels that lowering found, because the file holds them as opaque blobs."""
        return named

    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return the data that the file holds beside its program and its delegates' graphs.

        They are stored without names and dtypes, under a hash of their bytes; those that lowering saw are named here.
        """
        with silenced():
            from executorch.exir._serialize._program import deserialize_pte_binary

            file = deserialize_pte_binary(path.read_bytes())
        stored = [(key, file.named_data.buffers[entry.buffer_index]) for key, entry in (
            file.named_data.pte_data if file.named_data else {}).items()]
        stored += [(f"constant {index}", bytes(each.storage)) for index, each in enumerate(
            file.program.constant_buffer) if len(each.storage)]
        found = []
        for key, content in stored:
            known = self._seen.get(hashlib.sha256(content).hexdigest())
            name, dtype, shape = known or (f"data {key[:12]}", "bytes", (len(content),))
            found.append(StoredTensor(name=name, dtype=dtype, shape=shape, size_bytes=len(content),
                                      qparams=key.startswith("scale_"), digest=digest_of(bytes(content))))
        return tuple(found)

    def _note_tensors(self, program: torch.export.ExportedProgram) -> None:
        """Remember the tensors of a program by a hash of their bytes, in the layouts in which XNNPACK stores them."""
        for name, tensor in {**program.state_dict, **program.constants}.items():
            if not isinstance(tensor, Tensor):
                continue
            orders = [tuple(range(tensor.dim()))]
            if tensor.dim() > 2:  # filters come last, or first where each channel has its own
                orders += [(0, *range(2, tensor.dim()), 1), (1, *range(2, tensor.dim()), 0)]
            dtype = str(tensor.dtype).removeprefix("torch.")
            for order in orders:
                content = tensor.detach().permute(order).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                self._seen[hashlib.sha256(content).hexdigest()] = (without_wrapper(name), dtype, tuple(tensor.shape))

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
