"""Set torch's global state for a stage, and restore it afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.errors import UnsupportedEnvironment

__all__ = ["child_environment", "preserved_torch_state", "quantized_engine", "threads", "without_fast_path"]

_NOT_THE_USERS = (
    r".*torch\.ao\.quantization is deprecated.*",
    r".*quantize_per_(tensor|channel).*deprecated.*",
    r".*TypedStorage is deprecated.*",
    r".*quantized tensor.*deprecated.*",
    r".*reduce_range will be deprecated.*",
    r".*must run observer before calling calculate_qparams.*",
    r".*Please use quant_min and quant_max to specify the range for observers.*",
    r".*This API is experimental and subject to change.*",
    r"All inputs of this cat operator must share the same quantization parameters.*",  # parity measures what that does
)


@contextlib.contextmanager
def preserved_torch_state(*, seed: int | None = None) -> Iterator[None]:
    """Restore engine, threads, generators, grad mode, default dtype and determinism on leaving.

    Args:
        seed: Seeds torch's, Python's and (if it is loaded) numpy's generators on entering.

    Inside, torch's own warnings about quantization are ignored, because the user cannot act on them.
    """
    engine, thread_count = torch.backends.quantized.engine, torch.get_num_threads()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with _preserved_generators(seed), quiet_loggers(), warnings.catch_warnings():
            _raise_no_warnings()
            for message in _NOT_THE_USERS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        if torch.backends.quantized.engine != engine:
            torch.backends.quantized.engine = engine
        if torch.get_num_threads() != thread_count:
            torch.set_num_threads(thread_count)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if (torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled()) != (deterministic, warn_only):
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)  # imports the compiler


def _raise_no_warnings() -> None:
    """Show the warnings that the user's filters would raise: one of torch's must not fail a stage."""
    filters: Any = warnings.filters  # a list, of which the caller's catch_warnings keeps the original
    filters[:] = [("default", *rest) if action == "error" else (action, *rest) for action, *rest in filters]


@contextlib.contextmanager
def _preserved_generators(seed: int | None) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    if seed is not None:
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if cuda_states is not None:  # a generator that is created later has a fixed default seed
            torch.cuda.manual_seed_all(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        random.setstate(python_state)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def quantized_engine(name: str | None) -> Iterator[None]:
    """Run with torch's quantized engine set to `name` (None: unchanged), and restore the previous one.

    Raises:
        UnsupportedEnvironment: torch does not support this engine on this machine.
    """
    if name is None:
        yield
        return
    supported = torch.backends.quantized.supported_engines
    if name not in supported:
        others = ", ".join(engine for engine in supported if engine != "none") or "none"
        raise UnsupportedEnvironment(
            f"the recipe needs torch's quantized engine {name}, but this machine supports {others}.")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run with `count` intra-op threads (None: unchanged), and restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def child_environment(*, threads: int) -> dict[str, str]:
    """Return the environment of a child process: the import path of this one, OpenMP threads, and no warnings."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Make nn.TransformerEncoderLayer and nn.MultiheadAttention call their layers in eval mode as well.

    Their fast path reads the weights of these layers directly and bypasses their fake-quantizers.
    """
    was_on = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_on)
