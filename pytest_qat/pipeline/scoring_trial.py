"""Try the evaluation data and the metric on the float model before any time goes into training.

One batch tells whether the model takes the data and whether the metric gives what it should. A score of the whole set
may need more: a batch may well lack a class, so it gets more of them until it is defined.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core.batches import call, unlike
from pytest_qat.core.tracebacks import headline, place_of
from pytest_qat.errors import DataError, QATError
from pytest_qat.measure.default_metric import default_scores
from pytest_qat.measure.scoring import Batch, run_labeled, sample_scores
from pytest_qat.measure.set_scores import SetMetric, UndefinedScore, gather, set_score

__all__ = ["try_scoring"]

_TRIAL_S = 10.0
"""Most seconds to look for data on which a score of the whole set is defined; evaluation itself tells then."""


def try_scoring(case: QATCase, model: nn.Module, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Score the float model on the first batch of the evaluation data, if there are any.

    Args:
        case: Whose data and metric to try.
        model: A copy of the float model, in eval mode.
        clock: Tells seconds.

    Raises:
        DataError: the model does not take the batch, or the metric or the default one does not work on it.
    """
    if case.eval_data is None:
        return
    with torch.inference_mode():
        batches = _scored_batches(case, model)
        inputs, output, target = first = next(batches)
        if case.set_metric is not None:
            _try_set_metric(case.set_metric, itertools.chain([first], batches), clock)
        elif case.metric is not None:
            sample_scores(case.metric, output, target, inputs=inputs, batch=0)
        else:
            default_scores(output, target)


def _scored_batches(case: QATCase, model: nn.Module) -> Iterator[Batch]:
    def run(inputs: Any) -> Any:
        try:
            return call(model, inputs)
        except Exception as error:
            if isinstance(error, QATError) or unlike(inputs, case.example_inputs) is not None:
                raise  # it is told beside the shapes of the example
            raise DataError(
                f"the model raised {type(error).__name__} on a batch of eval_data whose inputs have the shapes of "
                f"example_inputs: {headline(error)} ({place_of(error)}).",
                hint="Call the model on that batch in a shell, and look for values out of range.") from error

    assert case.eval_data is not None, "unreachable because it was asked for"
    yield from run_labeled(run, case.eval_data, like=case.example_inputs)


def _try_set_metric(metric: SetMetric, batches: Iterator[Batch], clock: Callable[[], float]) -> None:
    """Score more and more batches until the score is defined, the data end, or the time is used up."""
    began, seen = clock(), [next(batches)]
    while not _is_defined(metric, seen, last=False):
        added = list(itertools.islice(batches, len(seen)))
        if not added:
            _is_defined(metric, seen, last=True)
        if clock() - began > _TRIAL_S:
            return
        seen += added


def _is_defined(metric: SetMetric, batches: list[Batch], *, last: bool) -> bool:
    try:
        set_score(metric, gather(batches), of="the float model")
    except UndefinedScore:
        if last:
            raise
        return False
    return True
