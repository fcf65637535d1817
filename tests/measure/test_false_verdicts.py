"""How often a comparison is wrong: thousands of whole measurements of scripted, noisy machines.

The true ratio lies a hair beside the floor, where a wrong verdict is easiest, and the margin is 1, so that measuring
stops at the first look that seems sure: nothing is harder for an interval that is looked at after every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pytest_qat.measure.latency import Speedup, TimingSettings, compare_latency
from pytest_qat.measure.statistics import median_interval
from tests.measure.coins import chance_of_heads

FLOOR = 1.0
HAIR = 1e-6
RUNS = 2500
"""For each of two laws and two directions: 10,000 for each kind of noise."""
POWER_RUNS = 400
PAIRS, POWER_PAIRS = 20, 120
COST_NS = 1_000_000_000
ALPHA = 0.05

Noise = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


def short_blocks(*, margin: float, pairs: int) -> TimingSettings:
    """Blocks of one call thrown away and three timed; calibration takes two calls a side."""
    return TimingSettings(confidence=1 - ALPHA, max_time_s=1e9, block_s=1e-6, discard_s=0, margin=margin,
                          max_pairs=pairs)


def calls_of(pairs: int) -> int:
    return 2 * 2 + pairs * 2 * 4


class Machine:
    """A clock that only its two sides move; each call takes the machine's next slowness times its side's cost."""

    def __init__(self, slowness: list[float]) -> None:
        self.now = 0
        self._slowness: Iterator[float] = iter(slowness)

    def now_ns(self) -> int:
        return self.now

    def waited_ns(self) -> int:
        return 0

    def side(self, cost: float) -> Callable[[], None]:
        following = self._slowness.__next__

        def call() -> None:
            self.now += int(cost * following())
        return call

    def compare(self, ratio: float, settings: TimingSettings) -> Speedup:
        return compare_latency(self.side(ratio * COST_NS), self.side(COST_NS), settings=settings, floor=FLOOR,
                               clock=self)


# -- laws of noise: the slowness of each call, one row a run --------------------------------------------------------


def jitter(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return generator.lognormal(0, 0.01, shape)


def lognormal(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return generator.lognormal(0, 0.3, shape)


def spikes(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """One call in five is three times as slow on average, with a long tail."""
    hit = generator.random(shape) < 0.2
    return jitter(generator, shape) + hit * generator.exponential(2.0, shape)


def bursts(mean_calls: int) -> Noise:
    """A machine that is half the time twice as slow, in bursts of this mean length, for whichever side runs."""
    def law(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
        switches = generator.random(shape) < 1 / mean_calls
        switches[:, 0] = generator.random(shape[0]) < 0.5
        return (1 + np.cumsum(switches, axis=1) % 2) * jitter(generator, shape)
    return law


def in_step(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """A neighbor that comes and goes with the rhythm of two pairs of blocks, sixteen calls."""
    phase = generator.integers(0, 16, (shape[0], 1))
    return (1 + ((np.arange(shape[1]) + phase) % 16 < 8)) * jitter(generator, shape)


def random_walk(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return np.exp(np.cumsum(generator.normal(0, 0.02, shape), axis=1)) * jitter(generator, shape)


def linear(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """A machine that gets steadily slower or faster, by up to a half over the run."""
    slope = generator.uniform(-0.5, 0.5, (shape[0], 1))
    return (1 + slope * np.linspace(0, 1, shape[1])) * jitter(generator, shape)


LAWS = [pytest.param(lognormal, id="skewed-lognormal"), pytest.param(spikes, id="skewed-spikes"),
        pytest.param(bursts(80), id="bursts-of-ten-pairs"), pytest.param(bursts(4), id="bursts-of-a-block"),
        pytest.param(in_step, id="bursts-in-step-with-pairs"),
        pytest.param(random_walk, id="drift-random-walk"), pytest.param(linear, id="drift-linear")]
INDEPENDENT = LAWS[:2]


@cache
def outcomes(law: Noise, *, ratio: float, settings: TimingSettings, runs: int, seed: int) -> tuple[int, int]:
    """Measure so many machines; return how often the interval said 'reaches the floor' and how often 'misses it'."""
    reached = missed = 0
    assert settings.max_pairs is not None
    for slowness in law(np.random.default_rng(seed), (runs, calls_of(settings.max_pairs))):
        low, high = Machine(slowness.tolist()).compare(ratio, settings).ci
        reached += low >= FLOOR
        missed += high < FLOOR
    return reached, missed


def a_hair_beside(law: Noise, *, below: bool) -> tuple[int, int]:
    """How often runs with a true ratio just beside the floor got the wrong verdict, and how often the right one."""
    reached, missed = outcomes(law, ratio=FLOOR * (1 - HAIR if below else 1 + HAIR),
                               settings=short_blocks(margin=1, pairs=PAIRS), runs=RUNS, seed=11 + below)
    return (reached, missed) if below else (missed, reached)


def greatest_rate(wrong: int, runs: int) -> float:
    """Return the greatest true rate that fits so few wrong verdicts: an exact one-sided bound of 99.9 %."""
    return float(stats.binomtest(wrong, runs, alternative="less").proportion_ci(0.999, method="exact").high)


def chance_of_settling_on_heads() -> float:
    """Return how likely fair coins, looked at after each, settle on heads before tails."""
    def says(heads: int, tails: int) -> int:
        low, high = median_interval([-1] * tails + [1] * heads, alpha=ALPHA) or (-1, 1)
        return int(low + high)  # both ends are -1 or 1

    return chance_of_heads(PAIRS, says)


@pytest.mark.parametrize("below", [True, False], ids=["just-below", "just-above"])
@pytest.mark.parametrize("law", LAWS)
def test_a_ratio_a_hair_beside_the_floor_gets_the_wrong_verdict_no_more_often_than_promised(
        law: Noise, below: bool) -> None:
    wrong, _ = a_hair_beside(law, below=below)
    assert greatest_rate(wrong, RUNS) <= ALPHA


@pytest.mark.parametrize("below", [True, False], ids=["just-below", "just-above"])
@pytest.mark.parametrize("law", INDEPENDENT)
def test_independent_noise_gives_exactly_the_rate_of_wrong_verdicts_that_counting_paths_gives(
        law: Noise, below: bool) -> None:
    expected = chance_of_settling_on_heads()
    assert 0.001 < expected <= ALPHA / 2
    for settled in a_hair_beside(law, below=below):
        assert stats.binomtest(settled, RUNS, expected).pvalue > 0.001


@pytest.mark.parametrize("ratio", [1.5, 1 / 1.5], ids=["above", "below"])
@pytest.mark.parametrize("law", LAWS)
def test_a_ratio_half_as_large_again_as_the_floor_is_decided_rightly(law: Noise, ratio: float) -> None:
    reached, missed = outcomes(law, ratio=ratio * FLOOR, settings=short_blocks(margin=1.1, pairs=POWER_PAIRS),
                               runs=POWER_RUNS, seed=3)
    right, wrong = (reached, missed) if ratio > 1 else (missed, reached)
    assert wrong == 0
    if law is not in_step:  # which makes half of all runs inconclusive, as it should
        assert right >= 0.99 * POWER_RUNS
