"""The exact oracle: which codes are right, by hand-computed cases and by properties."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.properties.ops import QParams
from pytest_qat.properties.oracle import (
    Codes,
    back_slack,
    codes_of,
    dequantized,
    is_power_of_two,
    round_trip_bound,
    stands_for,
    unclamped,
)

FIFTEENTH = 0.06666667014360428  # 1 / 15 in float32
EIGHT_BITS = QParams()
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def params(scale: float = 1.0, zero_point: int = 0) -> QParams:
    return QParams(scale=scale, zero_point=zero_point)


@pytest.mark.parametrize(("x", "even", "away", "up"), [
    (0.5, 0, 1, 1), (1.5, 2, 2, 2), (2.5, 2, 3, 3), (-0.5, 0, -1, 0), (-1.5, -2, -2, -1), (-2.5, -2, -3, -2),
    (0.49999997, 0, 0, 0), (0.50000006, 1, 1, 1), (-0.50000006, -1, -1, -1)])
def test_ties_go_where_the_rounding_says(x: float, even: int, away: int, up: int) -> None:
    found = [codes_of(x, EIGHT_BITS, rounding) for rounding in ("half_even", "half_away", "half_up")]
    assert found == [Codes(even, even), Codes(away, away), Codes(up, up)]


@pytest.mark.parametrize(("low", "high", "text"), [(7, 7, "7"), (7, 8, "7 or 8"), (7, 9, "7 to 9")])
def test_codes_are_written_as_one_two_or_a_range(low: int, high: int, text: str) -> None:
    assert str(Codes(low, high)) == text


@pytest.mark.parametrize(("x", "zero_point", "code"), [(2.5, 1, 3), (2.5, 0, 2), (3.5, 1, 5), (-2.5, 3, 1)])
def test_rounding_comes_before_the_zero_point(x: float, zero_point: int, code: int) -> None:
    assert codes_of(x, params(zero_point=zero_point)) == Codes(code, code)


@pytest.mark.parametrize(("x", "low", "high"), [(757.5, 50, 51), (757.0, 50, 50), (758.0, 51, 51), (-757.5, -51, -50)])
def test_beside_a_tie_both_neighbors_are_right_if_the_product_is_not_exact(x: float, low: int, high: int) -> None:
    """757.5 times fl(1/15) is 50.500004: rounding up is no bug (pytorch#139464)."""
    assert codes_of(x, params(scale=15.0)) == Codes(low, high)


def test_beside_a_tie_there_is_one_answer_if_the_product_is_exact() -> None:
    assert codes_of(50.5 * 16, params(scale=16.0)) == Codes(50, 50)


@pytest.mark.parametrize(("x", "code"), [(1e30, 127), (-1e30, -128), (math.inf, 127), (-math.inf, -128), (127.5, 127),
                                         (-128.5, -128), (0.0, 0), (-0.0, 0), (2.0**-149, 0)])
def test_the_range_saturates(x: float, code: int) -> None:
    assert codes_of(x, EIGHT_BITS) == Codes(code, code)


def test_before_clamping_there_is_no_end() -> None:
    assert unclamped(1000.0, params(zero_point=5)) == Codes(1005, 1005)


@pytest.mark.parametrize(("scale", "exact"), [(1.0, True), (0.5, True), (2.0**-100, True), (3.0, False),
                                              (FIFTEENTH, False)])
def test_powers_of_two_are_told_by_their_mantissa(scale: float, exact: bool) -> None:
    assert is_power_of_two(scale) is exact


def test_a_code_stands_for_its_distance_from_the_zero_point_in_steps() -> None:
    assert dequantized(10, params(scale=0.25, zero_point=-2)) == Fraction(3)


def test_the_slack_of_coming_back_is_a_rounding_of_both_products() -> None:
    assert back_slack(10, params(scale=2.0, zero_point=4)) == Fraction(2 * (6 + 4), 2**23)


@pytest.mark.parametrize(("number", "right"), [(3.0, True), (3.0000002, True), (3.00001, False), (math.nan, False),
                                               (math.inf, False), (-3.0, False)])
def test_a_number_stands_for_a_code_or_not(number: float, right: bool) -> None:
    assert stands_for(number, 12, params(scale=0.25)) is right


def test_a_further_relative_error_is_allowed_where_it_is_given() -> None:
    assert not stands_for(3.01, 12, params(scale=0.25))
    assert stands_for(3.01, 12, params(scale=0.25), relative=Fraction(1, 256))


@given(FLOATS, st.integers(-40, 40), st.integers(-128, 127))
def test_with_exact_products_it_is_python_s_own_rounding(x: float, power: int, zero_point: int) -> None:
    found = codes_of(x, params(scale=2.0**power, zero_point=zero_point))
    expected = min(max(round(Fraction(x) / Fraction(2)**power) + zero_point, -128), 127)
    assert found == Codes(expected, expected)


@given(FLOATS, st.floats(2.0**-60, 2.0**60, width=32), st.integers(-128, 127))
def test_the_right_codes_are_one_or_two_neighbors_and_within_the_bound(x: float, scale: float,
                                                                       zero_point: int) -> None:
    qparams = params(scale=scale, zero_point=zero_point)
    found = codes_of(x, qparams)
    assert 0 <= found.high - found.low <= 1
    inside = unclamped(x, qparams).low > -128 and unclamped(x, qparams).high < 127
    if inside:
        assert all(abs(dequantized(code, qparams) - Fraction(x)) <= round_trip_bound(x, qparams) for code in found)
