"""What the tests of verdicts share: outcomes and their rank, tolerances of every kind, and what every verdict is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.bootstrap import Resampling
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, Verdict

STABLE = settings(deadline=None, derandomize=True)
PASSED, FAILED, INCONCLUSIVE = Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE
RANK = {FAILED: 0, INCONCLUSIVE: 1, PASSED: 2}
FRACTION = st.floats(0, 1)
MEAN = st.integers(0, 10**6).map(lambda hits: hits / 10**6)
"""A score over a million samples."""
TOLERANCES = st.builds(
    Tolerances, accuracy_drop=MEAN, min_accuracy=st.none() | FRACTION,
    min_speedup=st.floats(0, 1e300), min_size_reduction=st.floats(0, 1e300), min_coverage=st.none() | FRACTION)


def accuracy(**changes: Any) -> Accuracy:
    fields = {"fp32": 0.9, "int8": 0.9, "ptq": 0.9, "fine_tuned": 0.9, "drop": 0.0, "drop_ci": (-0.005, 0.005),
              "p_value": 1.0, "ptq_p_value": 1.0, "fine_tuned_p_value": 1.0, "samples": 1000, "provable_drop": 0.005,
              "flips": (), "flipped": 7, "kind": "metric", "is_fraction": True}
    return Accuracy(**{**fields, **changes})


ANY = st.floats(allow_nan=False)
"""Every number there is, the infinite ones among them."""


@st.composite
def accuracies(draw: st.DrawFn) -> Accuracy:
    """What evaluation can find; intervals reach at least a millionth, as those of samples do."""
    fp32, int8 = draw(MEAN), draw(MEAN)
    ptq, fine_tuned = draw(st.none() | MEAN), draw(st.none() | MEAN)
    drop = fp32 - int8
    reach = st.floats(1e-6, 1)
    majority, control_p, twin_p = draw(FRACTION), draw(FRACTION), draw(FRACTION)
    return accuracy(
        fp32=fp32, int8=int8, ptq=ptq, drop=drop, drop_ci=(drop - draw(reach), drop + draw(reach)),
        p_value=draw(FRACTION), ptq_p_value=None if ptq is None else control_p, samples=draw(st.integers(1, 10**6)),
        fine_tuned=fine_tuned, fine_tuned_p_value=None if fine_tuned is None else twin_p,
        provable_drop=draw(reach), flipped=draw(st.integers(0, 10**6)), is_fraction=draw(st.booleans()),
        kind=draw(st.sampled_from(["metric", "agreement"])), at_chance=draw(st.booleans()), majority=majority,
        sqnr_db=draw(st.none() | st.floats(-100, 100) | st.just(math.inf)))


@st.composite
def wild_accuracies(draw: st.DrawFn) -> Accuracy:
    """Any numbers at all, whether they go together or not."""
    return accuracy(
        fp32=draw(ANY), int8=draw(ANY), ptq=draw(ANY), fine_tuned=draw(ANY),
        drop=draw(MEAN | st.sampled_from([-math.inf, math.inf, -1e6, 1e6])),
        drop_ci=(draw(ANY), draw(st.just(-math.inf) | st.just(0.0) | st.floats(-1, 0.01))), p_value=draw(FRACTION),
        ptq_p_value=draw(st.none() | FRACTION), fine_tuned_p_value=draw(st.none() | FRACTION),
        provable_drop=draw(ANY), is_fraction=draw(st.booleans()), at_chance=draw(st.booleans()),
        majority=draw(FRACTION), kind=draw(st.sampled_from(["metric", "set_metric", "agreement"])),
        resampling=draw(st.none() | st.builds(resampling, count=st.integers(0, 60), samples=st.integers(1, 60),
                                              undefined=st.integers(0, 9))),
        shuffled=draw(st.none() | FRACTION), ragged=draw(st.sampled_from([(), ("output [0] is other",)])),
        same_class=draw(st.none() | FRACTION), metric=draw(st.sampled_from([None, "auc", "relative error"])))


def resampling(*, count: int = 1000, samples: int = 1000, undefined: int = 0, elapsed_s: float = 1.0) -> Resampling:
    return Resampling(scores={"fp32": np.zeros(count), "int8": np.zeros(count)}, samples=samples, undefined=undefined,
                      undefined_because="ValueError: one class" if undefined else "", elapsed_s=elapsed_s)


def is_whole(verdict: Verdict) -> None:
    """An outcome, and sentences."""
    assert verdict.outcome in (PASSED, FAILED, INCONCLUSIVE)
    assert verdict.reasons
    assert all(reason.endswith(".") for reason in verdict.reasons)
