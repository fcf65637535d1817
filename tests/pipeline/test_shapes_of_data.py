"""Evaluation data that an artifact of fixed shapes would not take, told before any training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.errors import CheckFailed
from pytest_qat.pipeline.preflight import check_shapes

X, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("inputs", [torch.zeros(4, 5), torch.zeros(4, 3, dtype=torch.float64), (X, X)])
def test_a_later_batch_of_another_shape_is_named(inputs: object) -> None:
    data = iter([(X, LABELS), (X[:2], LABELS[:2]), (inputs, LABELS)])
    with pytest.raises(CheckFailed) as caught:
        check_shapes(QATCase(model=nn.Linear(3, 2), example_inputs=(X,), eval_data=data))
    [finding] = caught.value.findings
    assert finding.evidence == {"field": "eval_data", "batch": 2}


def test_the_size_of_a_batch_is_no_matter() -> None:
    check_shapes(QATCase(model=nn.Linear(3, 2), example_inputs=(X,), eval_data=[(X[:1], LABELS[:1])]))
