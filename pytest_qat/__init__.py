"""pytest-qat: is this model, once quantized, still right, really faster and really smaller — and if not, why?

The public API, loaded on first use: importing this package imports neither torch nor hypothesis.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_qat.case import QATCase as QATCase
    from pytest_qat.diagnosis.diagnose import Diagnosis as Diagnosis
    from pytest_qat.diagnosis.diagnose import diagnose as diagnose
    from pytest_qat.errors import CheckFailed as CheckFailed
    from pytest_qat.errors import QATError as QATError
    from pytest_qat.findings import Finding as Finding
    from pytest_qat.measure.latency import Speedup as Speedup
    from pytest_qat.measure.latency import TimingSettings as TimingSettings
    from pytest_qat.measure.latency import compare_latency as compare_latency
    from pytest_qat.properties.ops import QuantOps as QuantOps
    from pytest_qat.tolerances import Tolerances as Tolerances
    from pytest_qat.workflows.dequantized import dequantize_model as dequantize_model
    from pytest_qat.workflows.known_errors import explain as explain

_HOMES = {
    "CheckFailed": "pytest_qat.errors",
    "Diagnosis": "pytest_qat.diagnosis.diagnose",
    "Finding": "pytest_qat.findings",
    "QATCase": "pytest_qat.case",
    "QATError": "pytest_qat.errors",
    "QuantOps": "pytest_qat.properties.ops",
    "Speedup": "pytest_qat.measure.latency",
    "TimingSettings": "pytest_qat.measure.latency",
    "Tolerances": "pytest_qat.tolerances",
    "compare_latency": "pytest_qat.measure.latency",
    "dequantize_model": "pytest_qat.workflows.dequantized",
    "diagnose": "pytest_qat.diagnosis.diagnose",
    "explain": "pytest_qat.workflows.known_errors",
}

__all__ = [
    "CheckFailed",
    "Diagnosis",
    "Finding",
    "QATCase",
    "QATError",
    "QuantOps",
    "Speedup",
    "TimingSettings",
    "Tolerances",
    "compare_latency",
    "dequantize_model",
    "diagnose",
    "explain",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
