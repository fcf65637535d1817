"""Per-sample scores, paired between float and int8.

With evaluation data: the case's metric (default top-1). Without: agreement of the int8 model with the float one on
calibration inputs, which says that quantization changed little, not that the model is right.
Scores of one sample are compared with each other, so what counts is how many samples changed, not how many there are.
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
from pytest_qat.measure.statistics import above_chance, is_binary, paired_drop_interval, paired_p, samples_to_prove

__all__ = ["Accuracy", "Flip", "Scores", "agreement_scores", "compare_scores", "evaluate", "top1"]

Metric = Callable[[Any, Any], Tensor]
AGREES_DB = 20.0
MOST_FLIPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One score per sample, in the order of the evaluation data.

    Attributes:
        values: Shape `(N,)`, float64.
        fingerprint: Digest of the targets in order; two passes over the same data share it.
        majority: Share of the most frequent class, where the metric is the default one; else None.
        targets: One number a sample, where the targets are such; else None.
        predictions: The class that the default metric saw, one a sample; else None.
    """

    values: NDArray[np.float64]
    fingerprint: str
    majority: float | None
    targets: NDArray[Any] | None = None
    predictions: NDArray[np.int64] | None = None

    @property
    def mean(self) -> float:
        """The metric over the whole set."""
        return float(self.values.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A sample that int8 scores differently from float.

    Attributes:
        index: Its place in the evaluation data, from 0.
        target: Its target, where that is one number.
        before: The class that float named, for the default metric; else float's score.
        after: The same of int8.
    """

    index: int
    target: float | int | None
    before: float | int
    after: float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What evaluation found.

    Attributes:
        fp32: Score of the deployed float model.
        int8: Score of the deployed int8 model.
        ptq: Score of the post-training-quantized control; None where there is none.
        fine_tuned: Score of the fine-tuned model before conversion, fake-quantized; None where there is none.
        drop: `fp32 - int8`, with the sign turned for a lower-is-better metric.
        drop_ci: 95 % interval of the drop.
        p_value: Probability of so large a difference if there were none.
        ptq_p_value: The same between the control and int8.
        fine_tuned_p_value: The same between the fine-tuned model and int8.
        samples: Number of samples.
        provable_drop: Smallest tolerance that a drop of zero would be proven to keep on these samples.
        flips: Samples whose score changed, in order; the thousand largest changes if there are more.
        flipped: Their number.
        kind: `metric` or `agreement`.
        is_fraction: Whether higher is better and all scores lie between 0 and 1: percent are the right words then.
        at_chance: Whether the float model does no better than naming the most frequent class.
        majority: Share of that class, where it is known.
        sqnr_db: Signal-to-quantization-noise ratio of the outputs; only for `agreement`.
    """

    fp32: float
    int8: float
    ptq: float | None
    fine_tuned: float | None
    drop: float
    drop_ci: tuple[float, float]
    p_value: float
    ptq_p_value: float | None
    fine_tuned_p_value: float | None
    samples: int
    provable_drop: float
    flips: tuple[Flip, ...]
    flipped: int
    kind: str
    is_fraction: bool
    at_chance: bool = False
    majority: float | None = None
    sqnr_db: float | None = None

    @property
    def relative_drop(self) -> float | None:
        """The drop as a fraction of the float score; None if that is zero."""
        return self.drop / abs(self.fp32) if self.fp32 else None

    def samples_needed(self, tolerance: float) -> int | None:
        """Return about how many samples would prove that the drop keeps the tolerance; None if none would.

        They are taken to change as often as those seen, and the drop to stay what it is.
        """
        return samples_to_prove(reach=self.drop_ci[1] - self.drop, samples=self.samples,
                                distance=tolerance - self.drop)


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
    seen = _Seen()
    for index, (inputs, target) in enumerate(labelled(data, field="eval_data")):
        expected, output = sample_count(inputs), run(inputs)
        seen.values.append(_scores(metric or top1, output, target, expected=expected, batch=index))
        seen.note_target(target, samples=expected)
        seen.note_prediction(None if metric is not None else output)
    if not seen.values:
        raise DataError("eval_data is empty, expected at least one (inputs, target) batch.",
                        hint="Make eval_data yield batches, or leave it out to compare int8 with float.")
    return seen.scores()


class _Seen:
    """What a pass over the evaluation data gathers."""

    def __init__(self) -> None:
        self.values: list[NDArray[np.float64]] = []
        self._digest = hashlib.sha256()
        self._classes: list[Tensor] | None = []
        self._targets: list[Tensor] | None = []
        self._predictions: list[Tensor] | None = []

    def note_target(self, target: Any, *, samples: int) -> None:
        for leaf in pytree.tree_leaves(target):
            self._digest.update(repr(leaf.tolist() if isinstance(leaf, Tensor) else leaf).encode())
        if self._classes is not None and isinstance(target, Tensor) and not target.is_floating_point():
            self._classes.append(target.flatten())
        else:
            self._classes = None
        if self._targets is not None and isinstance(target, Tensor) and target.shape == (samples,):
            self._targets.append(target.double() if target.is_floating_point() else target)
        else:
            self._targets = None

    def note_prediction(self, output: Any) -> None:
        logits = None if output is None else classify(output, source="the default metric, top-1,")
        if self._predictions is not None and logits is not None and logits.dim() == 2:
            self._predictions.append(logits.argmax(dim=1))
        else:
            self._predictions = None

    def scores(self) -> Scores:
        majority = None
        if self._classes and self._predictions:  # a metric of the user's need not count named classes
            _, counts = torch.unique(torch.cat(self._classes), return_counts=True)
            majority = float(counts.max() / counts.sum())
        return Scores(values=np.concatenate(self.values), fingerprint=self._digest.hexdigest(), majority=majority,
                      targets=torch.cat(self._targets).numpy(force=True) if self._targets else None,
                      predictions=torch.cat(self._predictions).numpy(force=True) if self._predictions else None)


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


def agreement_scores(reference: Sequence[Any], candidate: Sequence[Any], *,
                     samples: Sequence[int]) -> tuple[Scores, float]:
    """Score how far a candidate's outputs agree with a reference's, batch by batch.

    A sample of logits `(N, classes, ...)` scores the share of positions with the same argmax; of any other output it
    scores 1 if its SQNR is at least 20 dB (an error of a tenth), else 0. Outputs without a row for each sample (an
    auxiliary loss, the state of an LSTM) count in the SQNR only.

    Args:
        reference: Outputs of each batch.
        candidate: The same of the other model.
        samples: Number of samples of each batch.

    Returns:
        The scores, and the SQNR over all outputs in dB.

    Raises:
        DataError: no output is a floating-point tensor with a row for each sample, or the two differ in shape.
    """
    values: list[Tensor] = []
    expected_flat: list[Tensor] = []
    seen_flat: list[Tensor] = []
    for before, after, count in zip(reference, candidate, samples, strict=True):
        pairs = list(zip(float_tensors(before), float_tensors(after), strict=True))
        if not pairs:
            raise DataError("the model returned no floating-point tensor, so float and int8 cannot be compared.",
                            hint="Give eval_data and metric.")
        agreed = [scores for scores in (_agreement(*pair) for pair in pairs) if len(scores) == count]
        if not agreed:
            shapes = ", ".join(str(tuple(pair[0].shape)) for pair in pairs)
            raise DataError(f"the model returned tensors of shape {shapes} for a batch of {count} samples, none with "
                            "a row for each, so float and int8 cannot be compared.", hint="Give eval_data and metric.")
        values.append(torch.stack(agreed).mean(dim=0))
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


def compare_scores(fp32: Scores, int8: Scores, ptq: Scores | None, *, higher_is_better: bool,
                   fine_tuned: Scores | None = None, kind: str = "metric", sqnr: float | None = None,
                   confidence: float = 0.95) -> Accuracy:
    """Pair the scores of float, int8, the control and the fine-tuned model, sample by sample.

    Raises:
        DataError: the passes saw different samples, or the same in another order.
    """
    for other in (int8, ptq, fine_tuned):
        if other is not None and len(other.values) != len(fp32.values):
            raise DataError(f"two passes over eval_data gave {len(fp32.values):,} and {len(other.values):,} samples.",
                            hint="Give data that can be iterated again and do not depend on the model.")
        if other is not None and other.fingerprint != fp32.fingerprint:
            raise DataError("two passes over eval_data gave different samples or another order.",
                            hint="Use shuffle=False and no random augmentation for eval_data.")
    before, after = fp32.values, int8.values
    low, high = paired_drop_interval(before, after, confidence=confidence)
    drop = float((before - after).mean())
    if not higher_is_better:
        drop, low, high = 0.0 - drop, 0.0 - high, 0.0 - low
    samples = len(before)
    chance = fp32.majority if kind == "metric" and higher_is_better and is_binary(before) else None
    flipped = np.flatnonzero(before != after)
    return Accuracy(
        fp32=fp32.mean, int8=int8.mean, ptq=None if ptq is None else ptq.mean,
        fine_tuned=None if fine_tuned is None else fine_tuned.mean,
        drop=drop, drop_ci=(low, high),
        p_value=paired_p(before, after),
        ptq_p_value=None if ptq is None else paired_p(ptq.values, after),
        fine_tuned_p_value=None if fine_tuned is None else paired_p(fine_tuned.values, after),
        samples=samples, provable_drop=high - drop, flips=_flips(fp32, int8, flipped), flipped=len(flipped),
        kind=kind, is_fraction=higher_is_better and all(
            bool(np.all((values >= 0) & (values <= 1))) for values in (before, after)),
        majority=chance, sqnr_db=sqnr,
        at_chance=chance is not None and not above_chance(
            int(fp32.values.sum()), samples=samples, chance=chance, alpha=1 - confidence),
    )


def _flips(fp32: Scores, int8: Scores, flipped: NDArray[np.int64]) -> tuple[Flip, ...]:
    if len(flipped) > MOST_FLIPS:
        change = np.abs(fp32.values - int8.values)[flipped]
        flipped = np.sort(flipped[np.argsort(-change, kind="stable")[:MOST_FLIPS]])
    before, after = ((fp32.values, int8.values) if fp32.predictions is None or int8.predictions is None else
                     (fp32.predictions, int8.predictions))
    return tuple(Flip(index=int(index), before=before[index].item(), after=after[index].item(),
                      target=None if fp32.targets is None else fp32.targets[index].item()) for index in flipped)
