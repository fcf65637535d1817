"""Whether the prepared model simulates int8 in training, and whether the optimizer trains that model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pytest_qat.diagnosis.given import Given, outputs_of
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.agreement import agreement_db
from pytest_qat.workflows.names import observed, user_names
from pytest_qat.workflows.observers import fake_quantizers, rounds, switch_observers

__all__ = ["nothing_simulated", "optimizer_of_another_model", "switched_off"]

_NAMED = 5


def nothing_simulated(given: Given) -> Iterator[Finding]:
    """A prepared model without fake-quantizers, where training was to see int8; or without observers, too."""
    if given.prepared is None or given.simulates:
        return
    if not given.observes:
        yield Finding(
            code="nothing-prepared", severity="error",
            message="the prepared model has neither observers nor fake-quantizers, so nothing in it will be quantized: "
                    "none of its layers has a qconfig.",
            remedy="set model.qconfig, or give a qconfig mapping or quantizer that names these layers, before the "
                   "model is prepared.")
    elif given.trains:
        yield Finding(
            code="no-fake-quantize", severity="error",
            message="the prepared model has observers but no fake-quantizers, so training does not see int8: this is "
                    "calibration, not QAT.",
            remedy="prepare with prepare_qat, prepare_qat_fx or prepare_qat_pt2e and a QAT qconfig "
                   "(get_default_qat_qconfig_mapping, is_qat=True).")


def optimizer_of_another_model(given: Given) -> Iterator[Finding]:
    """An optimizer whose tensors are those of the model before it was prepared."""
    if not (given.foreign and given.not_held):
        return
    assert given.prepared is not None, "unreachable because its parameters were compared"
    place = given.not_held[0].rpartition(".")[0]
    yield Finding(
        code="optimizer-holds-other-parameters", severity="error",
        module=user_names(given.prepared).get(place) or None,
        evidence={"foreign": given.foreign, "not_held": list(given.not_held[:_NAMED]), "of": len(given.not_held)},
        message=f"the optimizer holds {given.foreign} tensors that are no parameters of the prepared model, and not "
                f"its own {given.not_held[0]}{_more(len(given.not_held) - 1)}: training leaves the weights that are "
                "converted as they are.",
        remedy="make the optimizer from the prepared model's parameters, after it was fused and prepared.")


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def switched_off(given: Given) -> Iterator[Finding]:
    """Fake-quantizers that are off, so that what was trained and evaluated is not what is converted."""
    if given.prepared is None:
        return
    all_of_them = list(fake_quantizers(given.prepared))
    off = [name for name, module in all_of_them if not rounds(module)]
    if not off:
        return
    own = user_names(given.prepared)
    names = list(dict.fromkeys(observed(own[name]) for name in off))
    switch_observers(given.prepared, on=False)
    level = math.nan if given.rounding is None else agreement_db(
        outputs_of(given.rounding, given.batches), outputs_of(given.prepared.eval(), given.batches))
    changes = "" if math.isnan(level) else f": its outputs change by it to {level:.1f} dB"
    yield Finding(
        code="fake-quantize-off", severity="error", module=names[0] if names[0] in dict(
            given.float_model.named_modules()) and len(off) < len(all_of_them) else None,
        evidence={"off": len(off), "of": len(all_of_them), "modules": names[:_NAMED],
                  "sqnr_db": json_number(level)},
        message=f"{len(off)} of {len(all_of_them)} fake-quantizers are off ({', '.join(names[:_NAMED])}"
                f"{_more(len(names) - _NAMED)}), so training and evaluation did not see the rounding that the "
                f"converted model does{changes}.",
        remedy="switch them on (model.apply(enable_fake_quant)) before the last epochs; only observers may be switched "
               "off early.")
