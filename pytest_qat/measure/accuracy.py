"""Scores of float and int8, paired sample by sample: the drop, its interval and what the samples prove.

With evaluation data the scores come from `scoring`, or, for one score of the whole set, the comparison from
`set_scores`. Without, it is agreement of the int8 model with the float one on calibration inputs (`outputs`), which
says that quantization changed little, not that the model is right. Scores of one sample are compared with each other,
so what counts is how many samples changed, not how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_qat.errors import DataError
from pytest_qat.measure.bootstrap import Resampling
from pytest_qat.measure.flat_outputs import FlatOutput
from pytest_qat.measure.score_names import NAMED_IN_REPORTS
from pytest_qat.measure.statistics import above_chance, is_binary, paired_drop_interval, paired_p, samples_to_prove

__all__ = ["Accuracy", "Flip", "Scores", "compare_scores", "hold_to_same_samples"]

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
        name: What the default metric is called; None for the case's own.
        lower_is_better: Whether the default metric is an error.
    """

    values: NDArray[np.float64]
    fingerprint: str
    majority: float | None
    targets: NDArray[Any] | None = None
    predictions: NDArray[np.int64] | None = None
    scored: str | None = None
    name: str | None = None
    lower_is_better: bool = False

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
        kind: `metric`, `set_metric` or `agreement`.
        is_fraction: Whether scores are shares: each 0 or 1, or higher is better and all lie between. A tolerance is
            such a share then; for other scores it is one of the float score.
        at_chance: Whether the float model does no better than naming the most frequent class, or than with shuffled
            targets.
        only_class: The one class that int8 names whatever it sees, where float names several.
        majority: Share of that class, where it is known.
        sqnr_db: Signal-to-quantization-noise ratio of the outputs; only for `agreement`.
        flat: Outputs that no metric looks at, and that hardly vary any more in int8.
        metric: What the score is called; None for agreement.
        higher_is_better: Whether a higher score is better.
        resampling: What the interval of one score of the whole set rests on; else None.
        shuffled: Float's best score with shuffled targets, where one score of the whole set does not beat it.
        ragged: Outputs that cannot be compared, each with the reason.
        same_class: Share of the positions of maps where both name the same class, for agreement where nobody knows
            whether the maps are classes or values; they are compared as values then.
        random_weights: How it is known that nobody has trained the float model; "" where nothing says so, and for
            other kinds than `agreement`.
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
    metric: str | None = None
    higher_is_better: bool = True
    resampling: Resampling | None = None
    shuffled: float | None = None
    ragged: tuple[str, ...] = ()
    same_class: float | None = None
    random_weights: str = ""

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


def compare_scores(fp32: Scores, int8: Scores, ptq: Scores | None, *, higher_is_better: bool,
                   fine_tuned: Scores | None = None, ptq_simulated: bool = False, kind: str = "metric",
                   sqnr: float | None = None, metric: str | None = None, confidence: float = 0.95) -> Accuracy:
    """Pair the scores of float, int8, the control and the fine-tuned model, sample by sample.

    The default metric says itself which way is better.

    Raises:
        DataError: the passes saw different samples, or the same in another order.
    """
    for other in (int8, ptq, fine_tuned):
        if other is not None:
            hold_to_same_samples(len(fp32.values), len(other.values), fp32.fingerprint == other.fingerprint)
    higher_is_better = higher_is_better if fp32.name is None else not fp32.lower_is_better
    before, after = fp32.values, int8.values
    low, high = paired_drop_interval(before, after, confidence=confidence)
    drop = float((before - after).mean())
    if not higher_is_better:
        drop, low, high = 0.0 - drop, 0.0 - high, 0.0 - low
    samples = len(before)
    on_maps = fp32.name in NAMED_IN_REPORTS
    chance = fp32.majority if kind == "metric" and higher_is_better and (on_maps or is_binary(before)) else None
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
        metric=fp32.name or metric, higher_is_better=higher_is_better,
        at_chance=chance is not None and (fp32.mean <= chance if on_maps else not above_chance(
            int(fp32.values.sum()), samples=samples, chance=chance, alpha=1 - confidence)),
    )


def hold_to_same_samples(one: int, other: int, same: bool) -> None:
    """Check that two passes over the evaluation data saw the same.

    Args:
        one: Number of samples of a pass.
        other: Number of samples of another one.
        same: Whether the targets were the same.

    Raises:
        DataError: they saw different samples, or the same in another order.
    """
    if one != other:
        raise DataError(f"two passes over eval_data gave {one:,} and {other:,} samples.",
                        hint="Give data that can be iterated again and do not depend on the model.")
    if not same:
        raise DataError("two passes over eval_data gave different samples or another order.",
                        hint="Use shuffle=False and no random augmentation for eval_data.")


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
