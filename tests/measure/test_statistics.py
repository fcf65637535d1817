"""Statistics on plain numbers, against exact counting, hand calculation and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pytest_qat.measure.statistics import (
    above_chance,
    look_alpha,
    mcnemar_p,
    median_interval,
    paired_drop_interval,
    paired_p,
)

STABLE = settings(deadline=None, derandomize=True)
ALPHAS = [0.01, 0.05, 0.1, 0.3]


def at_most(successes: int, trials: int) -> Fraction:
    """Probability of at most so many heads, counted exactly."""
    return Fraction(sum(math.comb(trials, k) for k in range(successes + 1)), 2**trials)


def flips(*, worse: int, better: int, samples: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Paired 0/1 scores with so many samples lost and won."""
    before, after = np.zeros(samples), np.zeros(samples)
    before[:worse] = 1
    after[worse:worse + better] = 1
    before[worse + better:] = after[worse + better:] = 1
    return before, after


# -- the interval of a median ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "alpha", "ranks"), [
    (5, 0.05, None), (6, 0.05, (0, 5)), (8, 0.05, (0, 7)), (9, 0.05, (1, 7)), (10, 0.05, (1, 8)), (20, 0.05, (5, 14)),
    (1, 0.5, None), (3, 0.5, (0, 2)), (0, 0.05, None),
])
def test_the_interval_of_a_median_ends_at_the_tabulated_order_statistics(
        count: int, alpha: float, ranks: tuple[int, int] | None) -> None:
    assert median_interval([float(value) for value in range(count)], alpha=alpha) == ranks


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("count", range(1, 41))
def test_the_interval_of_a_median_is_the_narrowest_that_keeps_its_error_rate(count: int, alpha: float) -> None:
    interval = median_interval(range(count), alpha=alpha)
    rank = -1 if interval is None else int(interval[0])
    missed = 0 if interval is None else 2 * at_most(rank, count)
    assert missed <= Fraction(alpha)
    assert 2 * at_most(rank + 1, count) > Fraction(alpha)


@STABLE
@given(st.permutations(range(12)))
def test_the_interval_of_a_median_does_not_depend_on_the_order(values: list[int]) -> None:
    assert median_interval(values, alpha=0.05) == (2, 9)


@STABLE
@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=40), st.sampled_from(ALPHAS[1:]))
def test_the_interval_holds_the_median_of_its_own_sample(values: list[float], alpha: float) -> None:
    interval = median_interval(values, alpha=alpha)
    assert interval is not None
    assert interval[0] <= float(np.median(values)) <= interval[1]


def test_the_interval_covers_the_true_median_of_a_skewed_law_as_often_as_it_says() -> None:
    draws = np.random.default_rng(7).lognormal(size=(4000, 15))  # true median: 1
    covered = 0
    for draw in draws:
        interval = median_interval(draw.tolist(), alpha=0.05)
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    exact = float(1 - 2 * at_most(3, 15))
    assert covered / len(draws) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / len(draws)))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_any_number_of_looks_spends_no_more_than_the_whole_error_rate(alpha: float) -> None:
    shares = [look_alpha(look, alpha=alpha) for look in range(1, 5001)]
    assert alpha * 0.999 < math.fsum(shares) <= alpha
    assert all(earlier > later > 0 for earlier, later in itertools.pairwise(shares))


# -- paired scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("worse", "better", "p"), [
    (0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (8, 1, 2 * (1 + 9) / 512), (3, 3, 1.0),
    (9, 2, 2 * (1 + 11 + 55) / 2048),
])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(worse: int, better: int, p: float) -> None:
    before, after = flips(worse=worse, better=better, samples=30)
    assert mcnemar_p(before, after) == pytest.approx(p, rel=1e-12)
    assert mcnemar_p(after, before) == pytest.approx(p, rel=1e-12)
    assert paired_p(before, after) == pytest.approx(p, rel=1e-12)


def test_scores_that_agree_everywhere_are_no_evidence() -> None:
    assert paired_p(np.array([0.1, 0.2]), np.array([0.1, 0.2])) == 1.0


def test_scores_on_a_scale_are_compared_by_signed_ranks() -> None:
    before = np.linspace(0.1, 0.9, 10)
    assert paired_p(before, before - np.linspace(0.01, 0.1, 10)) == pytest.approx(2 / 2**10)
    assert paired_p(before, before - np.array([0.01, -0.02] * 5)) > 0.15


@pytest.mark.parametrize(("worse", "better", "samples", "interval"), [
    # (b - c)/(n + 2) -+ 1.959964 sqrt((b + c + 1) - (b - c)^2/(n + 2))/(n + 2)
    (8, 2, 100, (-0.0038761, 0.1215232)),
    (0, 0, 100, (-0.0192153, 0.0192153)),
    (5, 0, 48, (0.0080695, 0.1919305)),
])
def test_the_interval_of_a_drop_is_agresti_and_min_s(worse: int, better: int, samples: int,
                                                     interval: tuple[float, float]) -> None:
    before, after = flips(worse=worse, better=better, samples=samples)
    assert paired_drop_interval(before, after, confidence=0.95) == pytest.approx(interval, abs=1e-6)


@pytest.mark.parametrize("samples", [1, 4, 20, 1000])
def test_an_interval_without_a_single_flip_still_has_a_width(samples: int) -> None:
    low, high = paired_drop_interval(np.ones(samples), np.ones(samples), confidence=0.95)
    assert low < 0 < high
    assert high == pytest.approx(1.959964 / (samples + 2))


@STABLE
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_swapping_the_sides_mirrors_the_interval_of_0_1_scores(worse: int, better: int, same: int) -> None:
    before, after = flips(worse=worse, better=better, samples=worse + better + same + 1)
    low, high = paired_drop_interval(before, after, confidence=0.9)
    assert paired_drop_interval(after, before, confidence=0.9) == pytest.approx((-high, -low))
    assert -1 <= low < (worse - better) / (len(before) + 2) < high <= 1


def test_the_interval_of_a_drop_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered, rounds, samples = 0, 2000, 60
    for _ in range(rounds):
        kinds = generator.choice(3, size=samples, p=[0.08, 0.03, 0.89])  # lost, won, the same: true drop 0.05
        low, high = paired_drop_interval((kinds != 1).astype(float), (kinds != 0).astype(float), confidence=0.95)
        covered += low <= 0.05 <= high
    assert 0.93 < covered / rounds < 0.985


def test_the_interval_of_scores_on_a_scale_is_reproducible_and_holds_the_mean() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(0.8, 0.1, 50)
    after = before - generator.normal(0.05, 0.02, 50)
    low, high = paired_drop_interval(before, after, confidence=0.95)
    assert (low, high) == paired_drop_interval(before, after, confidence=0.95)
    assert 0.03 < low < float(np.mean(before - after)) < high < 0.07
    assert high - low == pytest.approx(2 * 1.96 * 0.02 / math.sqrt(50), rel=0.25)


@pytest.mark.parametrize(("hits", "samples", "chance", "above"), [
    (10, 10, 0.5, True),  # 1/1024
    (4, 4, 0.5, False),  # 1/16
    (5, 5, 0.5, True),  # 1/32
    (6, 10, 0.5, False), (30, 100, 0.1, True), (10, 100, 0.1, False), (100, 100, 1.0, False), (0, 10, 0.1, False),
])
def test_hits_beat_chance_only_when_guessing_would_rarely_give_them(hits: int, samples: int, chance: float,
                                                                    above: bool) -> None:
    assert above_chance(hits, samples=samples, chance=chance, alpha=0.05) is above
