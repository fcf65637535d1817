"""Per-sample scores, paired between float and int8.

With evaluation data: the case's metric (default top-1). Without: agreement of the int8 model with the float one on
calibration inputs (`measure.outputs`), which says that quantization changed little, not that the model is right.
Scores of one sample are compared with each other, so what counts is how many samples changed, not how many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core import progress
from pytest_qat.core.batches import classify, float_tensors, labeled, sample_count, unlike
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import DataError, QATError
from pytest_qat.measure.flat_outputs import FlatOutput
from pytest_qat.measure.statistics import above_chance, is_binary, paired_drop_interval, paired_p, samples_to_prove

__all__ = ["Accuracy", "Flip", "Scores", "compare_scores", "evaluate", "top1"]

Metric = Callable[[Any, Any], Tensor]
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
        scored: Place of the output that the default metric looked at, where the model has others; else None.
    """

    values: NDArray[np.float64]
    fingerprint: str
    majority: float | None
    targets: NDArray[Any] | None = None
    predictions: NDArray[np.int64] | None = None
    scored: str | None = None

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
        ptq_simulated: Whether the control was not converted, but scored with fake-quantize: it is compared with
            `fine_tuned` then, not with int8.
        fine_tuned: Score of the fine-tuned model before conversion, fake-quantized; None where there is none.
        drop: `fp32 - int8`, with the sign turned for a lower-is-better metric.
        drop_ci: 95 % interval of the drop.
        p_value: Probability of so large a difference if there were none.
        ptq_p_value: The same between the control and what it is compared with.
        fine_tuned_p_value: The same between the fine-tuned model and int8.
        samples: Number of samples.
        provable_drop: Smallest tolerance that a drop of zero would be proven to keep on these samples.
        flips: Samples whose score changed, in order; the thousand largest changes if there are more.
        flipped: Their number.
        kind: `metric` or `agreement`.
        is_fraction: Whether scores are shares: each 0 or 1, or higher is better and all lie between. A tolerance is
            such a share then; for other scores it is one of the float score.
        at_chance: Whether the float model does no better than naming the most frequent class.
        only_class: The one class that int8 names whatever it sees, where float names several.
        majority: Share of that class, where it is known.
        sqnr_db: Signal-to-quantization-noise ratio of the outputs; only for `agreement`.
        flat: Outputs that no metric looks at, and that hardly vary any more in int8.
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
    only_class: int | None = None
    ptq_simulated: bool = False
    majority: float | None = None
    sqnr_db: float | None = None
    flat: tuple[FlatOutput, ...] = ()

    @property
    def relative_drop(self) -> float | None:
        """The drop as a fraction of the float score; None if that is zero."""
        return self.drop / abs(self.fp32) if self.fp32 else None

    @property
    def faint(self) -> bool:
        """Whether all that went flat follows its input hardly in float either, and there are no evaluation data."""
        return self.kind == "agreement" and bool(self.flat) and all(each.faint for each in self.flat)

    def allowed(self, tolerance: float) -> float:
        """Return the drop that a tolerance allows, in units of the score."""
        return tolerance if self.is_fraction else tolerance * abs(self.fp32)

    def samples_needed(self, tolerance: float) -> int | None:
        """Return about how many samples would prove that the drop keeps the tolerance; None if none would.

        They are taken to change as often as those seen, and the drop to stay what it is.
        """
        return samples_to_prove(reach=self.drop_ci[1] - self.drop, samples=self.samples,
                                distance=tolerance - self.drop)


_TOP1 = "the default metric, top-1,"


def top1(output: Any, target: Any) -> Tensor:
    """Return 1 where the first logits of the output are largest at the target, else 0; shape `(N,)`.

    Further dimensions (a segmentation map) are averaged per sample.
    """
    _, logits = classify(output, source=_TOP1, target=target)
    expected = (logits.shape[0], *logits.shape[2:])
    if not isinstance(target, Tensor) or tuple(target.shape) != expected:
        seen = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise DataError(f"top-1 needs class indices of shape {expected} as target, but eval_data gave {seen}.",
                        hint="Give class indices (target.argmax(1) of one-hot rows), or a metric of your own.")
    hits = (logits.argmax(dim=1) == target).float()
    return hits.reshape(hits.shape[0], -1).mean(dim=1)


def evaluate(run: Callable[[Any], Any], data: Iterable[Any], metric: Metric | None, *, like: Any = None,
             step: str = "evaluating") -> Scores:
    """Score a model on every sample of `data`.

    Args:
        run: Calls the model on the inputs of a batch.
        data: Batches `(inputs, target)`.
        metric: One score per sample; default `top1`.
        like: Inputs that the model is known to take; what it does not take is compared with them.
        step: What to call this in the progress.

    Raises:
        DataError: the data are empty or of another form, the model does not take a batch that differs from `like`, or
            the metric does not give one finite score per sample.
    """
    seen = _Seen()
    with progress.step(step, total=progress.known_length(data), unit="batches") as shown:
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
            seen.values.append(_scores(metric or top1, output, target, batch=index, expected=_counts(inputs, target)))
            seen.note_target(target, samples=len(seen.values[-1]))
            if metric is None:
                place, logits = classify(output, source=_TOP1, target=target)
                seen.note_prediction(logits)
                seen.scored = place if len(float_tensors(output)) > 1 else None
            shown.advance()
    if not seen.values:
        raise DataError("eval_data is empty, expected at least one (inputs, target) batch.",
                        hint="Make eval_data yield batches, or leave it out to compare int8 with float.")
    return seen.scores()


def _counts(inputs: Any, target: Any) -> list[int]:
    """Return what may be the number of samples: the target's rows, or the inputs', whose first side may be time."""
    rows = [len(target)] if isinstance(target, Tensor) and target.dim() > 0 else []
    return sorted({*rows, sample_count(inputs)})


class _Seen:
    """What a pass over the evaluation data gathers."""

    def __init__(self) -> None:
        self.values: list[NDArray[np.float64]] = []
        self._digest = hashlib.sha256()
        self._classes: list[Tensor] | None = []
        self._targets: list[Tensor] | None = []
        self._predictions: list[Tensor] | None = []
        self.scored: str | None = None

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

    def note_prediction(self, logits: Tensor) -> None:
        if self._predictions is not None and logits.dim() == 2:
            self._predictions.append(logits.argmax(dim=1))
        else:
            self._predictions = None

    def scores(self) -> Scores:
        majority = None
        if self._classes and self._predictions:  # a metric of the user's need not count named classes
            _, counts = torch.unique(torch.cat(self._classes), return_counts=True)
            majority = float(counts.max() / counts.sum())
        return Scores(values=np.concatenate(self.values), fingerprint=self._digest.hexdigest(), majority=majority,
                      scored=self.scored,
                      targets=torch.cat(self._targets).numpy(force=True) if self._targets else None,
                      predictions=torch.cat(self._predictions).numpy(force=True) if self._predictions else None)


def _scores(metric: Metric, output: Any, target: Any, *, expected: Collection[int], batch: int) -> NDArray[np.float64]:
    try:
        scores = torch.as_tensor(metric(output, target)).detach().double().cpu()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the metric raised {type(error).__name__} on batch {batch} of eval_data: {error}",
            hint="metric(output, target) gets what the model returned and the batch's target.") from error
    if scores.dim() != 1 or scores.shape[0] not in expected:
        counts = " or ".join(map(str, expected))
        shapes = " or ".join(f"({count},)" for count in expected)
        raise DataError(
            f"the metric gave a result of shape {tuple(scores.shape)} on a batch of {counts} samples, "
            f"expected {shapes}.", hint="Return one score per sample, without averaging.")
    if not torch.isfinite(scores).all():
        raise DataError(f"the metric gave NaN or infinity on batch {batch} of eval_data, expected finite scores.",
                        hint="Check the model's output and the target of that batch.")
    result: NDArray[np.float64] = scores.numpy()
    return result


def compare_scores(fp32: Scores, int8: Scores, ptq: Scores | None, *, higher_is_better: bool,
                   fine_tuned: Scores | None = None, ptq_simulated: bool = False, kind: str = "metric",
                   sqnr: float | None = None, confidence: float = 0.95) -> Accuracy:
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
    against = fine_tuned.values if ptq_simulated and fine_tuned is not None else after
    return Accuracy(
        fp32=fp32.mean, int8=int8.mean, ptq=None if ptq is None else ptq.mean,
        fine_tuned=None if fine_tuned is None else fine_tuned.mean,
        drop=drop, drop_ci=(low, high),
        p_value=paired_p(before, after),
        ptq_p_value=None if ptq is None else paired_p(ptq.values, against),
        fine_tuned_p_value=None if fine_tuned is None else paired_p(fine_tuned.values, after),
        samples=samples, provable_drop=high - drop, flips=_flips(fp32, int8, flipped), flipped=len(flipped),
        kind=kind, is_fraction=_are_shares(before, after, higher_is_better=higher_is_better),
        majority=chance, sqnr_db=sqnr, only_class=_only_class(fp32, int8), ptq_simulated=ptq_simulated,
        at_chance=chance is not None and not above_chance(
            int(fp32.values.sum()), samples=samples, chance=chance, alpha=1 - confidence),
    )


def _are_shares(*scores: NDArray[np.float64], higher_is_better: bool) -> bool:
    """Whether scores are shares of something, and not errors in some unit that happen to be small."""
    return all(is_binary(values) or (higher_is_better and bool(np.all((values >= 0) & (values <= 1))))
               for values in scores)


def _only_class(fp32: Scores, int8: Scores) -> int | None:
    if fp32.predictions is None or int8.predictions is None:
        return None
    named = np.unique(int8.predictions)
    return int(named[0]) if len(named) == 1 and len(np.unique(fp32.predictions)) > 1 else None


def _flips(fp32: Scores, int8: Scores, flipped: NDArray[np.int64]) -> tuple[Flip, ...]:
    if len(flipped) > MOST_FLIPS:
        change = np.abs(fp32.values - int8.values)[flipped]
        flipped = np.sort(flipped[np.argsort(-change, kind="stable")[:MOST_FLIPS]])
    before, after = ((fp32.values, int8.values) if fp32.predictions is None or int8.predictions is None else
                     (fp32.predictions, int8.predictions))
    return tuple(Flip(index=int(index), before=before[index].item(), after=after[index].item(),
                      target=None if fp32.targets is None else fp32.targets[index].item()) for index in flipped)
