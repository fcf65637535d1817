"""From coverage, parity and size to an outcome: tables, and laws for all numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.measure.coverage import Coverage, Leftover
from pytest_qat.measure.parity import Parity
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import Outcome, judge_coverage, judge_parity, judge_size
from tests.verdict_laws import FAILED, FRACTION, INCONCLUSIVE, PASSED, RANK, STABLE, TOLERANCES, is_whole


def coverage(**changes: Any) -> Coverage:
    fields = {"weights": 100, "int8_weights": 90, "macs": 1000, "int8_macs": 800, "int8_modules": 3, "leftovers": ()}
    return Coverage(**{**fields, **changes})


def left(module: str) -> Leftover:
    return Leftover(module=module, kind="Linear", weights=10, macs=100, reason="it is so")


# -- coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "floor", "outcome"), [
    ({}, None, PASSED), ({}, 0.8, PASSED), ({}, 0.81, FAILED), ({"int8_modules": 0}, None, FAILED),
    ({"int8_macs": 0}, None, FAILED), ({"int8_macs": 0}, 0.01, FAILED), ({"macs": 0, "int8_macs": 0}, None, PASSED),
    ({"int8_macs": 0}, 0.0, PASSED), ({"int8_macs": None}, None, INCONCLUSIVE),
    ({"int8_macs": 99}, None, FAILED), ({"int8_macs": 100}, None, PASSED), ({"int8_macs": 1}, 0.001, PASSED),
    ({"int8_macs": None}, 0.0, PASSED), ({"int8_macs": None}, 0.1, INCONCLUSIVE),
])
def test_coverage_is_judged_by_its_floor_and_never_by_nothing(changes: dict, floor: float | None,
                                                              outcome: Outcome) -> None:
    assert judge_coverage(coverage(**changes), Tolerances(min_coverage=floor)).outcome is outcome


def test_of_what_is_left_in_float_the_first_five_are_named() -> None:
    verdict = judge_coverage(coverage(leftovers=tuple(left(f"layer{index}") for index in range(8))), Tolerances())
    assert "layer4 (it is so) and 3 more" in verdict.reasons[0]
    assert "layer5" not in verdict.reasons[0]
    assert "80.0%" in verdict.reasons[0]
    assert "90.0%" in verdict.reasons[0]


def test_less_than_a_tenth_fails_where_nobody_says_otherwise_and_shows_as_what_it_is() -> None:
    verdict = judge_coverage(coverage(macs=3_146_752, int8_macs=1_024, leftovers=(left("conv"),)), Tolerances())
    assert verdict.outcome is FAILED
    for part in ("0.03%", "conv (it is so)", "10.0%"):
        assert part in verdict.reasons[0]


def test_a_share_just_below_the_floor_does_not_look_like_it() -> None:
    verdict = judge_coverage(coverage(macs=10**6, int8_macs=899_999), Tolerances(min_coverage=0.9))
    assert verdict.reasons[0].startswith("89.9999% of")


def test_a_leftover_is_called_by_its_line_or_kernel_where_it_is_no_module_s() -> None:
    found = tuple(Leftover(module=module, kind="Gemm", weights=0, macs=1, reason="why", place=place)
                  for module, place in (("", "net.py:7"), ("block", "net.py:9"), ("", "")))
    verdict = judge_coverage(coverage(leftovers=found), Tolerances())
    assert "in float: net.py:7 (why), block at net.py:9 (why), a Gemm (why)" in verdict.reasons[0]


def test_too_little_coverage_tells_what_is_required() -> None:
    verdict = judge_coverage(coverage(leftovers=(left("head"),)), Tolerances(min_coverage=0.9))
    assert "head (it is so)" in verdict.reasons[0]
    assert "90.0%" in verdict.reasons[0]


def test_a_model_that_no_runtime_lowered_fails_as_such() -> None:
    verdict = judge_coverage(coverage(reference=True, int8_modules=0), Tolerances())
    assert verdict.outcome is FAILED
    assert "not lowered" in verdict.reasons[0]


@STABLE
@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**15),
       st.integers(0, 5), st.lists(st.sampled_from(["a", "b.c", ""]), max_size=9), TOLERANCES)
def test_every_coverage_has_an_outcome(weights: int, int8_weights: int, macs: int, int8_macs: int, modules: int,
                                       names: list[str], tolerances: Tolerances) -> None:
    verdict = judge_coverage(coverage(
        weights=weights, int8_weights=int8_weights, macs=macs, int8_macs=int8_macs, int8_modules=modules,
        leftovers=tuple(left(name) for name in names)), tolerances)
    is_whole(verdict)
    assert modules or verdict.outcome is FAILED


@STABLE
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 5), FRACTION, FRACTION)
def test_asking_for_less_coverage_never_makes_it_worse(macs: int, part: int, modules: int, one: float,
                                                       other: float) -> None:
    measured = coverage(macs=macs, int8_macs=min(macs, part), int8_modules=modules)
    low, high = sorted((one, other))
    tight, loose, free = (judge_coverage(measured, Tolerances(min_coverage=floor)) for floor in (high, low, 0))
    assert RANK[tight.outcome] <= RANK[loose.outcome] <= RANK[free.outcome]


# -- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sqnr_db", "quantization_sqnr_db", "finite", "outcome"), [
    (40, 30, True, PASSED), (25, 60, True, PASSED), (24.9, 60, True, FAILED), (24.9, 30.9, True, PASSED),
    (10, 16, True, PASSED), (9.9, 16, True, FAILED), (math.inf, math.inf, True, PASSED), (25, math.inf, True, PASSED),
    (24, math.inf, True, FAILED), (-math.inf, 30, True, FAILED), (40, 30, False, FAILED), (math.nan, 30, True, FAILED),
    (math.nan, math.nan, False, FAILED),
])
def test_parity_is_judged_by_25_db_or_by_quantization_s_own_noise(sqnr_db: float, quantization_sqnr_db: float,
                                                                  finite: bool, outcome: Outcome) -> None:
    measured = Parity(sqnr_db=sqnr_db, quantization_sqnr_db=quantization_sqnr_db, finite=finite)
    assert judge_parity(measured).outcome is outcome


def test_a_prepared_model_that_returns_nan_holds_nobody_to_anything() -> None:
    verdict = judge_parity(Parity(sqnr_db=-math.inf, quantization_sqnr_db=-math.inf, finite=True,
                                  prepared_finite=False))
    assert verdict.outcome is FAILED
    assert "the prepared model returns NaN or infinity" in verdict.reasons[0]


def test_the_output_that_differs_most_is_named() -> None:
    verdict = judge_parity(Parity(sqnr_db=3, quantization_sqnr_db=30, finite=True, output="['scores']"))
    assert "3.0 dB in output ['scores']" in verdict.reasons[0]


@STABLE
@given(st.floats(), st.floats(), st.booleans())
def test_every_parity_has_an_outcome(sqnr_db: float, own: float, finite: bool) -> None:
    is_whole(judge_parity(Parity(sqnr_db=sqnr_db, quantization_sqnr_db=own, finite=finite)))


def test_forms_that_are_equal_are_told_without_a_number_that_is_none() -> None:
    [reason] = judge_parity(Parity(sqnr_db=math.inf, quantization_sqnr_db=31.0, finite=True)).reasons
    assert "exactly" in reason
    assert "31.0 dB" in reason


@STABLE
@given(st.floats(-100, 200), st.floats(-100, 200), st.floats(0, 50))
def test_less_noise_never_makes_parity_worse(sqnr_db: float, own: float, gain: float) -> None:
    worse, better = (judge_parity(Parity(sqnr_db=value, quantization_sqnr_db=own, finite=True))
                     for value in (sqnr_db, sqnr_db + gain))
    assert RANK[better.outcome] >= RANK[worse.outcome]


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fp32", "int8", "required", "outcome"), [
    (4000, 1000, 4.0, PASSED), (4000, 1000, 4.001, FAILED), (1000, 1000, 1.0, PASSED), (1000, 1001, 1.0, FAILED),
    (1000, 10**9, 0.0, PASSED),
])
def test_size_is_judged_by_the_ratio_of_bytes(fp32: int, int8: int, required: float, outcome: Outcome) -> None:
    verdict = judge_size(fp32, int8, Tolerances(min_size_reduction=required))
    assert verdict.outcome is outcome
    assert f"{fp32 / int8:.2f}x" in verdict.reasons[0]
    assert f"{required:.2f}x" in verdict.reasons[0]


@STABLE
@given(st.integers(1, 10**12), st.integers(1, 10**12), st.floats(0, 1e6), st.floats(0, 1e6))
def test_asking_for_less_reduction_never_makes_size_worse(fp32: int, int8: int, one: float, other: float) -> None:
    loose, tight = (judge_size(fp32, int8, Tolerances(min_size_reduction=ratio)) for ratio in sorted((one, other)))
    assert RANK[loose.outcome] >= RANK[tight.outcome]


@STABLE
@given(st.integers(0, 10**15), st.integers(0, 10**15), TOLERANCES)
def test_every_size_has_an_outcome(fp32: int, int8: int, tolerances: Tolerances) -> None:
    verdict = judge_size(fp32, int8, tolerances)
    is_whole(verdict)
    assert verdict.outcome is not INCONCLUSIVE
