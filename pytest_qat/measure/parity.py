"""How well the prepared and the converted model agree: signal-to-quantization-noise ratio (SQNR) of their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_qat.core.batches import named_float_tensors
from pytest_qat.errors import NotComparable

__all__ = ["BEFORE_SELECTION", "Parity", "compare_parity", "sqnr_db"]


HEALTHY_DB = 25.0
"""End-to-end SQNR that a converted model should reach; rounding differences add up, so healthy models have 25 to 35."""
MARGIN_DB = 6.0
"""Conversion may add up to twice as much noise as quantization itself, which is 6 dB."""
BEFORE_SELECTION = "Return what comes before the selection, such as all boxes."
_FEWEST = 64
"""Outputs with fewer values than this are not checked on their own, because their SQNR is mostly chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Agreement of the prepared and the converted model, end to end, at the output where they differ most.

    Attributes:
        sqnr_db: SQNR of the converted model's outputs; the signal is the prepared model's outputs.
        quantization_sqnr_db: SQNR of the prepared model's outputs; the signal is its outputs with fake-quantize off.
            It shows how much noise quantization itself adds, and accumulated rounding differences can add as much.
        finite: Whether every output of the converted model is finite.
        prepared_finite: Whether every output of the prepared model is finite.
        output: Place of that output, such as `['scores']`; "" if the figures cover all outputs together.
    """

    sqnr_db: float
    quantization_sqnr_db: float
    finite: bool
    prepared_finite: bool = True
    output: str = ""

    @property
    def limit_db(self) -> float:
        """The SQNR that conversion must reach: 25 dB, or 6 dB less than quantization itself leaves if that is lower."""
        return min(HEALTHY_DB, self.quantization_sqnr_db - MARGIN_DB)

    @property
    def holds(self) -> bool:
        """Whether the converted model computes what the prepared one simulates."""
        return self.finite and self.prepared_finite and self.sqnr_db >= self.limit_db


def sqnr_db(signal: Tensor, noisy: Tensor) -> float:
    """Return `20 log10(|x| / |x - y|)` in dB; inf if the tensors are equal.

    The result is -inf if the signal is all zeros but the other tensor is not, and if either is not finite. Numbers too
    small for float32's normal range count as zeros, which runtimes may make of them.
    """
    signal, noisy = _flushed(signal), _flushed(noisy)
    noise = float((signal - noisy).norm())
    level = float(signal.norm())
    if noise == 0:
        return math.inf
    if level == 0 or not math.isfinite(noise) or not math.isfinite(level):
        return -math.inf
    return 20 * math.log10(level / noise)


def _flushed(tensor: Tensor) -> Tensor:
    wide = tensor.detach().double()
    return torch.where(wide.abs() < torch.finfo(torch.float32).tiny, 0.0, wide)


def compare_parity(unquantized: Callable[[Any], Any], prepared: Callable[[Any], Any],
                   converted: Callable[[Any], Any], batches: Sequence[Any]) -> Parity:
    """Run three forms of one model on the same batches and compare their outputs.

    Args:
        unquantized: The prepared model with fake-quantize off.
        prepared: The prepared model in eval mode, observers off.
        converted: The converted model.
        batches: Inputs.

    Raises:
        NotComparable: the model returns no floating-point tensor or only empty ones, or its forms return others or of
            other sizes.
    """
    plain, fake, real = (_outputs(run, batches) for run in (unquantized, prepared, converted))
    _hold_to_same_form(plain, fake, real)
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


def _hold_to_same_form(*forms: Mapping[str, Tensor]) -> None:
    if not any(forms):
        raise NotComparable("the model returned no floating-point tensor, so its forms cannot be compared.",
                            hint="Return the logits as a tensor, or in a tuple or dict.")
    if len({len(outputs) for outputs in forms}) > 1:
        raise NotComparable(f"the float, prepared and converted model return {_listed(map(len, forms))} floating-point "
                            "tensors, so they cannot be compared.", hint=BEFORE_SELECTION)
    for numbers in zip(*(outputs.items() for outputs in forms), strict=True):
        sizes = [values.numel() for _, values in numbers]
        if len(set(sizes)) > 1:
            place = numbers[0][0]
            raise NotComparable(
                f"the float, prepared and converted model return {_listed(sizes)} values in "
                f"{f'output {place}' if place else 'the output'}, so they cannot be compared.", hint=BEFORE_SELECTION)
    if not any(values.numel() for values in forms[0].values()):
        raise NotComparable("the model's outputs are empty on the calibration data, so there is nothing to compare.",
                            hint=BEFORE_SELECTION)


def _listed(counts: Iterable[int]) -> str:
    *others, last = map(str, counts)
    return f"{', '.join(others)} and {last}"


def _outputs(run: Callable[[Any], Any], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return the values of each output over all batches."""
    found: dict[str, list[Tensor]] = {}
    for inputs in batches:
        for place, tensor in named_float_tensors(run(inputs)).items():
            found.setdefault(place, []).append(tensor.flatten())
    return {place: torch.cat(tensors) for place, tensors in found.items()}
