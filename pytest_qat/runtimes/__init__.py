"""Where the shipped model runs: one module per runtime, found by name, imported only when a recipe asks for it."""

from __future__ import annotations

import functools
from typing import get_args

from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Deployed, DeployedPair, DeploySettings, Kernel, Runtime

__all__ = ["DeploySettings", "Deployed", "DeployedPair", "Kernel", "Runtime", "load_runtime", "parse_runtime_name"]


def load_runtime(name: RuntimeName) -> Runtime:
    """Return the runtime of this name and import the packages that it needs on first use.

    A process has one object of each runtime, because a runtime may keep track of what exists once in a process, such
    as a thread pool.

    Raises:
        ImportError: a package that the runtime needs at import time is not installed.
    """
    return _make(name)


@functools.cache
def _make(name: RuntimeName) -> Runtime:
    match name:
        case "torch":
            from pytest_qat.runtimes.torch import TorchRuntime

            return TorchRuntime()
        case "torchscript":
            from pytest_qat.runtimes.torchscript import TorchScriptRuntime

            return TorchScriptRuntime()
        case "inductor":
            from pytest_qat.runtimes.inductor import InductorRuntime

            return InductorRuntime()
        case "executorch":
            from pytest_qat.runtimes.executorch import ExecuTorchRuntime

            return ExecuTorchRuntime()
        case "litert":
            from pytest_qat.runtimes.litert import LiteRTRuntime

            return LiteRTRuntime()
        case "onnxruntime":
            from pytest_qat.runtimes.onnxruntime import OnnxRuntime

            return OnnxRuntime()


def parse_runtime_name(text: str) -> RuntimeName:
    """Return the name of a runtime from the command line of a child process.

    Raises:
        ValueError: no runtime has this name.
    """
    names: tuple[RuntimeName, ...] = get_args(RuntimeName)
    for name in names:
        if name == text:
            return name
    raise ValueError(f"no runtime is named {text!r}; known are {', '.join(names)}")
