"""Statistics on plain numbers: no torch, no clock, no files.

scipy.special is enough for nearly all of it and loads ten times faster than scipy.stats, which only scores other than
0 and 1 need.

Sources: order-statistic interval of a median: Conover, Practical Nonparametric Statistics, 3.2. Paired proportions:
Agresti & Min, Statistics in Medicine 24 (2005). Exact McNemar: the binomial test on the discordant pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["above_chance", "look_alpha", "mcnemar_p", "median_interval", "paired_drop_interval", "paired_p"]

_RESAMPLES = 2000


def median_interval(values: Sequence[float], *, alpha: float) -> tuple[float, float] | None:
    """Return a distribution-free interval of the median, from two order statistics.

    Args:
        values: Independent observations.
        alpha: Two-sided error rate.

    Returns:
        The interval, or None if so few values cannot give one at this rate.
    """
    count = len(values)
    below = special.bdtr(np.arange(count // 2 + 1), count, 0.5)  # chance of at most k values under the median
    rank = int(np.sum(below <= alpha / 2)) - 1
    if rank < 0:
        return None
    ordered = sorted(values)
    return ordered[rank], ordered[count - 1 - rank]


def look_alpha(look: int, *, alpha: float) -> float:
    """Return the share of `alpha` that the look number `look` (from 1) may spend.

    The shares 1/(k(k+1)) add up to one, so by the union bound any number of looks keeps the whole error rate.
    """
    return alpha / (look * (look + 1))


def mcnemar_p(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return the exact two-sided p-value that paired 0/1 scores differ, given their discordant pairs."""
    worse, better = int(np.sum(before > after)), int(np.sum(before < after))
    if worse + better == 0:
        return 1.0
    return float(min(1.0, 2 * special.bdtr(min(worse, better), worse + better, 0.5)))


def paired_p(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return the two-sided p-value that paired scores differ: McNemar for 0/1 scores, else Wilcoxon's signed ranks."""
    if _binary(before) and _binary(after):
        return mcnemar_p(before, after)
    if not np.any(before != after):
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(before, after, zero_method="zsplit").pvalue)


def paired_drop_interval(before: NDArray[np.float64], after: NDArray[np.float64], *,
                         confidence: float) -> tuple[float, float]:
    """Return an interval of `mean(before) - mean(after)` for paired scores of shape `(N,)`.

    0/1 scores get Agresti and Min's adjusted Wald interval, which stays honest when nothing flipped; other scores
    a percentile bootstrap over pairs with a fixed seed.
    """
    differences = before - after
    count = len(differences)
    if _binary(before) and _binary(after):
        worse, better = np.sum(differences > 0) + 0.5, np.sum(differences < 0) + 0.5
        adjusted = count + 2
        centre = (worse - better) / adjusted
        spread = np.sqrt((worse + better) / adjusted - centre**2) / np.sqrt(adjusted)
        reach = special.ndtri(0.5 + confidence / 2) * spread
        return float(max(-1.0, centre - reach)), float(min(1.0, centre + reach))
    if count < 2 or not np.any(differences != differences[0]):
        return float(differences.mean()), float(differences.mean())
    from scipy import stats

    found = stats.bootstrap((differences,), np.mean, confidence_level=confidence, n_resamples=_RESAMPLES,
                            method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def above_chance(hits: int, *, samples: int, chance: float, alpha: float) -> bool:
    """Whether `hits` of `samples` is significantly more than guessing with probability `chance` gives."""
    if chance >= 1:
        return False
    return bool(special.bdtrc(hits - 1, samples, chance) < alpha) if hits > 0 else False


def _binary(scores: NDArray[np.float64]) -> bool:
    return bool(np.all((scores == 0) | (scores == 1)))
