"""What a score of a whole set could have been on other samples: the paired bootstrap. Pure: plain numbers and a clock.

Every model is scored on the same drawn samples, so that what is common to them cancels out in their differences.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 (50 resamples are enough for a standard
error) and 13 (percentiles). The allowance for what so few samples cannot show, one sample that turns by the whole range
of the score, is that of Agresti & Min, Statistics in Medicine 24 (2005), for paired proportions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["Difference", "Resampling", "difference_of", "resample"]

MOST_RESAMPLES, FEWEST_RESAMPLES = 1000, 50
FEWEST_SAMPLES = 20
"""A bootstrap of fewer samples hardly ever covers what it should."""
_MOST_UNDEFINED = 0.01
"""Share of the resamples on which a score may be undefined: with five samples of the rarer class it is 0.7 %."""
_GLANCE = 3

Score = Callable[[str, NDArray[np.int64]], float]
"""Scores one side on the samples with these indices; raises `ArithmeticError` where the score is not defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """What drawing samples again gave.

    Attributes:
        scores: Score of each side on each resample on which every side has one, by the name of the side; shape `(R,)`.
        samples: Number of samples in the set, and in each resample.
        undefined: Number of resamples on which some side has no score.
        undefined_because: What was said about the first of them.
        elapsed_s: How long it took.
    """

    scores: Mapping[str, NDArray[np.float64]]
    samples: int
    undefined: int
    undefined_because: str
    elapsed_s: float

    @property
    def count(self) -> int:
        """Number of resamples that count."""
        return len(next(iter(self.scores.values())))

    @property
    def too_few_samples(self) -> bool:
        """Whether there are too few samples to draw from."""
        return self.samples < FEWEST_SAMPLES

    @property
    def too_often_undefined(self) -> bool:
        """Whether the score hangs on so few samples that many resamples have none of them."""
        return self.undefined > max(1.0, _MOST_UNDEFINED * (self.count + self.undefined))

    @property
    def too_slow(self) -> bool:
        """Whether too few resamples were drawn in the time that there was."""
        return not self.too_few_samples and self.count + self.undefined < FEWEST_RESAMPLES

    @property
    def settles(self) -> bool:
        """Whether intervals can be taken from it."""
        return not (self.too_few_samples or self.too_often_undefined or self.too_slow)

    @property
    def seconds_needed(self) -> float:
        """About how long as many resamples take as an interval needs."""
        return self.elapsed_s / max(1, self.count + self.undefined) * FEWEST_RESAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far the scores of two sides lie apart.

    Attributes:
        estimate: `before - after` on the set itself.
        interval: Interval of it; without ends where the resampling does not settle it.
        p_value: Probability of so large a difference if there were none.
    """

    estimate: float
    interval: tuple[float, float]
    p_value: float


def resample(score: Score, *, sides: tuple[str, ...], samples: int, budget_s: float,
             clock: Callable[[], float] = time.monotonic) -> Resampling:
    """Draw as many samples as there are, with replacement, and score every side on them, again and again.

    It ends after a thousand resamples, when the time is used up, or as soon as it is clear that the time is not enough.

    Args:
        score: Scores a side on some samples.
        sides: Names of the sides.
        samples: Number of samples.
        budget_s: Most seconds; one resample more may be under way.
        clock: Tells seconds.
    """
    found: dict[str, list[float]] = {side: [] for side in sides}
    undefined, because = 0, ""
    drawn, began = np.random.default_rng(0), clock()
    elapsed = 0.0
    for count in range(1, (MOST_RESAMPLES if samples >= FEWEST_SAMPLES else 0) + 1):
        index = drawn.integers(samples, size=samples)
        try:
            scores = {side: score(side, index) for side in sides}
        except ArithmeticError as error:
            undefined += 1
            because = because or str(error)
        else:
            for side, value in scores.items():
                found[side].append(value)
        elapsed = clock() - began
        if elapsed >= budget_s or (count == _GLANCE and elapsed / count * FEWEST_RESAMPLES > budget_s):
            break
    return Resampling(scores={side: np.array(values, dtype=np.float64) for side, values in found.items()},
                      samples=samples, undefined=undefined, undefined_because=because, elapsed_s=elapsed)


def difference_of(resampling: Resampling, before: str, after: str, *, estimate: float, span: float,
                  confidence: float) -> Difference:
    """Return the difference between two sides with its interval and its significance.

    The interval holds the percentiles of the resampled differences, and Student's interval of their spread with an
    allowance for a sample that nobody has seen, which turns the score by `span / samples`.

    Args:
        resampling: The scores of both sides.
        before: Name of one side.
        after: Name of the other.
        estimate: `before - after` on the set itself.
        span: How far two scores can lie apart.
        confidence: Of the interval.
    """
    if not resampling.settles:
        return Difference(estimate=estimate, interval=(-math.inf, math.inf), p_value=1.0)
    drawn = resampling.scores[before] - resampling.scores[after]
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    spread = math.hypot(float(drawn.std(ddof=1)), span / (resampling.samples + 2))
    freedom = resampling.samples - 1
    reach = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * spread
    one_side = min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    by_rank = min(1.0, 2 * (1 + one_side) / (len(drawn) + 1))
    by_spread = 2 * float(special.stdtr(freedom, -abs(estimate) / spread)) if spread else float(estimate == 0)
    return Difference(estimate=estimate, p_value=max(by_rank, by_spread),
                      interval=(min(float(low), estimate - reach), max(float(high), estimate + reach)))
