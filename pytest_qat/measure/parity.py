"""How far two models that should agree do: signal-to-quantization-noise ratio (SQNR) of their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.batches import float_tensors
from pytest_qat.errors import DataError

__all__ = ["Parity", "compare_parity", "sqnr_db"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Prepared against converted, end to end.

    Attributes:
        sqnr_db: SQNR of the converted model's outputs, the prepared model's being the signal.
        quantization_sqnr_db: SQNR of the prepared model's outputs, those with fake-quantize off being the signal:
            how much noise quantization itself adds, which travelling rounding ties may equal.
        finite: Whether every output of the converted model is finite.
    """

    sqnr_db: float
    quantization_sqnr_db: float
    finite: bool


def sqnr_db(signal: Tensor, noisy: Tensor) -> float:
    """Return `20 log10(|x| / |x - y|)` in dB; inf if the tensors are equal.

    A signal of zeros with noise on it, and anything that is not finite, gives -inf.
    """
    signal, noisy = signal.detach().double(), noisy.detach().double()
    noise = float((signal - noisy).norm())
    level = float(signal.norm())
    if noise == 0:
        return math.inf
    if level == 0 or not math.isfinite(noise) or not math.isfinite(level):
        return -math.inf
    return 20 * math.log10(level / noise)


def compare_parity(unquantized: Callable[[Any], Any], prepared: Callable[[Any], Any],
                   converted: Callable[[Any], Any], batches: Sequence[Any]) -> Parity:
    """Run three forms of one model on the same batches and compare their outputs.

    Args:
        unquantized: The prepared model with fake-quantize off.
        prepared: The prepared model in eval mode, observers off.
        converted: The converted model.
        batches: Inputs.

    Raises:
        DataError: the model returns no floating-point tensor.
    """
    plain, fake, real = (_outputs(run, batches) for run in (unquantized, prepared, converted))
    return Parity(sqnr_db=sqnr_db(fake, real), quantization_sqnr_db=sqnr_db(plain, fake),
                  finite=bool(torch.isfinite(real).all()))


def _outputs(run: Callable[[Any], Any], batches: Sequence[Any]) -> Tensor:
    tensors = [tensor.flatten() for inputs in batches for tensor in float_tensors(run(inputs))]
    if not tensors:
        raise DataError("the model returned no floating-point tensor, so its forms cannot be compared.",
                        hint="Return the logits as a tensor, or in a tuple or dict.")
    return torch.cat(tensors)
