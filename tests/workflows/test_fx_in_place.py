"""FX mode and functions that change an argument in place: who reads it later reads the change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.workflows.fx_made import Made

ROWS = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


def shifted(x: Tensor, y: Tensor) -> None:
    """As a helper of a library, that torch.fx does not look into."""
    x[:, 2:] += 3 * y[:, 2:]


torch.fx.wrap("shifted")


def _returns_nothing(x: Tensor, y: Tensor) -> None:
    shifted(x, y)


def _method(x: Tensor, y: Tensor) -> None:
    x.add_(y, alpha=3)


def _function(x: Tensor, y: Tensor) -> None:
    torch.relu_(x)


def _item(x: Tensor, y: Tensor) -> None:
    x[:, 2:] = 3 * y[:, 2:]


def _keyword(x: Tensor, y: Tensor) -> None:
    torch.nn.functional.hardtanh(x, -0.1, 0.1, inplace=True)


class ChangesInPlace(nn.Module):
    """What one layer gives is changed by a statement before the next layer reads it."""

    def __init__(self, change: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.one(x), self.other(x)
        self.change(first, second)
        return self.out(first) + first + second  # type: ignore[no-any-return]


@pytest.mark.parametrize("change", [_returns_nothing, _method, _function, _item, _keyword])
def test_who_reads_what_was_changed_in_place_reads_the_change(change: Callable[[Tensor, Tensor], None]) -> None:
    made = Made(ChangesInPlace(change), ROWS)
    assert made.sqnr_db > 25
    assert made.int8_layers() == 3


def test_who_read_before_the_change_reads_what_was_there() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            first = self.one(x)
            before = self.other(first)
            shifted(first, before)
            return before - first  # type: ignore[no-any-return]

    assert Made(Before(), ROWS).sqnr_db > 25
