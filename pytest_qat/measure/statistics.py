"""Statistics on plain numbers: no torch, no clock, no files.

Nearly everything uses scipy.special, which loads ten times faster than scipy.stats; only scores other than 0 and 1 need
the latter.

Sources: confidence sequence of a median: Darling & Robbins, PNAS 58 (1967), 66-68, with the mixture of Robbins, Annals
of Mathematical Statistics 41 (1970), 1397-1409; for quantiles at large Howard & Ramdas, Bernoulli 28 (2022), 1704-1728.
Paired proportions: Agresti & Min, Statistics in Medicine 24 (2005). Exact McNemar: the binomial test on the discordant
pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["above_chance", "is_binary", "mcnemar_p", "median_interval", "paired_drop_interval", "paired_p",
           "samples_to_prove"]

_RESAMPLES = 2000
_PERMUTATIONS = 4999
_MOST_PERMUTED = 1000
_MOST_TIMES = 1e4
_BATCH = 2**20
"""Resampling holds at most this many numbers at a time, which is 8 MB."""


def median_interval(ordered: Sequence[float], *, alpha: float) -> tuple[float, float] | None:
    """Return an interval of the median that stays valid however often one looks at it (a confidence sequence).

    The lower end excludes a value m once so many observations lie above m that the evidence against "the median is at
    most m" reaches 2 / alpha; the upper end works the same way. The evidence is a mixture of likelihood ratios for the
    probability of lying above m. If the median is m, the evidence is a supermartingale, so by Ville's inequality it
    ever reaches 2 / alpha with a probability of at most alpha / 2. Observations may be skewed, and their spread may
    change; each must be as likely to lie above the median as below it, whatever came before.

    Args:
        ordered: The observations so far, ascending.
        alpha: Error rate of both ends and all looks together.

    Returns:
        The interval, from two order statistics; None while there are too few observations at this rate.
    """
    count = len(ordered)
    above = _decisive_count(count, alpha)
    return None if above is None else (ordered[count - above], ordered[above - 1])


@lru_cache(maxsize=8192)
def _decisive_count(count: int, alpha: float) -> int | None:
    """Return how many of `count` observations must lie on one side of a value to rule it out as the median."""
    above = np.arange((count + 1) // 2, count + 1)
    below = count - above
    evidence = ((count + 1) * np.log(2.0) + special.betaln(above + 1, below + 1)
                + np.log(special.betainc(below + 1, above + 1, 0.5)))
    decisive = above[evidence >= np.log(2 / alpha)]
    return int(decisive[0]) if len(decisive) else None


def mcnemar_p(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return the exact two-sided p-value that paired 0/1 scores differ, given their discordant pairs."""
    worse, better = int(np.sum(before > after)), int(np.sum(before < after))
    if worse + better == 0:
        return 1.0
    return float(min(1.0, 2 * special.bdtr(min(worse, better), worse + better, 0.5)))


def paired_p(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return the two-sided p-value that the means of paired scores differ.

    0/1 scores get McNemar's exact test. Other scores get a permutation test that swaps the two scores of a sample; with
    more than a thousand samples they get Student's paired test, which then agrees and takes a thousandth of the time.
    """
    if is_binary(before) and is_binary(after):
        return mcnemar_p(before, after)
    differences = before - after
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    from scipy import stats

    if len(differences) > _MOST_PERMUTED:
        same = bool(np.all(differences == differences[0]))
        return 0.0 if same else float(stats.ttest_1samp(differences, 0.0).pvalue)
    found = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=_PERMUTATIONS,
                                   batch=max(1, _BATCH // len(differences)), vectorized=True,
                                   rng=np.random.default_rng(0))
    return float(found.pvalue)


def paired_drop_interval(before: NDArray[np.float64], after: NDArray[np.float64], *,
                         confidence: float) -> tuple[float, float]:
    """Return an interval of `mean(before) - mean(after)` for paired scores of shape `(N,)`.

    0/1 scores get Agresti and Min's adjusted Wald interval, which keeps its coverage even if no sample changed. Other
    scores get the same interval, scaled by the range of the scores, if most samples did not change or all changed by
    the same amount. The rest get a percentile bootstrap over pairs with a fixed seed, or Student's interval if that is
    wider, because a bootstrap of few samples is too narrow.
    """
    differences = before - after
    count = len(differences)
    binary = is_binary(before) and is_binary(after)
    if count < 2 and not binary:
        return -np.inf, np.inf
    uniform = not np.any(differences != differences[0])
    if binary or uniform or 2 * np.count_nonzero(differences) < count:
        return _adjusted_wald(differences, confidence, span=_span(before, after))
    from scipy import stats

    mean, spread = float(differences.mean()), float(differences.std(ddof=1)) / np.sqrt(count)
    reach = special.stdtrit(count - 1, 0.5 + confidence / 2) * spread
    found = stats.bootstrap((differences,), np.mean, confidence_level=confidence, n_resamples=_RESAMPLES,
                            batch=max(1, _BATCH // count), method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return float(min(low, mean - reach)), float(max(high, mean + reach))


def _adjusted_wald(differences: NDArray[np.float64], confidence: float, *, span: float) -> tuple[float, float]:
    """Return Agresti and Min's interval of a mean difference.

    It adds two pairs to the observed ones, of which half a pair gets worse by the whole span and half a pair better.
    """
    adjusted = len(differences) + 2
    center = float(differences.sum()) / adjusted
    spread = math.sqrt((float(np.sum(differences**2)) + span**2) / adjusted - center**2) / math.sqrt(adjusted)
    reach = float(special.ndtri(0.5 + confidence / 2)) * spread
    return max(-span, center - reach), min(span, center + reach)


def _span(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return how far apart two scores can be: 1 for fractions, otherwise the range of the observed scores."""
    seen = np.concatenate([before, after])
    low, high = float(seen.min()), float(seen.max())
    return 1.0 if low >= 0 and high <= 1 else (high - low or abs(high))


def samples_to_prove(*, reach: float, samples: int, distance: float) -> int | None:
    """Return roughly how many samples an interval needs to reach no further than `distance`.

    Args:
        reach: Distance from the estimate to that end of the interval of `samples` samples; it shrinks with their square
            root.
        samples: Number of samples so far.
        distance: Distance from the estimate to the bound.

    Returns:
        The number; None if the estimate is at or beyond the bound, or so close to it that no number is enough.
    """
    if distance <= 0:
        return None
    if reach <= distance:
        return samples
    times = reach / distance
    return math.ceil(samples * times**2) if times < _MOST_TIMES else None


def above_chance(hits: int, *, samples: int, chance: float, alpha: float) -> bool:
    """Whether `hits` of `samples` are significantly more than guessing with probability `chance` would give."""
    if chance >= 1:
        return False
    return bool(special.bdtrc(hits - 1, samples, chance) < alpha) if hits > 0 else False


def is_binary(scores: NDArray[np.float64]) -> bool:
    """Whether every score is 0 or 1, a miss or a hit."""
    return bool(np.all((scores == 0) | (scores == 1)))
