"""ONNX Runtime: a QDQ `.onnx` file ships, and the session fuses what it can into integer kernels."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Kernel, OpTime, StoredTensor
from pytest_qat.runtimes.exported import Call, ExportedRuntime, Lowered
from pytest_qat.runtimes.naming import in_order, named_after, without_wrapper
from pytest_qat.runtimes.onnxruntime.products import drop_notes, int8_op, original_name, product_nodes, products_of
from pytest_qat.runtimes.onnxruntime.unsigned import make_unsigned
from pytest_qat.runtimes.op_times import longest_first, repeat
from pytest_qat.runtimes.stored import digest_of

__all__ = ["OnnxRuntime"]


class OnnxRuntime(ExportedRuntime):
    """ONNX Runtime's kernels for the CPU."""

    name: ClassVar[RuntimeName] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"
    max_bytes: ClassVar[int | None] = 2**31  # a protobuf message cannot be larger

    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        """Return the `.onnx`, without notes on the user's code, and what it multiplies."""
        program = torch.onnx.export(exported, dynamo=True, verbose=False)
        assert program is not None, "unreachable because dynamo export returns a program"
        model = program.model_proto
        make_unsigned(model)
        products = products_of(model.graph)
        drop_notes(model.graph)
        return Lowered(content=model.SerializeToString(), kernels=products)

    def load(self, path: Path, *, threads: int) -> Call:
        """Return a function that calls an `.onnx`."""
        return _caller(_session(path, threads=threads))

    def op_times(self, path: Path, call: Call, values: Sequence[Tensor], *, threads: int) -> tuple[OpTime, ...]:
        """Time each node of the optimized graph by ONNX Runtime's own profiler, in a session of its own."""
        with tempfile.TemporaryDirectory() as folder:
            session = _session(path, threads=threads, profile=Path(folder) / "profile")
            again = _caller(session)
            again(values)
            repeat(partial(again, values))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        micros: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for event in events:
            node = event.get("args", {})
            if event.get("cat") == "Node" and "op_name" in node:
                shapes = [next(iter(each.values())) for each in node.get("input_type_shape", [])][:2]
                micros[event["name"], node["op_name"], " x ".join(str(each) for each in shapes if each)].append(
                    event["dur"])
        return longest_first([OpTime(op=op, shapes=shapes, seconds=statistics.median(found) / 1e6)
                              for (_, op, shapes), found in micros.items()])

    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        """Return what the session runs, read from the graph that it has optimized for this machine."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            _session(path, threads=1, optimized=optimized)
            graph = onnx.load(str(optimized)).graph
        made = {name: node for node in graph.node for name in node.output}
        asked = [node.name for node in product_nodes(onnx.load(str(path)).graph)]
        left = dict(zip(asked, named, strict=True))
        found: list[Kernel] = []
        unnamed: list[int] = []
        for node in product_nodes(graph):
            int8 = bool(int8_op(node.op_type))
            around = any(name in made and made[name].op_type == "DequantizeLinear" for name in node.input)
            kernel = Kernel(int8=int8, op=node.op_type, reason="" if int8 else (
                "ONNX Runtime did not fuse its QuantizeLinear and DequantizeLinear into an integer kernel" if around
                else "its tensors are float"))
            other = left.pop(original_name(node.name), None)
            if other is None:
                unnamed.append(len(found))
            found.append(kernel if other is None else named_after(kernel, other))
        for index, kernel in zip(unnamed, in_order([found[index] for index in unnamed], tuple(left.values())),
                                 strict=True):
            found[index] = kernel
        return tuple(found)

    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return the initializers of the file."""
        import onnx

        graph = onnx.load(str(path)).graph
        qparams = {name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
                   for name in node.input[1:]}
        found = []
        for tensor in graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            found.append(StoredTensor(
                name=without_wrapper(tensor.name), dtype=str(array.dtype), shape=tuple(array.shape),
                size_bytes=int(array.nbytes), qparams=tensor.name in qparams, digest=digest_of(array.tobytes())))
        return tuple(found)


def _caller(session: Any) -> Call:
    names = [entry.name for entry in session.get_inputs()]  # once: calls are timed

    def call(values: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: value.detach().numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return call


def _session(path: Path, *, threads: int, optimized: Path | None = None, profile: Path | None = None) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
