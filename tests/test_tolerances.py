"""Tolerances and the parsing of their values."""

from __future__ import annotations

import copy
import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.core.parsing import parse_fraction, parse_ratio
from pytest_qat.errors import InvalidOption
from pytest_qat.tolerances import Tolerances

STABLE = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(("value", "fraction"), [
    (0.01, 0.01), ("0.01", 0.01), ("1%", 0.01), (" 1 % ", 0.01), ("0.5%", 0.005), ("100%", 1.0), (1.0, 1.0),
    ("1.0", 1.0), (0, 0.0), ("0%", 0.0), ("1e-3", 0.001),
])
def test_a_fraction_is_read_as_a_number_or_a_percentage(value: object, fraction: float) -> None:
    assert parse_fraction(value, name="accuracy_drop") == pytest.approx(fraction, rel=1e-12)


@pytest.mark.parametrize(("value", "problem"), [
    (math.nan, "not a finite number"), ("nan", "not a finite number"), ("nan%", "not a finite number"),
    (math.inf, "not a finite number"), ("-inf", "not a finite number"), ("1e999", "not a finite number"),
    (-0.01, "negative"), ("-1%", "negative"), ("101%", "over 100%"), ("abc", "not a number"), ("", "not a number"),
    ("%", "not a number"), ("1%%", "not a number"), (True, "not a number"), ([0.01], "not a number"),
    (1.5, "between 0 and 1"), (1, "meant as 1% or as 100%"), ("1", "meant as 1% or as 100%"),
])
def test_a_fraction_that_makes_no_sense_is_refused_by_name(value: object, problem: str) -> None:
    with pytest.raises(InvalidOption, match=r"^--qat-accuracy-drop is ") as caught:
        parse_fraction(value, name="--qat-accuracy-drop")
    assert problem in caught.value.message
    assert caught.value.hint


def test_a_floor_of_one_is_all_of_it() -> None:
    assert Tolerances(min_coverage=1, min_accuracy=1) == Tolerances(min_coverage="100%", min_accuracy="100%")


def test_a_whole_number_is_taken_for_a_forgotten_percent_sign() -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_fraction(5, name="accuracy_drop")
    assert "5%" in caught.value.hint


@STABLE
@given(st.floats(min_value=1, exclude_min=True, max_value=1e6))
def test_a_hint_never_proposes_what_would_be_refused_again(number: float) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_fraction(number, name="accuracy_drop")
    for proposed in re.findall(r" as (\S+%)", caught.value.hint):
        assert 0 <= parse_fraction(proposed, name="accuracy_drop") <= 1


@STABLE
@given(st.floats(0, 1))
def test_every_fraction_survives_being_written_as_text(number: float) -> None:
    assert parse_fraction(number, name="f") == parse_fraction(repr(number), name="f") == number


@STABLE
@given(st.floats(0, 100))
def test_a_percentage_is_a_hundredth(number: float) -> None:
    assert parse_fraction(f"{number!r}%", name="f") == number / 100


@pytest.mark.parametrize(("value", "ratio"), [
    (1.5, 1.5), ("1.5", 1.5), ("1.5x", 1.5), (0, 0.0), (" 2x ", 2.0), (3, 3.0),
])
def test_a_ratio_is_read_with_and_without_its_x(value: object, ratio: float) -> None:
    assert parse_ratio(value, name="min_speedup") == ratio


@pytest.mark.parametrize(("value", "problem"), [
    (math.nan, "not a finite number"), ("inf", "not a finite number"), (-1, "negative"), ("-0.1x", "negative"),
    ("abc", "not a number"), ("x", "not a number"), ("150%", "not a number"), (None, "not a number"),
])
def test_a_ratio_that_makes_no_sense_is_refused_by_name(value: object, problem: str) -> None:
    with pytest.raises(InvalidOption, match=r"^min_speedup is ") as caught:
        parse_ratio(value, name="min_speedup")
    assert problem in caught.value.message
    assert caught.value.hint


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert Tolerances() == Tolerances(
        accuracy_drop=0.01, min_accuracy=None, min_speedup=1.0, min_size_reduction=1.5, min_coverage=None)


def test_tolerances_accept_text_and_keep_numbers() -> None:
    made = Tolerances(accuracy_drop="2%", min_accuracy="90%", min_speedup="1.2x", min_coverage="0.5")
    assert (made.accuracy_drop, made.min_accuracy, made.min_speedup, made.min_coverage) == (0.02, 0.9, 1.2, 0.5)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Tolerances)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "abc"])
def test_a_tolerance_that_makes_no_sense_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=f"^{field} is "):
        Tolerances(**{field: value})


@pytest.mark.parametrize("field", ["accuracy_drop", "min_speedup", "min_size_reduction"])
def test_a_tolerance_without_an_off_switch_cannot_be_none(field: str) -> None:
    with pytest.raises(InvalidOption, match=f"^{field} is None"):
        Tolerances(**{field: None})


@pytest.mark.parametrize("field", ["accuracy_drop", "min_accuracy", "min_coverage"])
def test_only_fractions_are_held_below_one(field: str) -> None:
    with pytest.raises(InvalidOption):
        Tolerances(**{field: 3})
    assert Tolerances(min_speedup=3, min_size_reduction=3).min_speedup == 3


def test_override_takes_what_is_given_and_keeps_the_rest() -> None:
    base = Tolerances(accuracy_drop=0.05, min_speedup=2)
    changed = base.override(accuracy_drop=None, min_speedup="3x", min_accuracy=0.5)
    assert changed == Tolerances(accuracy_drop=0.05, min_speedup=3, min_accuracy=0.5)
    assert base == Tolerances(accuracy_drop=0.05, min_speedup=2)


def test_override_checks_its_values() -> None:
    with pytest.raises(InvalidOption, match="min_speedup"):
        Tolerances().override(min_speedup=-1)


def test_override_by_zero_is_an_override() -> None:
    assert Tolerances().override(min_speedup=0.0, accuracy_drop=0.0) == Tolerances(min_speedup=0, accuracy_drop=0)


@pytest.mark.parametrize(("own", "defaults", "expected"), [
    ({}, {}, {}),
    ({}, {"accuracy_drop": 0.05}, {"accuracy_drop": 0.05}),
    ({"accuracy_drop": 0.02}, {"accuracy_drop": 0.05}, {"accuracy_drop": 0.02}),
    ({"accuracy_drop": 0.02}, {"min_speedup": 2}, {"accuracy_drop": 0.02, "min_speedup": 2}),
    ({"min_accuracy": 0.9}, {"min_accuracy": 0.5, "min_coverage": 0.1}, {"min_accuracy": 0.9, "min_coverage": 0.1}),
    ({"accuracy_drop": 0.01, "min_speedup": 1}, {"accuracy_drop": 0.05, "min_speedup": 0.5, "min_size_reduction": 3},
     {"accuracy_drop": 0.01, "min_speedup": 1.0, "min_size_reduction": 3}),
])
def test_a_case_s_own_values_win_over_defaults(own: dict, defaults: dict, expected: dict) -> None:
    assert Tolerances(**own).or_else(Tolerances(**defaults)) == Tolerances(**expected)


def test_a_dict_of_tolerances_holds_plain_numbers_alone() -> None:
    values = Tolerances(min_speedup="2x").as_dict()
    assert values == {"accuracy_drop": 0.01, "min_accuracy": None, "min_speedup": 2.0, "min_size_reduction": 1.5,
                      "min_coverage": None}
    assert {type(value) for value in values.values()} == {float, type(None)}


def test_a_copy_still_knows_what_was_given() -> None:
    own = copy.deepcopy(Tolerances(min_speedup=1.0)).override(min_accuracy=0.5)
    assert own.or_else(Tolerances(min_speedup=0.5, accuracy_drop=0.1)) == Tolerances(
        min_speedup=1.0, min_accuracy=0.5, accuracy_drop=0.1)
