"""LiteRT (TFLite): a `.tflite` file ships, and its interpreter runs it with XNNPACK."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pytest_qat.core.quiet import silenced
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Kernel, StoredTensor
from pytest_qat.runtimes.exported import Call, ExportedRuntime, Lowered
from pytest_qat.runtimes.graph_kernels import kernels_of
from pytest_qat.runtimes.naming import in_order
from pytest_qat.runtimes.stored import digest_of

__all__ = ["LiteRTRuntime"]

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")


class LiteRTRuntime(ExportedRuntime):
    """XNNPACK's kernels in LiteRT's interpreter."""

    name: ClassVar[RuntimeName] = "litert"
    suffix: ClassVar[str] = ".tflite"
    seconds_per_step: ClassVar[Mapping[str, float]] = MappingProxyType({"LSTM": 0.3, "GRU": 0.3, "RNN": 0.3})
    max_bytes: ClassVar[int | None] = 2**31  # flatbuffers have 32-bit offsets

    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        """Return the `.tflite` and the products of the graph it is made from, for their names.

        Without a quant_config, the converter computes quantize and dequantize ops in float.
        """
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig

        named = kernels_of(exported.graph_module)
        quantized = any("quantize" in str(node.target) for node in exported.graph.nodes)
        config = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(
            get_symmetric_quantization_config(is_per_channel=True))) if quantized else None
        args, kwargs = exported.example_inputs
        options: dict[str, Any] = {"sample_kwargs": kwargs} if kwargs else {}
        model = litert_torch.convert(exported.module(), tuple(args), quant_config=config, **options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            model.export(str(path))
            return Lowered(content=path.read_bytes(), kernels=named)

    def load(self, path: Path, *, threads: int) -> Call:
        """Return a function that calls a `.tflite`.

        It quantizes int8 inputs and dequantizes int8 outputs, as an app does.
        """
        interpreter = _interpreter(path, threads=threads)
        inputs = [(entry["index"], _quantizer(entry))
                  for entry in sorted(interpreter.get_input_details(), key=_place)]
        outputs = [(entry["index"], _dequantizer(entry))
                   for entry in sorted(interpreter.get_output_details(), key=_place)]

        def call(values: Sequence[Tensor]) -> list[Tensor]:
            for (index, quantize), value in zip(inputs, values, strict=True):
                interpreter.set_tensor(index, quantize(value.detach().numpy()))
            interpreter.invoke()
            return [torch.from_numpy(dequantize(interpreter.get_tensor(index))) for index, dequantize in outputs]

        return call

    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        """Return what the file computes, judged by its ops and tensor types, named after the graph it was made from."""
        interpreter = _interpreter(path, threads=1, delegates=False)
        tensors = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
        found = []
        for op in interpreter._get_ops_details():  # noqa: SLF001 - the only way to see the ops
            if op["op_name"] not in _PRODUCTS:
                continue
            inputs = [tensors[index] for index in op["inputs"] if index >= 0 and index in tensors]
            # A transposed convolution has its output's shape first.
            data, weight = (inputs[2], inputs[1]) if op["op_name"] == "TRANSPOSE_CONV" else inputs[:2]
            out = tensors[op["outputs"][0]]
            whole = np.issubdtype(data["dtype"], np.integer) and np.issubdtype(weight["dtype"], np.integer)
            hybrid = not whole and np.issubdtype(weight["dtype"], np.integer)
            reason = "" if whole else "int8 weights, but float activations" if hybrid else "its tensors are float"
            found.append(Kernel(int8=whole, op=op["op_name"], reason=reason,
                                macs=_macs(op["op_name"], data["shape"], weight["shape"], out["shape"])))
        return in_order(found, named)

    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return the tensors whose values the file holds, and the scales and zero points beside them.

        Scratch buffers and activations have names, too, but no bytes.
        """
        from ai_edge_litert import schema_py_generated as schema

        names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
        found: list[StoredTensor] = []
        held: set[int] = set()
        for tensor in (each for graph in model.subgraphs for each in graph.tensors):
            name = tensor.name.decode()
            name = name.rpartition(";")[2] or name
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data) and tensor.buffer not in held:
                held.add(tensor.buffer)
                found.append(StoredTensor(
                    name=name, dtype=names[tensor.type].lower(), size_bytes=len(data), digest=digest_of(bytes(data)),
                    shape=tuple(int(size) for size in (() if tensor.shape is None else tensor.shape))))
            for label, dtype, width, values in _qparams_of(tensor):
                found.append(StoredTensor(name=f"{name} ({label})", dtype=dtype, size_bytes=width * len(values),
                                          shape=(len(values),), qparams=True))
        return tuple(found)


def _qparams_of(tensor: Any) -> Iterator[tuple[str, str, int, Sequence[float]]]:
    """Yield name, dtype, bytes a value and values of a tensor's quantization."""
    form = tensor.quantization
    if form is not None:
        for label, dtype, width, values in (("scales", "float32", 4, form.scale),
                                            ("zero points", "int64", 8, form.zeroPoint)):
            if values is not None and len(values):
                yield label, dtype, width, values


def _interpreter(path: Path, *, threads: int, delegates: bool = True) -> Any:
    with silenced():
        from ai_edge_litert import interpreter as litert

        options: dict[str, Any] = {} if delegates else {
            "experimental_op_resolver_type": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
        made = litert.Interpreter(str(path), num_threads=threads, **options)
        made.allocate_tensors()
    return made


def _macs(op: str, data: Any, weight: Any, out: Any) -> int:
    if op == "TRANSPOSE_CONV":
        return int(math.prod(data) * math.prod(weight[:-1]))
    if op == "DEPTHWISE_CONV_2D":
        return int(math.prod(out) * math.prod(weight[1:3]))
    if op in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        return int(math.prod(out) * data[-1])
    return int(math.prod(out) * math.prod(weight[1:]))


def _place(entry: Any) -> tuple[int, ...]:
    """Order inputs and outputs by the number in their name (`serving_default_args_10`)."""
    digits = [int(part) for part in "".join(c if c.isdigit() else " " for c in entry["name"]).split()]
    return tuple(digits)


def _quantizer(entry: Any) -> Callable[[Any], Any]:
    """Return a function that turns a user's array into an input; it is made once, because calls are timed."""
    (scale, zero_point), dtype = entry["quantization"], entry["dtype"]
    if not np.issubdtype(dtype, np.integer) or scale == 0:
        return lambda value: value.astype(dtype, copy=False)
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    levels, given = np.empty(entry["shape"], np.float32), np.empty(entry["shape"], dtype)

    def quantize(value: Any) -> Any:  # in place: allocating takes 1.5 times as long
        np.divide(value, scale, out=levels)
        np.rint(levels, out=levels)
        np.add(levels, zero_point, out=levels)
        np.clip(levels, lowest, highest, out=levels)
        np.copyto(given, levels, casting="unsafe")
        return given

    return quantize


def _dequantizer(entry: Any) -> Callable[[Any], Any]:
    scale, zero_point = entry["quantization"]
    if not np.issubdtype(entry["dtype"], np.integer) or scale == 0:
        return lambda value: value
    return lambda value: (value.astype(np.float32) - zero_point) * np.float32(scale)
