"""Kernels that compute something other than fake-quantize simulated, and the module where that begins."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.diagnosis.divergence import Divergence, first_divergence, kernels_disagree
from pytest_qat.measure.parity import Parity

PARITY = Parity(sqnr_db=3, quantization_sqnr_db=30, finite=True)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)).eval()


class Wrong(nn.Linear):
    """A kernel with the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_the_first_module_with_another_output_is_the_culprit() -> None:
    prepared, converted = net(), net()
    converted[2] = Wrong(8, 8)
    converted[2].load_state_dict(prepared[2].state_dict())
    found = first_divergence(prepared, converted, torch.randn(4, 8))
    assert found is not None
    assert (found.module, found.kind) == ("2", "Wrong")
    assert found.sqnr_db < 0


def test_forms_that_agree_have_no_culprit() -> None:
    assert first_divergence(net(), net(), torch.randn(4, 8)) is None


@pytest.mark.parametrize(("culprit", "module", "level"), [
    (None, None, "3.0 dB"), (Divergence(module="body.3", kind="Conv2d", sqnr_db=1.5), "body.3", "1.5 dB"),
])
def test_the_finding_names_the_culprit_where_it_is_known(culprit: Divergence | None, module: str | None,
                                                         level: str) -> None:
    finding = kernels_disagree(PARITY, culprit)
    assert (finding.code, finding.severity, finding.module) == ("kernels-disagree", "error", module)
    assert level in finding.message
    assert not finding.remedy, "what helps is tried, not guessed"


def test_a_culprit_that_could_not_be_looked_for_leaves_the_reason() -> None:
    finding = kernels_disagree(PARITY, None, unknown_because="RuntimeError: hooks are not supported")
    assert finding.evidence["module_unknown_because"] == "RuntimeError: hooks are not supported"


def test_infinite_noise_is_plain_json() -> None:
    found = kernels_disagree(Parity(sqnr_db=-math.inf, quantization_sqnr_db=math.inf, finite=True), None)
    json.dumps(found.as_dict(), allow_nan=False)
