"""Per-sample scores, paired between float and int8.

With evaluation data: the case's metric (default top-1). Without: agreement of the int8 model with the float one on
calibration inputs, which says that quantization changed little, not that the model is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.batches import classify, float_tensors, labelled, sample_count
from pytest_qat.errors import DataError
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.measure.statistics import above_chance, paired_drop_interval, paired_p

__all__ = ["Accuracy", "Scores", "agreement_scores", "compare_scores", "evaluate", "top1"]

Metric = Callable[[Any, Any], Tensor]
AGREES_DB = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One score per sample, in the order of the evaluation data.

    Attributes:
        values: Shape `(N,)`, float64.
        fingerprint: Digest of the targets in order; two passes over the same data share it.
        majority: Share of the most frequent class, where the targets are class indices; else None.
    """

    values: NDArray[np.float64]
    fingerprint: str
    majority: float | None

    @property
    def mean(self) -> float:
        """The metric over the whole set."""
        return float(self.values.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What evaluation found.

    Attributes:
        fp32: Score of the deployed float model.
        int8: Score of the deployed int8 model.
        ptq: Score of the post-training-quantized control; None where there is none.
        drop: `fp32 - int8`, with the sign turned for a lower-is-better metric.
        drop_ci: 95 % interval of the drop.
        p_value: Probability of so large a difference if there were none.
        ptq_p_value: The same between the control and int8.
        samples: Number of samples.
        kind: `metric` or `agreement`.
        at_chance: Whether the float model does no better than naming the most frequent class.
        majority: Share of that class, where it is known.
        sqnr_db: Signal-to-quantization-noise ratio of the outputs; only for `agreement`.
    """

    fp32: float
    int8: float
    ptq: float | None
    drop: float
    drop_ci: tuple[float, float]
    p_value: float
    ptq_p_value: float | None
    samples: int
    kind: str
    at_chance: bool = False
    majority: float | None = None
    sqnr_db: float | None = None


def top1(output: Any, target: Any) -> Tensor:
    """Return 1 where the first logits of the output are largest at the target, else 0; shape `(N,)`.

    Further dimensions (a segmentation map) are averaged per sample.
    """
    logits = classify(output, source="the default metric, top-1,")
    expected = (logits.shape[0], *logits.shape[2:])
    if not isinstance(target, Tensor) or tuple(target.shape) != expected:
        seen = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise DataError(f"top-1 needs class indices of shape {expected} as target, but eval_data gave {seen}.",
                        hint="Give class indices (target.argmax(1) of one-hot rows), or a metric of your own.")
    hits = (logits.argmax(dim=1) == target).float()
    return hits.reshape(hits.shape[0], -1).mean(dim=1)


def evaluate(run: Callable[[Any], Any], data: Iterable[Any], metric: Metric | None) -> Scores:
    """Score a model on every sample of `data`.

    Args:
        run: Calls the model on the inputs of a batch.
        data: Batches `(inputs, target)`.
        metric: One score per sample; default `top1`.

    Raises:
        DataError: the data are empty or of another form, or the metric does not give one finite score per sample.
    """
    values: list[NDArray[np.float64]] = []
    digest = hashlib.sha256()
    classes: list[Tensor] | None = []
    for index, (inputs, target) in enumerate(labelled(data, field="eval_data")):
        expected = sample_count(inputs)
        values.append(_scores(metric or top1, run(inputs), target, expected=expected, batch=index))
        for leaf in pytree.tree_leaves(target):
            digest.update(repr(leaf.tolist() if isinstance(leaf, Tensor) else leaf).encode())
        if classes is not None and isinstance(target, Tensor) and not target.is_floating_point():
            classes.append(target.flatten())
        else:
            classes = None
    if not values:
        raise DataError("eval_data is empty, expected at least one (inputs, target) batch.",
                        hint="Make eval_data yield batches, or leave it out to compare int8 with float.")
    majority = None
    if classes:
        _, counts = torch.unique(torch.cat(classes), return_counts=True)
        majority = float(counts.max() / counts.sum())
    return Scores(values=np.concatenate(values), fingerprint=digest.hexdigest(), majority=majority)


def _scores(metric: Metric, output: Any, target: Any, *, expected: int, batch: int) -> NDArray[np.float64]:
    try:
        scores = torch.as_tensor(metric(output, target)).detach().double().cpu()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the metric raised {type(error).__name__} on batch {batch} of eval_data: {error}",
            hint="metric(output, target) gets what the model returned and the batch's target.") from error
    if scores.dim() != 1 or scores.shape[0] != expected:
        raise DataError(
            f"the metric gave a result of shape {tuple(scores.shape)} on a batch of {expected} samples, "
            f"expected ({expected},).", hint="Return one score per sample, without averaging.")
    if not torch.isfinite(scores).all():
        raise DataError(f"the metric gave NaN or infinity on batch {batch} of eval_data, expected finite scores.",
                        hint="Check the model's output and the target of that batch.")
    result: NDArray[np.float64] = scores.numpy()
    return result


def agreement_scores(reference: Sequence[Any], candidate: Sequence[Any]) -> tuple[Scores, float]:
    """Score how far a candidate's outputs agree with a reference's, batch by batch.

    A sample of logits `(N, classes, ...)` scores the share of positions with the same argmax; of any other output it
    scores 1 if its SQNR is at least 20 dB (an error of a tenth), else 0.

    Returns:
        The scores, and the SQNR over all outputs in dB.
    """
    values: list[Tensor] = []
    expected_flat: list[Tensor] = []
    seen_flat: list[Tensor] = []
    for before, after in zip(reference, candidate, strict=True):
        pairs = list(zip(float_tensors(before), float_tensors(after), strict=True))
        if not pairs:
            raise DataError("the model returned no floating-point tensor, so float and int8 cannot be compared.",
                            hint="Give eval_data and metric.")
        values.append(torch.stack([_agreement(*pair) for pair in pairs]).mean(dim=0))
        expected_flat.extend(pair[0].flatten() for pair in pairs)
        seen_flat.extend(pair[1].flatten() for pair in pairs)
    scores = torch.cat(values).double().numpy()
    return (Scores(values=scores, fingerprint="", majority=None),
            sqnr_db(torch.cat(expected_flat), torch.cat(seen_flat)))


def _agreement(before: Tensor, after: Tensor) -> Tensor:
    if before.shape != after.shape:
        raise DataError(f"float and int8 outputs differ in shape: {tuple(before.shape)}, {tuple(after.shape)}.",
                        hint="Look for a reshape that depends on the dtype.")
    if before.dim() >= 2 and before.shape[1] >= 2:
        same = (before.argmax(dim=1) == after.argmax(dim=1)).float()
        return same.reshape(same.shape[0], -1).mean(dim=1)
    rows = before.reshape(before.shape[0], -1) if before.dim() else before.reshape(1, 1)
    noise = (rows - after.reshape(rows.shape)).norm(dim=1)
    close: Tensor = noise * 10 ** (AGREES_DB / 20) <= rows.norm(dim=1)
    return close.float()


def compare_scores(fp32: Scores, int8: Scores, ptq: Scores | None, *, higher_is_better: bool, kind: str = "metric",
                   sqnr: float | None = None, confidence: float = 0.95) -> Accuracy:
    """Pair the scores of float, int8 and the control, sample by sample.

    Raises:
        DataError: the passes saw different samples, or the same in another order.
    """
    for other in (int8, ptq):
        if other is not None and (other.fingerprint != fp32.fingerprint or len(other.values) != len(fp32.values)):
            raise DataError("two passes over eval_data gave different samples or another order.",
                            hint="Use shuffle=False and no random augmentation for eval_data.")
    before, after = fp32.values, int8.values
    low, high = paired_drop_interval(before, after, confidence=confidence)
    drop = float(before.mean() - after.mean())
    if not higher_is_better:
        drop, low, high = 0.0 - drop, 0.0 - high, 0.0 - low
    samples = len(before)
    chance = fp32.majority if kind == "metric" and bool(np.all((fp32.values == 0) | (fp32.values == 1))) else None
    return Accuracy(
        fp32=fp32.mean, int8=int8.mean, ptq=None if ptq is None else ptq.mean,
        drop=drop, drop_ci=(low, high),
        p_value=paired_p(before, after),
        ptq_p_value=None if ptq is None else paired_p(ptq.values, after),
        samples=samples, kind=kind, majority=chance, sqnr_db=sqnr,
        at_chance=chance is not None and not above_chance(
            int(fp32.values.sum()), samples=samples, chance=chance, alpha=1 - confidence),
    )
