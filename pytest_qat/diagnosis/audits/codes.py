"""Whether quantizers have enough codes to hold what they round."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_qat.diagnosis.given import Given
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import observed, observed_module, user_names
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["few_codes"]

_FEW_CODES = 8


def few_codes(given: Given) -> Iterator[Finding]:
    """Quantizers that leave their values less than three bits."""
    if given.rounding is None:
        return
    own = user_names(given.rounding)
    for name, quantizer in fake_quantizers(given.rounding):
        codes = int(getattr(quantizer, "quant_max", 255)) - int(getattr(quantizer, "quant_min", 0)) + 1
        if codes < _FEW_CODES:
            yield Finding(
                code="rounding-too-coarse", severity="warning", module=observed_module(own[name]),
                evidence={"codes": codes},
                message=f"what {observed(own[name])} rounds has {codes} codes, where int8 has 256.",
                remedy="give it quant_min and quant_max of eight bits.")
            return
