"""The error that effects are counted in: each column in units of its own spread, and no column more than lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_qat.diagnosis.effects import error_of

SIGNS = torch.tensor([[1000.0, 1.0], [-1000.0, 1.0], [1000.0, -1.0], [-1000.0, -1.0]])


class Scaled(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


@pytest.mark.parametrize(("factors", "error"), [
    ((1.0, 1.0), 0.0), ((1.0, 0.0), 0.5), ((0.0, 1.0), 0.5), ((1.0, 0.9), 0.005), ((1.0, -50.0), 0.5),
    ((90.0, 0.0), 1.0)])
def test_small_columns_count_as_much_as_large_ones_and_none_more_than_all_of_it(
        factors: tuple[float, float], error: float) -> None:
    found = error_of([[SIGNS[:2]], [SIGNS[2:]]], Scaled(*factors), [SIGNS[:2], SIGNS[2:]])
    assert found.shape == (4,)
    assert found.tolist() == pytest.approx([error] * 4, abs=1e-6)
