"""Numbers as messages and reports write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.core.text import fixed, percent


@pytest.mark.parametrize(("share", "text"), [
    (0.0, "0.0%"), (1.0, "100.0%"), (0.5, "50.0%"), (0.1234, "12.3%"), (0.0003, "0.03%"), (0.9997, "99.97%"),
    (1e-9, "<0.0001%"), (1 - 1e-9, ">99.9999%"), (-0.0003, "-0.03%"), (-1e-9, ">-0.0001%"), (1.0004, "100.04%"),
    (-0.0, "0.0%"), (2.5, "250.0%"), (math.inf, "inf%"),
])
def test_a_percentage_never_rounds_to_all_or_nothing(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("share", "floor", "text"), [
    (0.09996, 0.1, "9.996%"), (0.1, 0.1, "10.0%"), (0.2, 0.1, "20.0%"), (0.1 - 1e-12, 0.1, ">9.9999%")])
def test_a_share_below_what_is_required_does_not_look_like_it(share: float, floor: float, text: str) -> None:
    assert percent(share, unlike=floor) == text


def test_digits_are_the_fewest_and_two_serve_scores() -> None:
    assert [percent(share, digits=digits) for share, digits in ((0.5, 0), (0.123456, 2), (0.999999, 2))] == [
        "50%", "12.35%", "99.9999%"]


@given(share=st.floats(0, 1), digits=st.integers(0, 2))
def test_only_nothing_shows_as_nothing_and_only_all_as_all(share: float, digits: int) -> None:
    text = percent(share, digits=digits)
    assert (share == 0) == (text.strip("0.%") == "")
    assert (share == 1) == (text.rstrip("%").rstrip("0").rstrip(".") in {"1", "10", "100"} and text[:3] == "100")


@pytest.mark.parametrize(("value", "digits", "unlike", "text"), [
    (21.16, 1, 21.2, "21.16"), (21.2, 1, 21.2, "21.2"), (18.34, 1, 21.2, "18.3"), (0.997, 2, 1.0, "0.997"),
    (1.0003, 2, 1.0, "1.0003"), (0.99999, 2, 1.0, "<1.00"), (1.00001, 2, 1.0, ">1.00"), (math.inf, 2, 1.0, "inf"),
    (0.0, 2, 0.0, "0.00"), (1.5, 2, 1.496, "1.500"),
])
def test_a_number_is_not_taken_for_what_is_required(value: float, digits: int, unlike: float, text: str) -> None:
    assert fixed(value, digits=digits, unlike=unlike) == text


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 3))
def test_two_numbers_never_look_alike(one: float, other: float, digits: int) -> None:
    text = fixed(one, digits=digits, unlike=other)
    assert one == other or text != f"{other:.{len(text.partition('.')[2])}f}"
