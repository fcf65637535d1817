"""The PT2E quantizers by name, each set up for QAT with int8 weights per channel."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from pytest_qat.errors import MissingPackage

__all__ = ["make_quantizer"]

_XNNPACK = ("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "torchao.testing.pt2e._xnnpack_quantizer")
"""Where XNNPACK's quantizer is kept, and the copy that torchao carries."""


def make_quantizer(name: str, *, skip: Sequence[str] = (), batchnorms: bool = True) -> Any:
    """Return a quantizer.

    Args:
        name: `xnnpack`, `xnnpack-litert` (the same; see `annotations` for what LiteRT's kernels add) or
            `x86-inductor`.
        skip: Modules to leave in float.
        batchnorms: Whether the model has a BatchNorm: looking for convolutions before one takes seconds.

    Raises:
        MissingPackage: no installed package has it.
    """
    return _xnnpack(skip, batchnorms=batchnorms) if name.startswith("xnnpack") else _x86_inductor(skip)


def _xnnpack(skip: Sequence[str], *, batchnorms: bool) -> Any:
    made: Any = None
    for place in _XNNPACK:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = importlib.import_module(place)
            break
        except ImportError:
            continue
    if made is None:
        raise MissingPackage("XNNPACKQuantizer is neither in executorch nor in torchao here.",
                                     hint="pip install 'pytest-qat[executorch]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's copy calls itself deprecated
        quantizer = made.XNNPACKQuantizer().set_global(
            made.get_symmetric_quantization_config(is_qat=True, is_per_channel=True))
    patterns = getattr(quantizer, "SUPPORTED_PATTERNS", ())  # torchao's copy has other ones
    if not batchnorms and patterns:
        quantizer.SUPPORTED_PATTERNS = [pattern for pattern in patterns if "bn" not in pattern.name]
    quantizer.module_name_config.update(dict.fromkeys(skip))  # its set_module_name refuses None, which it can handle
    return quantizer


def _x86_inductor(skip: Sequence[str]) -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as made

    quantizer = made.X86InductorQuantizer().set_global(
        made.get_default_x86_inductor_quantization_config(is_qat=True))
    for module in skip:
        quantizer.set_module_name_qconfig(module, None)
    return quantizer
