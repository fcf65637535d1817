"""Inductor: `torch.compile` with freezing, which lowers what X86InductorQuantizer and torchao made to int8 kernels.

The artifact is the exported program with its weights. Each machine compiles it again, and that time is never part of
the latency.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.forked import crash_of
from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.core.torch_state import threads as intra_op_threads
from pytest_qat.errors import CheckFailed, MeasurementError, MissingPackage
from pytest_qat.exported.program import exported_bytes, load_exported, module_of
from pytest_qat.findings import Finding
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Kernel, OpTime, StoredTensor
from pytest_qat.runtimes.exported import Call, ExportedRuntime, Lowered
from pytest_qat.runtimes.graph_kernels import kernels_of, op_name, products, quantized
from pytest_qat.runtimes.naming import in_order, without_wrapper
from pytest_qat.runtimes.op_times import torch_op_times
from pytest_qat.runtimes.stored import stored_tensors

__all__ = ["InductorRuntime"]

_INT8 = r"(?:onednn|quantized)\.q(?:conv|linear)\w*|(?:aten\.|extern_kernels\.)?_int_mm\w*|cpp_fused\w*_int_mm\w*"
_FLOAT = (r"mkldnn\._(?:convolution|linear)\w*|mkl\._mkl_linear|extern_kernels\.(?:convolution|addmm|mm|bmm|baddbmm)"
          r"|aten\.convolution\w*|aten\._scaled_dot_product\w*")


class InductorRuntime(ExportedRuntime):
    """Kernels that Inductor generates, and those of oneDNN that it calls."""

    name: ClassVar[RuntimeName] = "inductor"
    suffix: ClassVar[str] = ".program.pt2"
    compiles: ClassVar[bool] = True
    seconds_per_step: ClassVar[Mapping[str, float]] = MappingProxyType({"LSTM": 0.15, "GRU": 2.5, "RNN": 2.5})

    def __init__(self) -> None:
        self._code: dict[Path, str] = {}
        """What was generated at the first call of each artifact that this object has loaded."""

    def require_tools(self) -> None:
        """Check that there is a C++ compiler.

        Raises:
            MissingPackage: there is none on the PATH.
        """
        from torch._inductor import config

        wanted = config.cpp.cxx
        names = [name for name in (wanted if isinstance(wanted, (tuple, list)) else (wanted,)) if name]
        if not any(shutil.which(name) for name in (*names, "g++", "clang++")):
            raise MissingPackage("Inductor needs a C++ compiler, and there is none on the PATH.",
                                 hint="Install g++.")

    def check_program(self, exported: torch.export.ExportedProgram) -> None:
        """Try the shapes of the program's int8 linear layers, because on some machines oneDNN crashes on some shapes.

        Each takes a moment; compiling takes a minute before the crash would show.

        Raises:
            CheckFailed: one crashes; the finding names the module.
        """
        for node in products(exported.graph):
            if op_name(node) != "linear" or not quantized(node):
                continue
            values, weight = (argument.meta["val"].shape for argument in node.all_input_nodes[:2])
            rows = torch.ones(math.prod(values[:-1]), values[-1], dtype=torch.uint8)
            crash = crash_of(_Int8Linear(*weight), [(rows,)])
            if crash is not None:
                raise CheckFailed(
                    [f"oneDNN's int8 linear kernel crashes here with {crash.signal_name} ({crash.meaning})."],
                    findings=[Finding(
                        code="native-crash", severity="error", module=module_of(node), evidence={
                            "signal": crash.signal_name, "input": list(rows.shape), "weight": list(weight)},
                        message=f"Inductor calls the kernel with inputs of shape {list(rows.shape)} and weights of "
                                f"shape {list(weight)}, and on this machine it crashes.")])

    def lower(self, exported: torch.export.ExportedProgram) -> Lowered:
        """Return the exported program without its example inputs and stack traces."""
        named = kernels_of(exported.graph_module)
        exported.example_inputs = None  # type: ignore[assignment, unused-ignore]
        for node in exported.graph.nodes:  # stack traces serve debugging only, and would take up a megabyte
            node.meta = {key: value for key, value in node.meta.items() if key == "val"}
        return Lowered(content=exported_bytes(exported), kernels=named)

    def load(self, path: Path, *, threads: int) -> Call:
        """Return a function that calls a program; its first call compiles it."""
        from torch._inductor import config
        from torch._inductor.utils import run_and_get_code

        with contextlib.suppress(ImportError), quiet_loggers():  # teaches Inductor what its quantizer inserted
            importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
        program = load_exported(path)
        takes = program.call_spec.in_spec
        assert takes is not None, "unreachable because torch.export records how a program is called"
        compiled: Any = torch.compile(program.module(), dynamic=False)

        def run(values: Sequence[Tensor]) -> Any:
            # Threads and inference mode are guarded: changing either would compile again, and without freezing.
            pinned = contextlib.nullcontext() if torch.get_num_threads() == threads else intra_op_threads(threads)
            with pinned, torch.inference_mode(mode=False), torch.no_grad():
                plain = [value.clone() if value.is_inference() else value for value in values]
                args, kwargs = pytree.tree_unflatten(plain, takes)
                return compiled(*args, **kwargs)

        cold = True

        def call(values: Sequence[Tensor]) -> list[Tensor]:
            nonlocal cold
            if cold:
                with warnings.catch_warnings(), config.patch(freezing=True, compile_threads=1):
                    warnings.simplefilter("ignore")
                    _, sources = run_and_get_code(lambda: run(values))
                self._code[path] = "\n".join(sources)
                cold = False
            return pytree.tree_leaves(run(values))

        return call

    def op_times(self, path: Path, call: Call, values: Sequence[Tensor], *, threads: int) -> tuple[OpTime, ...]:
        """Time the ops of torch's that the generated code calls; the code itself is what is left of a call."""
        return torch_op_times(partial(call, values))

    def kernels_in(self, path: Path, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
        """Return the products that the generated code calls, in order, named after the graph it was made from."""
        return _kernels_of_code(self._code[path], named)

    def tensors_in(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return the tensors of the program."""
        program = load_exported(path)
        tensors = {**program.state_dict, **program.constants}
        return stored_tensors({without_wrapper(name): tensor for name, tensor in tensors.items()})

    def load_program(self, path: Path) -> Callable[[], object]:
        """Refuse, because the memory of the compiler would hide the model's.

        Raises:
            MeasurementError: always.
        """
        raise MeasurementError(
            f"peak memory cannot be measured in inductor: the process that runs {path.name} also compiles it, and the "
            "compiler takes more memory than the model.")


def _kernels_of_code(code: str, named: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return the products that generated code calls, in order."""
    body = re.sub(r"#.*", "", code.partition("def call(")[2] or code)
    names = re.findall(rf"(?:torch\.ops\.)?({_INT8}|{_FLOAT})(?:\.\w+)?\(", body)  # calls, not asserts about them
    found = [Kernel(int8=bool(re.fullmatch(_INT8, name)), op=name, reason=(
        "" if re.fullmatch(_INT8, name) else "Inductor compiled it to a float kernel")) for name in names]
    return in_order(found, named)


class _Int8Linear(nn.Module):
    """The kernel that Inductor calls for a linear layer between quantized tensors."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = torch.ones(out_features, in_features, dtype=torch.int8)

    def forward(self, codes: Tensor) -> Any:
        ones, zeros = torch.ones(len(self.weight)), torch.zeros(len(self.weight), dtype=torch.int64)
        packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], "")
