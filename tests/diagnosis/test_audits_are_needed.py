"""Without an audit, what it is there for is no longer told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fixtures.cases import CASES
from pytest_qat import diagnose
from pytest_qat.diagnosis import diagnose as module
from pytest_qat.diagnosis.audits import AUDITS, batch_norm, codes, conversion, joined, preparing, ranges

pytestmark = pytest.mark.slow

NEEDED: dict[Callable[..., Any], str] = {
    preparing.nothing_simulated: "no_qconfig_fx",
    batch_norm.unfused: "nothing_fused",
    batch_norm.folded_before_training: "folded_before_training_fx",
    preparing.optimizer_of_another_model: "optimizer_of_the_float_model_fx",
    preparing.switched_off: "simulation_off_in_one_layer",
    batch_norm.drifted: "sorted_calibration_in_training_mode",
    ranges.not_finite: "broken_sample_fx",
    ranges.never_observed: "branch_not_observed",
    ranges.learn_in_evaluation: "learning_in_evaluation_fx",
    codes.few_codes: "few_codes_fx",
    conversion.call_fails: "no_stub_at_the_input",
    conversion.still_simulated: "conversion_forgotten_fx",
    batch_norm.trains_at_evaluation: "exported_in_training",
    conversion.output_stays_int8: "no_stub_at_the_output",
    joined.clipped_by_concatenation: "put_together_without_functional",
    conversion.default_qparams: "converted_without_calibration",
    conversion.what_is_int8: "dense_weights_rounded",
}


def told(name: str) -> list[tuple[str, str | None]]:
    """Return code and module of the first error or warning about a case."""
    case = next(case for case in CASES if case.name == name)
    found = [each for each in diagnose(**case.build(broken=True).arguments()).findings if each.severity != "note"]
    return [(each.code, each.module) for each in found[:1] if each.code in case.code
            and case.module in (None, each.module)]


def test_every_audit_is_looked_at() -> None:
    assert set(NEEDED) == {audit for _, audits in AUDITS for audit in audits}


@pytest.mark.parametrize("audit", NEEDED, ids=lambda audit: audit.__name__)
def test_without_it_the_case_is_not_told(audit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = NEEDED[audit]
    assert told(name)
    monkeypatch.setattr(module, "AUDITS", tuple(
        (stage, tuple(each for each in audits if each is not audit)) for stage, audits in AUDITS))
    assert not told(name)
