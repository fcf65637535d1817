"""Statistics on plain numbers, against exact counting, hand calculation and simulation."""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate

from pytest_qat.measure.statistics import (
    above_chance,
    mcnemar_p,
    median_interval,
    paired_drop_interval,
    paired_p,
    samples_to_prove,
)
from tests.measure.coins import chance_of_heads

STABLE = settings(deadline=None, derandomize=True)
ALPHAS = [0.01, 0.05, 0.1, 0.3]


def flips(*, worse: int, better: int, samples: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Paired 0/1 scores with so many samples lost and won."""
    before, after = np.zeros(samples), np.zeros(samples)
    before[:worse] = 1
    after[worse:worse + better] = 1
    before[worse + better:] = after[worse + better:] = 1
    return before, after


# -- the interval of a median ---------------------------------------------------------------------------------------


def needed(count: int, alpha: float) -> int | None:
    """How many of `count` observations must lie above a value to rule it out: from its interval."""
    interval = median_interval(range(count), alpha=alpha)
    if interval is None:
        return None
    low, high = int(interval[0]), int(interval[1])
    assert low + high == count - 1, "the interval leaves out as many below as above"
    return count - low


def evidence(above: int, below: int) -> Fraction:
    """The likelihood ratio against a fair coin, averaged over all chances from a half to one: exact.

    It is twice the integral of (2p)^above (2 - 2p)^below, term by term of the second power's binomial expansion.
    """
    integral = sum((Fraction((-1)**power * math.comb(below, power), above + power + 1)
                    * (1 - Fraction(1, 2**(above + power + 1))) for power in range(below + 1)), Fraction(0))
    return 2**(above + below + 1) * integral


def chance_to_be_ruled_out(alpha: float, looks: int) -> float:
    """How likely fair coins ever show so many heads that they rule the truth out."""
    most = [needed(count, alpha) or count + 1 for count in range(looks + 1)]
    return chance_of_heads(looks, lambda heads, tails: heads >= most[heads + tails])


@pytest.mark.parametrize(("count", "alpha", "ranks"), [
    (0, 0.05, None), (1, 0.05, None), (7, 0.05, None), (8, 0.05, (0, 7)), (10, 0.05, (0, 9)), (12, 0.05, (1, 10)),
    (15, 0.05, (1, 13)), (20, 0.05, (3, 16)), (40, 0.05, (10, 29)), (100, 0.05, (34, 65)), (1000, 0.05, (444, 555)),
    (10, 0.01, None), (11, 0.01, (0, 10)), (3, 0.5, None), (4, 0.5, (0, 3)),
])
def test_the_interval_of_a_median_ends_at_the_tabulated_order_statistics(
        count: int, alpha: float, ranks: tuple[int, int] | None) -> None:
    assert median_interval([float(value) for value in range(count)], alpha=alpha) == ranks


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.001, 0.5, 0.9])
def test_a_value_is_ruled_out_as_soon_as_the_exact_evidence_reaches_its_threshold(alpha: float) -> None:
    for count in range(81):
        enough = [above for above in range((count + 1) // 2, count + 1)
                  if evidence(above, count - above) >= 2 / Fraction(alpha)]
        assert needed(count, alpha) == (enough[0] if enough else None), count


@pytest.mark.parametrize("count", [200, 350, 500])
def test_the_evidence_is_right_for_many_observations_too(count: int) -> None:
    most = needed(count, 0.05)
    assert most is not None

    def numerically(above: int) -> float:
        peak = max(0.5, above / count)
        return 2 * float(integrate.quad(lambda p: (2 * p)**above * (2 - 2 * p)**(count - above), 0.5, 1,
                                        points=[peak], limit=200)[0])

    assert numerically(most - 1) < 2 / 0.05 <= numerically(most)


def test_under_eight_observations_there_is_no_interval_at_the_usual_error_rate() -> None:
    assert [count for count in range(200) if needed(count, 0.05) is None] == list(range(8))


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_the_interval_of_very_many_observations_has_the_width_that_theory_says(count: int) -> None:
    most = needed(count, 0.05)
    assert most is not None
    # Robbins (1970): the boundary of this mixture is about sqrt(count (log(count) + constants)) / 2
    assert 0.5 < (most - count / 2) / (math.sqrt(count * math.log(count)) / 2) < 1.5


@STABLE
@given(st.integers(0, 300), st.floats(1e-6, 0.99), st.floats(1e-6, 0.99))
def test_a_smaller_error_rate_never_narrows_the_interval(count: int, one: float, other: float) -> None:
    strict, lax = (needed(count, alpha) or count + 1 for alpha in sorted((one, other)))
    assert strict >= lax


@STABLE
@given(st.integers(8, 400), st.sampled_from(ALPHAS[1:]))
def test_one_observation_more_raises_the_needed_count_by_one_at_most(count: int, alpha: float) -> None:
    before, after = needed(count, alpha), needed(count + 1, alpha)
    assert before is not None
    assert after is not None
    assert before <= after <= before + 1


@STABLE
@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=40), st.sampled_from(ALPHAS[1:]))
def test_the_interval_holds_the_median_of_its_own_sample(values: list[float], alpha: float) -> None:
    interval = median_interval(sorted(values), alpha=alpha)
    assert interval is not None
    assert interval[0] <= float(np.median(values)) <= interval[1]


@STABLE
@given(st.lists(st.integers(-50, 50), min_size=8, max_size=40), st.sampled_from(ALPHAS[1:]),
       st.sampled_from([math.exp, math.atan, lambda value: value**3, lambda value: 2 * value - 7]))
def test_the_interval_follows_the_observations_through_any_rising_or_falling_map(
        values: list[int], alpha: float, rising: Callable[[float], float]) -> None:
    interval = median_interval(sorted(values), alpha=alpha)
    assert interval is not None
    low, high = interval
    assert median_interval(sorted(rising(value) for value in values), alpha=alpha) == (rising(low), rising(high))
    assert median_interval(sorted(-rising(value) for value in values), alpha=alpha) == (-rising(high), -rising(low))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3, 0.9])
def test_looking_after_every_observation_rules_the_truth_out_no_more_often_than_promised(alpha: float) -> None:
    by_looks = [chance_to_be_ruled_out(alpha, looks) for looks in (50, 400)]
    assert 0 < by_looks[0] < by_looks[1] <= alpha / 2
    assert by_looks[1] > alpha / 8, "far stricter than it need be"


@pytest.mark.parametrize("name", ["lognormal", "spread that changes", "two values"])
def test_all_looks_together_cover_the_true_median_of_a_skewed_law_as_often_as_counting_says(name: str) -> None:
    generator, runs, looks = np.random.default_rng(7), 1500, 60
    draws = generator.lognormal(size=(runs, looks)) - 1  # true median: 0
    if name == "spread that changes":
        draws *= np.exp(3 * np.sin(np.arange(looks)))
    elif name == "two values":
        draws = np.where(draws > 0, 9.0, -0.1)
    below = above = 0
    for row in draws.tolist():
        ordered: list[float] = []
        for value in row:
            insort(ordered, value)
            low, high = median_interval(ordered, alpha=0.05) or (-math.inf, math.inf)
            if not low <= 0 <= high:
                below, above = below + (high < 0), above + (low > 0)
                break
    exact = chance_to_be_ruled_out(0.05, looks)
    margin = 4 * math.sqrt(exact * (1 - exact) / runs)
    assert below / runs == pytest.approx(exact, abs=margin)
    assert above / runs == pytest.approx(exact, abs=margin)
    assert below + above <= 0.05 * runs


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


def swapped(differences: list[int]) -> Fraction:
    """The p-value of swapping the two scores of every subset of samples: exact, by enumeration."""
    sums = [sum(sign * value for sign, value in zip(signs, differences, strict=True))
            for signs in itertools.product((-1, 1), repeat=len(differences))]
    seen = sum(differences)
    tail = min(sum(value >= seen for value in sums), sum(value <= seen for value in sums))
    return min(Fraction(1), Fraction(2 * tail, len(sums)))


def test_scores_on_a_scale_are_compared_by_swapping_each_sample_s_two() -> None:
    before = np.linspace(0.1, 0.9, 10)
    assert paired_p(before, before - np.linspace(0.01, 0.1, 10)) == pytest.approx(2 / 2**10)
    assert paired_p(before, before - np.array([0.01, -0.02] * 5)) > 0.15


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(-8, 8), min_size=2, max_size=9).filter(any))
def test_few_scores_on_a_scale_give_the_exact_p_value_of_all_swaps(eighths: list[int]) -> None:
    before = np.full(len(eighths), 1.5)  # eighths are exact, so that ties are
    after = before - np.array(eighths) / 8
    exact = float(swapped(eighths))
    assert paired_p(before, after) == pytest.approx(exact, rel=1e-12)
    assert paired_p(after, before) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("samples", [12, 13, 40, 300])
def test_the_p_value_of_scores_on_a_scale_is_reproducible_symmetric_and_never_zero(samples: int) -> None:
    generator = np.random.default_rng(samples)
    before = generator.normal(2, 1, samples)
    for after in (before + generator.normal(0, 1, samples), before - 1 - generator.random(samples)):
        p = paired_p(before, after)
        assert 0 < p <= 1
        assert p == paired_p(before, after)
        assert p == pytest.approx(paired_p(after, before), rel=1e-12)
    assert p < 0.001, "every sample lost"


def test_the_p_value_of_many_scores_on_a_scale_agrees_with_the_normal_law() -> None:
    generator = np.random.default_rng(5)
    differences = generator.standard_t(5, 400)
    for shift in (0.0, 0.08, 0.12):
        moved = differences - differences.mean() + shift
        z = moved.sum() / math.sqrt(float(np.sum(moved**2)))
        expected = math.erfc(abs(z) / math.sqrt(2))
        assert paired_p(moved + 0.5, np.full(400, 0.5)) == pytest.approx(expected, abs=0.03)


def test_scores_on_a_scale_that_do_not_differ_are_rarely_told_apart() -> None:
    generator = np.random.default_rng(2)
    rounds = 300
    found = sum(paired_p(generator.normal(0.8, 0.1, 8), generator.normal(0.8, 0.1, 8)) <= 0.05 for _ in range(rounds))
    assert found / rounds == pytest.approx(0.047, abs=4 * math.sqrt(0.047 * 0.953 / rounds))


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


# -- how many samples, and chance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("reach", "samples", "distance", "number"), [
    (0.5, 100, 0.25, 400), (0.5, 100, 0.5, 100), (0.5, 100, 0.75, 100), (0.75, 10, 0.25, 90), (0.25, 7, 0.1, 44),
    (0.0, 100, 0.1, 100),
])
def test_samples_grow_with_the_square_of_how_much_too_far_the_interval_reaches(
        reach: float, samples: int, distance: float, number: int) -> None:
    assert samples_to_prove(reach=reach, samples=samples, distance=distance) == number


@pytest.mark.parametrize("distance", [0.0, -0.2])
@pytest.mark.parametrize("reach", [0.0, 0.1])
def test_no_number_of_samples_proves_a_bound_that_the_estimate_does_not_keep(reach: float, distance: float) -> None:
    assert samples_to_prove(reach=reach, samples=100, distance=distance) is None


@STABLE
@given(st.floats(0.001, 1), st.integers(1, 10_000), st.floats(0.001, 1), st.floats(1, 10))
def test_a_bound_further_off_never_takes_more_samples(reach: float, samples: int, distance: float,
                                                      factor: float) -> None:
    near = samples_to_prove(reach=reach, samples=samples, distance=distance)
    far = samples_to_prove(reach=reach, samples=samples, distance=distance * factor)
    assert near is not None
    assert far is not None
    assert samples <= far <= near


def test_the_samples_said_to_prove_a_bound_do_prove_it() -> None:
    worse, better, samples, bound = 6, 3, 100, 0.05
    drop = (worse - better) / samples
    _, high = paired_drop_interval(*flips(worse=worse, better=better, samples=samples), confidence=0.95)
    assert high > bound
    said = samples_to_prove(reach=high - drop, samples=samples, distance=bound - drop)
    assert said is not None
    for factor, proves in ((1.05, True), (0.9, False)):
        many = factor * said / samples
        scores = flips(worse=round(worse * many), better=round(better * many), samples=round(samples * many))
        assert (paired_drop_interval(*scores, confidence=0.95)[1] <= bound) is proves


@pytest.mark.parametrize(("hits", "samples", "chance", "above"), [
    (10, 10, 0.5, True),  # 1/1024
    (4, 4, 0.5, False),  # 1/16
    (5, 5, 0.5, True),  # 1/32
    (6, 10, 0.5, False), (30, 100, 0.1, True), (10, 100, 0.1, False), (100, 100, 1.0, False), (0, 10, 0.1, False),
])
def test_hits_beat_chance_only_when_guessing_would_rarely_give_them(hits: int, samples: int, chance: float,
                                                                    above: bool) -> None:
    assert above_chance(hits, samples=samples, chance=chance, alpha=0.05) is above


def test_one_sample_or_equal_scores_tell_no_difference() -> None:
    assert paired_p(np.array([0.9]), np.array([0.7])) == 1.0
    assert paired_p(np.full(5000, 0.4), np.full(5000, 0.4)) == 1.0


def test_many_samples_are_compared_as_the_permutations_would() -> None:
    generator = np.random.default_rng(5)
    before = generator.normal(0.5, 0.1, 1000)
    after = before - generator.normal(0.002, 0.02, 1000)
    few = paired_p(before, after)
    many = paired_p(np.tile(before, 2)[:1001], np.tile(after, 2)[:1001])
    assert many == pytest.approx(few, abs=0.01)
    assert paired_p(np.full(2000, 0.5), np.full(2000, 0.4)) == 0.0


@pytest.mark.parametrize(("reach", "distance"), [(0.1, 1e-300), (float("inf"), 0.01), (0.1, 5e-324)])
def test_no_number_of_samples_is_named_where_none_is_within_reason(reach: float, distance: float) -> None:
    assert samples_to_prove(reach=reach, samples=100, distance=distance) is None


def test_one_sample_of_a_score_between_proves_nothing() -> None:
    assert paired_drop_interval(np.array([0.5]), np.array([0.5]), confidence=0.95) == (-np.inf, np.inf)


@pytest.mark.parametrize(("before", "after"), [
    ([0.5, 0.7], [0.5, 0.7]), ([0.5] * 3, [0.495] * 3),  # nothing changed, or all by the same
    ([0.506, 0.504], [0.5, 0.5]),  # two drops, both under a percent
    ([1.0] * 19 + [0.5], [1.0] * 19 + [0.5]), ([3.0, 40.0, 7.0], [3.0, 40.0, 7.0]),  # hits but for one; any range
])
def test_a_handful_of_scores_on_a_scale_does_not_prove_a_drop_of_a_percent(before: list[float],
                                                                           after: list[float]) -> None:
    low, high = paired_drop_interval(np.array(before), np.array(after), confidence=0.95)
    assert low <= np.mean(np.array(before) - np.array(after)) <= high
    assert high > 0.01


def test_scores_that_hardly_ever_change_get_the_width_of_hits_and_misses() -> None:
    before = np.linspace(0, 1, 1000)
    low, high = paired_drop_interval(before, before - 0.2 * (np.arange(1000) == 500), confidence=0.95)
    assert (low * 1002, high * 1002) == pytest.approx((0.2 - 1.959964 * 1.0198, 0.2 + 1.959964 * 1.0198), rel=0.01)


def test_few_scores_on_a_scale_get_student_s_interval_where_the_bootstrap_is_narrower() -> None:
    differences = np.array([0.02, 0.05, 0.01, 0.04])
    low, high = paired_drop_interval(0.5 + differences, np.full(4, 0.5), confidence=0.95)
    reach = 3.182446 * differences.std(ddof=1) / 2
    assert (low, high) == pytest.approx((0.03 - reach, 0.03 + reach), abs=1e-6)
