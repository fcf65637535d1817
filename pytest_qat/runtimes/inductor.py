"""Inductor: `torch.compile` with freezing, which lowers what X86InductorQuantizer and torchao made to int8 kernels.

The artifact is the exported program with its weights; the machine code is made anew on each machine, and the time
that takes is never part of the latency.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.forked import crash_of
from pytest_qat.core.torch_state import threads as intra_op_threads
from pytest_qat.errors import CheckFailed, MeasurementError, MissingPackage
from pytest_qat.exported.program import module_of
from pytest_qat.findings import Finding
from pytest_qat.runtimes.base import DeployedPair, DeploySettings, Kernel, StoredTensor
from pytest_qat.runtimes.exported import Call, deploy_lowered, in_order, load_exported, without_wrapper
from pytest_qat.runtimes.graph_kernels import kernels_of, op_name, products, quantized
from pytest_qat.runtimes.torch import stored_tensors

__all__ = ["deploy", "load", "load_exported", "load_program", "lower", "seen_in", "stored_in"]

COMPILES = True
"""The first call of an artifact takes seconds to minutes."""
_INT8 = r"(?:onednn|quantized)\.q(?:conv|linear)\w*|(?:aten\.|extern_kernels\.)?_int_mm\w*|cpp_fused\w*_int_mm\w*"
_FLOAT = (r"mkldnn\._(?:convolution|linear)\w*|mkl\._mkl_linear|extern_kernels\.(?:convolution|addmm|mm|bmm|baddbmm)"
          r"|aten\.convolution\w*|aten\._scaled_dot_product\w*")
_CODE: dict[Path, str] = {}
"""What was generated for an artifact in this process."""


def deploy(fp32: nn.Module, int8: nn.Module, example_inputs: tuple[Any, ...], folder: Path,
           settings: DeploySettings) -> DeployedPair:
    """Compile both sides for the example's batch, in child processes first (see `lowered.deploy_lowered`).

    Raises:
        MissingPackage: there is no C++ compiler.
        CheckFailed: a kernel that the program needs kills its process on this machine.
    """
    _require_compiler()
    return deploy_lowered(sys.modules[__name__], "inductor", fp32, int8, example_inputs, folder, settings,
                          inspect_program=_refuse_deadly_linear)


def _require_compiler() -> None:
    from torch._inductor import config

    wanted = config.cpp.cxx
    names = [name for name in (wanted if isinstance(wanted, (tuple, list)) else (wanted,)) if name]
    if not any(shutil.which(name) for name in (*names, "g++", "clang++")):
        raise MissingPackage("Inductor needs a C++ compiler, and there is none on the PATH.",
                                     hint="Install g++, or choose a recipe with another runtime.")


class _Int8Linear(nn.Module):
    """The kernel that Inductor calls for a linear layer between quantized values."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = torch.ones(out_features, in_features, dtype=torch.int8)

    def forward(self, codes: Tensor) -> Any:
        ones, zeros = torch.ones(len(self.weight)), torch.zeros(len(self.weight), dtype=torch.int64)
        packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], "")


def _refuse_deadly_linear(program: torch.export.ExportedProgram) -> None:
    """Try the shapes of the program's int8 linear layers, each in a moment: on some machines, oneDNN dies on some.

    Compiling takes a minute before that would show.

    Raises:
        CheckFailed: it does; the finding names the module.
    """
    for node in products(program.graph):
        if op_name(node) != "linear" or not quantized(node):
            continue
        values, weight = (argument.meta["val"].shape for argument in node.all_input_nodes[:2])
        rows = torch.ones(math.prod(values[:-1]), values[-1], dtype=torch.uint8)
        crash = crash_of(_Int8Linear(*weight), [(rows,)])
        if crash is not None:
            raise CheckFailed(
                [f"oneDNN's int8 linear kernel dies with {crash.signal_name} ({crash.meaning}) on this machine."],
                findings=[Finding(
                    code="native-crash", severity="error", module=module_of(node), evidence={
                        "signal": crash.signal_name, "input": list(rows.shape), "weight": list(weight)},
                    message=f"Inductor calls it for {list(rows.shape)} values and {list(weight)} weights.",
                    remedy="name the module in skip=(...), or choose another recipe or batch size.")])


def lower(exported: torch.export.ExportedProgram) -> tuple[bytes, tuple[Kernel, ...]]:
    """Return the exported program without its example inputs and stack traces, and its products for their names."""
    named = kernels_of(exported.graph_module)
    exported.example_inputs = None  # type: ignore[assignment, unused-ignore]
    for node in exported.graph.nodes:  # where the user wrote what is for debugging, and would weigh a megabyte
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    content = io.BytesIO()
    torch.export.save(exported, content)
    return content.getvalue(), named


def load(path: Path, *, threads: int) -> Call:
    """Return one call of a program; the first call compiles it."""
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    with contextlib.suppress(ImportError):  # teaches Inductor to lower what its quantizer made
        importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    program = load_exported(path)
    takes = program.call_spec.in_spec
    assert takes is not None, "unreachable because torch.export notes how a program is called"
    compiled: Any = torch.compile(program.module(), dynamic=False)

    def run(values: Sequence[Tensor]) -> Any:
        # Threads and inference mode are guarded: a change of either would compile anew, and without freezing.
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
            _CODE.setdefault(path, "\n".join(sources))
            cold = False
        return pytree.tree_leaves(run(values))

    return call


def seen_in(path: Path, kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return the products that the generated code calls, in order, named after the graph it was made from."""
    code = _CODE[path]
    body = re.sub(r"#.*", "", code.partition("def call(")[2] or code)
    names = re.findall(rf"(?:torch\.ops\.)?({_INT8}|{_FLOAT})(?:\.\w+)?\(", body)  # calls, not asserts about them
    found = [Kernel(int8=bool(re.fullmatch(_INT8, name)), op=name, reason=(
        "" if re.fullmatch(_INT8, name) else "Inductor compiled it to a float kernel")) for name in names]
    return in_order(found, kernels)


def stored_in(path: Path) -> tuple[StoredTensor, ...]:
    """Return the tensors of the program."""
    program = load_exported(path)
    tensors = {**program.state_dict, **program.constants}
    return stored_tensors({without_wrapper(name): tensor for name, tensor in tensors.items()})


def load_program(path: Path) -> Callable[[], object]:
    """Raise: the compiler's own memory would hide the model's.

    Raises:
        MeasurementError: always.
    """
    raise MeasurementError(f"{path.name} is compiled by the process that runs it, which hides the model's own memory.",
                           hint="Nothing else depends on it.")
