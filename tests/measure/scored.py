"""Logits, scores and comparisons of them, as the tests of accuracy take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pytest_qat.measure.accuracy import Accuracy, Scores, compare_scores

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 8.0, 7.0]])
HITS = torch.tensor([0, 1, 2, 2])  # the last one is a miss


def same(value: Any) -> Any:
    return value


def scores(values: Sequence[float], *, fingerprint: str = "data", majority: float | None = None,
           targets: Sequence[float] | None = None, predictions: Sequence[int] | None = None) -> Scores:
    return Scores(values=np.array(values, dtype=np.float64), fingerprint=fingerprint, majority=majority,
                  targets=None if targets is None else np.array(targets),
                  predictions=None if predictions is None else np.array(predictions))


def compared(fp32: Sequence[float], int8: Sequence[float], ptq: Sequence[float] | None = None,
             fine_tuned: Sequence[float] | None = None, **options: Any) -> Accuracy:
    options.setdefault("higher_is_better", True)
    twins = [None if values is None else scores(values) for values in (ptq, fine_tuned)]
    return compare_scores(scores(fp32), scores(int8), twins[0], fine_tuned=twins[1], **options)


def table(same: int, worse: int, better: int) -> Accuracy:
    """The comparison of 0/1 scores of which so many stay, turn wrong and turn right."""
    return compared([1.0] * same + [1.0] * worse + [0.0] * better, [1.0] * same + [0.0] * worse + [1.0] * better)
