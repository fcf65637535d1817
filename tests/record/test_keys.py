"""What a run is known by."""

from __future__ import annotations

from pytest_qat.record.keys import ModelSource, RunKey


def test_two_references_are_the_same_model_and_two_objects_are_not() -> None:
    first, second = object(), object()
    assert ModelSource("a:b") == ModelSource("a:b")
    assert ModelSource("a:b") != ModelSource("a:c")
    assert ModelSource("a:b", given=first) == ModelSource("a:b", given=first)
    assert ModelSource("a:b", given=first) != ModelSource("a:b", given=second)
    assert ModelSource("a:b", given=first) != ModelSource("a:b")


def test_an_object_that_cannot_be_hashed_can_be_a_model() -> None:
    unhashable: list[int] = []
    assert {ModelSource("a:b", given=unhashable): 1}[ModelSource("a:b", given=unhashable)] == 1


def test_a_key_reads_as_items_are_named() -> None:
    assert str(RunKey(ModelSource("models:net"), "fx-x86")) == "models:net[fx-x86]"
