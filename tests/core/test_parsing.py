"""Input shapes written as text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.core.parsing import parse_shapes
from pytest_qat.errors import InvalidOption

SHAPES = st.lists(st.lists(st.integers(1, 4096), min_size=1, max_size=5).map(tuple), min_size=1, max_size=4)


@pytest.mark.parametrize(("text", "shapes"), [
    ("8x3x32x32", ((8, 3, 32, 32),)), ("1X10", ((1, 10),)), ("7", ((7,),)), (" 1x2 ", ((1, 2),)),
    ("1x3x8x8,1x4", ((1, 3, 8, 8), (1, 4))), ("1x2, 3", ((1, 2), (3,))),
])
def test_shapes_are_read_from_text(text: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    assert parse_shapes(text, name="--qat-inputs") == shapes


@pytest.mark.parametrize("text", ["", "x", "3x", "0x3", "1x-3", "1.5x3", "axb", "1x3,", ",1x3", "1 3", "1*3", "(1,3)"])
def test_a_shape_that_makes_no_sense_is_refused_with_the_form_to_write(text: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_shapes(text, name="--qat-inputs")
    assert caught.value.message.startswith(f"--qat-inputs is {text!r}")
    assert "--qat-inputs=1x3x224x224" in caught.value.hint


@settings(deadline=None, derandomize=True)
@given(SHAPES)
def test_any_shapes_survive_being_written_as_text(shapes: list[tuple[int, ...]]) -> None:
    text = ",".join("x".join(map(str, shape)) for shape in shapes)
    assert parse_shapes(text, name="--qat-inputs") == tuple(shapes)
