"""Find the first module at which int8 kernels compute something other than what fake-quantize simulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.batches import call
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.parity import Parity, sqnr_db
from pytest_qat.verdict import db_text
from pytest_qat.workflows.names import user_names

__all__ = ["Divergence", "first_divergence", "kernels_disagree"]

BROKEN_DB = 12.0
"""A module whose int8 output agrees with the simulated one to less than this is broken, not merely noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first module at which two forms of a model diverge.

    Attributes:
        module: Qualified name in the user's model.
        kind: Class of the converted module.
        sqnr_db: SQNR of its output, where the prepared module's output is the signal.
    """

    module: str
    kind: str
    sqnr_db: float


def first_divergence(prepared: nn.Module, converted: nn.Module, inputs: Any) -> Divergence | None:
    """Return the first module, in the order of the calls, whose int8 output is below 12 dB; None if none is.

    Args:
        prepared: In eval mode, observers off.
        converted: Its int8 form.
        inputs: One batch.
    """
    with torch.inference_mode():
        expected = _outputs(prepared, inputs)
        seen = _outputs(converted, inputs)
    for name, (kind, output) in seen.items():
        if name not in expected or expected[name][1].shape != output.shape:
            continue
        agreement = sqnr_db(expected[name][1], output)
        if agreement < BROKEN_DB:
            return Divergence(module=name, kind=kind, sqnr_db=agreement)
    return None


def kernels_disagree(parity: Parity, culprit: Divergence | None, *, unknown_because: str | None = None) -> Finding:
    """Return the finding for a converted model that computes something other than the prepared one.

    Args:
        parity: How far they agree, end to end.
        culprit: The first module at which they diverge; None if no single one does.
        unknown_because: Why the module could not be looked for.
    """
    evidence: dict[str, Any] = {"sqnr_db": json_number(parity.sqnr_db),
                                "quantization_sqnr_db": json_number(parity.quantization_sqnr_db)}
    if unknown_because is not None:
        evidence["module_unknown_because"] = unknown_because
    return Finding(
        code="kernels-disagree", severity="error", module=culprit.module if culprit else None, evidence=evidence,
        message="the int8 kernel computes something other than what fake-quantize simulated "
                f"({db_text(culprit.sqnr_db)} at this {culprit.kind})." if culprit else
                f"the int8 kernels compute something other than what fake-quantize simulated "
                f"({db_text(parity.sqnr_db)}).")


def _outputs(model: nn.Module, inputs: Any) -> dict[str, tuple[str, Tensor]]:
    """Output of each leaf module by the user's name, in the order of the first calls."""
    found: dict[str, tuple[str, Tensor]] = {}
    with _recording(model, found):
        call(model, inputs)
    return found


@contextlib.contextmanager
def _recording(model: nn.Module, found: dict[str, tuple[str, Tensor]]) -> Iterator[None]:
    own = user_names(model)

    def record(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            plain = output.dequantize() if output.is_quantized else output
            found.setdefault(own[name], (type(module).__name__, plain.detach().float().clone()))

    handles = [module.register_forward_hook(lambda module, _, output, name=name: record(name, module, output))
               for name, module in model.named_modules()
               if name and "fake_quant" not in name and "activation_post_process" not in name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

