"""How far two models that should agree do: signal-to-quantization-noise ratio (SQNR) of their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import DataError

__all__ = ["Parity", "compare_parity", "sqnr_db"]


HEALTHY_DB = 25.0
"""Prepared against converted, end to end: rounding ties travel, and 25 to 35 dB is what healthy models show."""
MARGIN_DB = 6.0
"""How much louder than quantization's own noise the conversion's may be: a factor of two."""
_FEWEST = 64
"""Values from which on an output is looked at by itself: a ratio of few values is chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Prepared against converted, end to end, at the output where they differ most.

    Attributes:
        sqnr_db: SQNR of the converted model's outputs, the prepared model's being the signal.
        quantization_sqnr_db: SQNR of the prepared model's outputs, those with fake-quantize off being the signal:
            how much noise quantization itself adds, which traveling rounding ties may equal.
        finite: Whether every output of the converted model is finite.
        prepared_finite: The same of the prepared model.
        output: Place of that output, such as `['scores']`; "" where all outputs together are meant.
    """

    sqnr_db: float
    quantization_sqnr_db: float
    finite: bool
    prepared_finite: bool = True
    output: str = ""

    @property
    def limit_db(self) -> float:
        """The SQNR that conversion must keep: 25 dB, or half of quantization's own noise if that is louder."""
        return min(HEALTHY_DB, self.quantization_sqnr_db - MARGIN_DB)

    @property
    def holds(self) -> bool:
        """Whether the converted model computes what the prepared one simulates."""
        return self.finite and self.prepared_finite and self.sqnr_db >= self.limit_db


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
        DataError: the model returns no floating-point tensor, or its forms not as many.
    """
    plain, fake, real = (_outputs(run, batches) for run in (unquantized, prepared, converted))
    if not len(plain) == len(fake) == len(real):
        raise DataError(f"the model's forms return {len(plain)}, {len(fake)} and {len(real)} floating-point tensors.",
                        hint="Look for an output that depends on the mode or the dtype.")
    whole = tuple(torch.cat(list(outputs.values())) for outputs in (plain, fake, real))
    parts = {"": whole}
    if len(real) > 1:
        forms = zip(plain.values(), fake.values(), real.values(), strict=True)
        parts |= {place: form for place, form in zip(fake, forms, strict=True) if form[0].numel() >= _FEWEST}
    prepared_finite, finite = (bool(torch.isfinite(values).all()) for values in whole[1:])
    found = [Parity(sqnr_db=sqnr_db(signal, noisy), quantization_sqnr_db=sqnr_db(ideal, signal), output=place,
                    finite=finite, prepared_finite=prepared_finite)
             for place, (ideal, signal, noisy) in parts.items()]
    return min(found, key=lambda parity: (
        parity.sqnr_db if math.isinf(parity.sqnr_db) else parity.sqnr_db - parity.limit_db))


def _outputs(run: Callable[[Any], Any], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return the values of each output over all batches."""
    found: dict[str, list[Tensor]] = {}
    for inputs in batches:
        for place, tensor in named_float_tensors(run(inputs)).items():
            found.setdefault(place, []).append(tensor.flatten())
    if not found:
        raise DataError("the model returned no floating-point tensor, so its forms cannot be compared.",
                        hint="Return the logits as a tensor, or in a tuple or dict.")
    return {place: torch.cat(tensors) for place, tensors in found.items()}
