"""Score a model on evaluation data, sample by sample: one pass, with the case's metric or the default one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import labeled, sample_count, unlike
from pytest_qat.core.tracebacks import defined_at, headline, name_of, place_of
from pytest_qat.errors import DataError, QATError
from pytest_qat.measure.accuracy import Scores
from pytest_qat.measure.default_metric import Default, default_scores

__all__ = ["Batch", "evaluate", "run_labeled", "sample_scores"]

Metric = Callable[[Any, Any], Tensor]
Batch = tuple[Any, Any, Any]
"""The inputs, what the model returned, and the target."""


def run_labeled(run: Callable[[Any], Any], data: Iterable[Any], *, like: Any = None) -> Iterator[Batch]:
    """Yield the inputs, the output and the target of each batch of evaluation data.

    Args:
        run: Calls the model on the inputs of a batch.
        data: Batches `(inputs, target)`.
        like: Inputs that the model is known to take; what it does not take is compared with them.

    Raises:
        DataError: the data have another form, or the model does not take a batch that differs from `like`.
    """
    for index, (inputs, target) in enumerate(labeled(data, field="eval_data")):
        try:
            output = run(inputs)
        except Exception as error:
            difference = None if like is None or isinstance(error, QATError) else unlike(inputs, like)
            if difference is None:
                raise
            raise DataError(
                f"the model does not take batch {index} of eval_data, whose inputs are {difference}: "
                f"{type(error).__name__}: {headline(error)}",
                hint="Make eval_data yield what forward takes, in the shape of example_inputs.") from error
        yield inputs, output, target


def evaluate(run: Callable[[Any], Any], data: Iterable[Any], metric: Metric | None, *, like: Any = None) -> Scores:
    """Score a model on every sample of `data`.

    Args:
        run: Calls the model on the inputs of a batch.
        data: Batches `(inputs, target)`.
        metric: One score per sample; None: the default one.
        like: Inputs that the model is known to take; what it does not take is compared with them.

    Raises:
        DataError: the data are empty or of another form, the model does not take a batch that differs from `like`, or
            the metric does not give one finite score per sample.
    """
    seen = _Seen()
    for index, (inputs, output, target) in enumerate(run_labeled(run, data, like=like)):
        if metric is None:
            found = default_scores(output, target, first=index == 0)
            seen.note_default(found)
            scores = found.values
        else:
            scores = sample_scores(metric, output, target, inputs=inputs, batch=index)
        seen.values.append(scores.detach().double().cpu().numpy())
        seen.note_target(target, samples=len(scores))
    if not seen.values:
        raise DataError("eval_data is empty, expected at least one (inputs, target) batch.",
                        hint="Make eval_data yield batches, or leave it out to compare int8 with float.")
    return seen.scores()


def sample_scores(metric: Metric, output: Any, target: Any, *, inputs: Any, batch: int) -> Tensor:
    """Return a user's scores of a batch, one per sample, float64.

    Args:
        metric: The user's.
        output: What the model returned.
        target: The target of the batch.
        inputs: Its inputs, whose number of samples counts where the target does not tell.
        batch: Its place in the data, from 0.

    Raises:
        DataError: the metric raised, or what it gave is not one finite score per sample.
    """
    try:
        given = metric(output, target)
        scores = torch.as_tensor(given).detach().double().cpu()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the metric raised {type(error).__name__} on batch {batch} of eval_data: {headline(error)} "
            f"({place_of(error)}).",
            hint="metric(output, target) gets what the model returned and the batch's target.") from error
    expected = _counts(inputs, target)
    if scores.dim() != 1 or scores.shape[0] not in expected:
        counts = " or ".join(map(str, expected))
        shapes = " or ".join(f"({count},)" for count in expected)
        raise DataError(
            f"the metric {defined_at(metric)} gave a result of shape {tuple(scores.shape)} on a batch of {counts} "
            f"samples, expected {shapes}.", hint=_how_to_score_samples(metric, scores, expected))
    if not torch.isfinite(scores).all():
        raise DataError(f"the metric {defined_at(metric)} gave NaN or infinity on batch {batch} of eval_data, expected "
                        "finite scores.", hint="Check the model's output and the target of that batch.")
    return scores


def _how_to_score_samples(metric: Metric, scores: Tensor, expected: Collection[int]) -> str:
    if scores.numel() == 1:
        name = name_of(metric) or "…"
        return (f"Write set_metric={name} instead of metric={name} if it is one score of all samples together, as AUC "
                "or F1 are; else return one score per sample, without averaging.")
    if scores.dim() > 1 and scores.shape[0] in expected:
        return "Average over everything but the samples: .flatten(1).mean(1)."
    return "Return one score per sample, without averaging."


def _counts(inputs: Any, target: Any) -> list[int]:
    """Return what may be the number of samples: the target's rows, or the inputs', whose first side may be time."""
    rows = [len(target)] if isinstance(target, Tensor) and target.dim() > 0 else []
    return sorted({*rows, sample_count(inputs)})


class _Seen:
    """What a pass over the evaluation data gathers."""

    def __init__(self) -> None:
        self.values: list[NDArray[np.float64]] = []
        self._digest = hashlib.sha256()
        self._classes: Counter[int] | None = Counter()
        self._targets: list[Tensor] | None = []
        self._predictions: list[Tensor] | None = []
        self._defaults: list[Default] = []

    def note_target(self, target: Any, *, samples: int) -> None:
        self._digest.update(target_text(target))
        if self._classes is not None and isinstance(target, Tensor) and not target.is_floating_point():
            self._classes.update(dict(zip(*(each.tolist() for each in target.unique(return_counts=True)), strict=True)))
        else:
            self._classes = None
        if self._targets is not None and isinstance(target, Tensor) and target.shape == (samples,):
            self._targets.append(target.double() if target.is_floating_point() else target)
        else:
            self._targets = None

    def note_default(self, found: Default) -> None:
        if self._defaults and self._defaults[0].name != found.name:
            raise DataError(f"the default metric is {self._defaults[0].name} for one batch of eval_data and "
                            f"{found.name} for another, expected targets of one form.",
                            hint="Give metric=, or one form of target.")
        self._defaults.append(found)
        if self._predictions is not None and found.predictions is not None:
            self._predictions.append(found.predictions)
        else:
            self._predictions = None

    def scores(self) -> Scores:
        values, first = np.concatenate(self.values), self._defaults[0] if self._defaults else None
        squares, numbers = (sum(getattr(found, part) for found in self._defaults) for part in ("squares", "numbers"))
        return Scores(values=values / (squares / numbers) ** 0.5 if squares else values,
                      fingerprint=self._digest.hexdigest(), majority=self._majority(),
                      scored=first.place if first else None, name=first.name if first else None,
                      lower_is_better=first is not None and first.lower_is_better,
                      targets=torch.cat(self._targets).numpy(force=True) if self._targets else None,
                      predictions=torch.cat(self._predictions).numpy(force=True) if self._predictions else None)

    def _majority(self) -> float | None:
        """Return the share of the most frequent class; None for a user's metric, which need not count named classes."""
        if not self._classes or not self._defaults or not self._defaults[0].classes:
            return None
        counts = [count for label, count in self._classes.items() if 0 <= label < self._defaults[0].classes]
        return max(counts) / sum(counts) if counts else None


def target_text(target: Any) -> bytes:
    """Return a target as bytes that differ where targets do, for a digest."""
    return "".join(repr(leaf.tolist() if isinstance(leaf, Tensor) else leaf)
                   for leaf in pytree.tree_leaves(target)).encode()
