"""The paired bootstrap of a score of a whole set: what it draws, when it stops, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pytest_qat.measure.bootstrap import (
    FEWEST_RESAMPLES,
    FEWEST_SAMPLES,
    MOST_RESAMPLES,
    Resampling,
    difference_of,
    resample,
)

SIDES = ("fp32", "int8")


def clock(step_s: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step_s


def means(values: dict[str, NDArray[np.float64]], *, step_s: float = 0.0, budget_s: float = 10.0) -> Resampling:
    """Resample the means of paired values, with a clock that a resample moves on by a step."""
    ticks = clock(step_s)
    return resample(lambda side, index: float(values[side][index].mean()), sides=tuple(values),
                    samples=len(values["fp32"]), budget_s=budget_s, clock=lambda: next(ticks))


def paired(samples: int = 400, *, drop: float = 0.0, noise: float = 0.0) -> dict[str, NDArray[np.float64]]:
    drawn = np.random.default_rng(1)
    before = drawn.normal(0.5, 0.2, samples)
    return {"fp32": before, "int8": before - drop + drawn.normal(0, noise, samples)}


def test_every_side_is_scored_on_the_same_drawn_samples() -> None:
    seen: dict[str, list[list[int]]] = {side: [] for side in SIDES}

    def score(side: str, index: NDArray[np.int64]) -> float:
        seen[side].append(index.tolist())
        return 0.0

    found = resample(score, sides=SIDES, samples=30, budget_s=math.inf)
    assert seen["fp32"] == seen["int8"]
    assert found.count == len(seen["int8"]) == MOST_RESAMPLES
    assert all(len(index) == 30 and set(index) <= set(range(30)) for index in seen["int8"][:20])
    assert len({tuple(index) for index in seen["int8"]}) == MOST_RESAMPLES


def test_what_samples_have_in_common_cancels_out() -> None:
    found = means(paired(drop=0.1))
    assert found.scores["fp32"].std() > 0.005
    assert (found.scores["fp32"] - found.scores["int8"]).std() < 1e-12


def test_resampling_gives_the_same_every_time() -> None:
    one, other = means(paired(noise=0.1)), means(paired(noise=0.1))
    assert np.array_equal(one.scores["int8"], other.scores["int8"])


def test_it_ends_when_the_time_is_used_up() -> None:
    found = means(paired(), step_s=0.125, budget_s=7.5)
    assert found.count == 60
    assert found.elapsed_s == pytest.approx(7.5)
    assert not found.too_slow
    assert found.settles


def test_a_score_that_takes_too_long_is_given_up_after_a_glance() -> None:
    found = means(paired(), step_s=1.0, budget_s=20.0)
    assert found.count == 3
    assert found.too_slow
    assert found.seconds_needed == FEWEST_RESAMPLES
    assert not found.settles


def test_too_few_samples_are_not_drawn_from() -> None:
    found = means(paired(FEWEST_SAMPLES - 1))
    assert found.too_few_samples
    assert not found.too_slow
    assert found.count == 0
    assert means(paired(FEWEST_SAMPLES)).settles


@pytest.mark.parametrize(("rare", "settles"), [(1, False), (3, False), (5, True), (40, True)])
def test_a_score_that_hangs_on_a_few_samples_does_not_settle(rare: int, settles: bool) -> None:
    def score(side: str, index: NDArray[np.int64]) -> float:
        if not np.any(index < rare):
            raise ZeroDivisionError("no sample of the class")
        return 0.5

    found = resample(score, sides=SIDES, samples=200, budget_s=math.inf)
    assert found.count + found.undefined == MOST_RESAMPLES
    assert found.settles is settles
    assert found.undefined_because == ("no sample of the class" if found.undefined else "")
    assert found.undefined / MOST_RESAMPLES == pytest.approx((1 - rare / 200) ** 200, abs=0.04)


def test_a_resample_without_a_score_of_one_side_counts_for_none() -> None:
    def score(side: str, index: NDArray[np.int64]) -> float:
        if side == "int8" and index[0] < 20:
            raise ArithmeticError
        return 1.0

    found = resample(score, sides=SIDES, samples=100, budget_s=math.inf)
    assert len(found.scores["fp32"]) == len(found.scores["int8"]) == MOST_RESAMPLES - found.undefined


# -- what follows ---------------------------------------------------------------------------------------------------


def test_a_clear_drop_is_significant_and_its_interval_excludes_none() -> None:
    found = difference_of(means(paired(drop=0.1, noise=0.05)), *SIDES, estimate=0.1, span=1.0, confidence=0.95)
    assert found.p_value < 0.01
    assert 0.08 < found.interval[0] < 0.1 < found.interval[1] < 0.12


def test_noise_is_not_significant() -> None:
    values = paired(noise=0.05)
    estimate = float(values["fp32"].mean() - values["int8"].mean())
    found = difference_of(means(values), *SIDES, estimate=estimate, span=1.0, confidence=0.95)
    assert found.p_value > 0.05
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize(("samples", "reach"), [(20, 0.0951), (98, 0.0198), (998, 0.00196)])
def test_no_difference_at_all_proves_only_what_so_many_samples_can(samples: int, reach: float) -> None:
    """By hand: t(0.975, n - 1) / (n + 2)."""
    found = difference_of(means(paired(samples)), *SIDES, estimate=0.0, span=1.0, confidence=0.95)
    assert found.p_value == 1
    assert found.interval == pytest.approx((-reach, reach), rel=5e-3)


def test_without_enough_resamples_nothing_follows() -> None:
    found = difference_of(means(paired(), step_s=1.0), *SIDES, estimate=0.4, span=1.0, confidence=0.95)
    assert found.interval == (-math.inf, math.inf)
    assert found.p_value == 1


def test_a_difference_of_nothing_has_a_significance() -> None:
    found = difference_of(means({side: np.ones(30) for side in SIDES}), *SIDES, estimate=0.0, span=0.0,
                          confidence=0.95)
    assert (found.interval, found.p_value) == ((0.0, 0.0), 1.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """The difference of two AUCs of paired noisy scores, whose truth is 0 by symmetry."""
    drawn, covered, significant, runs = np.random.default_rng(3), 0, 0, 60
    for _ in range(runs):
        positive = np.arange(80) < 40
        signal = positive + drawn.normal(0, 1, 80)
        sides = {side: signal + drawn.normal(0, 0.5, 80) for side in SIDES}

        def auc(side: str, index: NDArray[np.int64], sides: dict = sides, positive: NDArray = positive) -> float:
            up, down = sides[side][index][positive[index]], sides[side][index][~positive[index]]
            return float((up[:, None] > down).mean())

        every = np.arange(80)
        found = difference_of(resample(auc, sides=SIDES, samples=80, budget_s=math.inf), *SIDES, span=1.0,
                              estimate=auc("fp32", every) - auc("int8", every), confidence=0.95)
        covered += found.interval[0] <= 0 <= found.interval[1]
        significant += found.p_value < 0.05
    assert covered >= 0.9 * runs
    assert significant <= 0.1 * runs
