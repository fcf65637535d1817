"""The seam that whatever takes long tells of its steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from pytest_qat.core import progress
from pytest_qat.core.forked import run_forked
from pytest_qat.core.progress import Step, current_work, known_length, step, tick
from pytest_qat.core.system import can_fork


class Heard:
    """What a listener was told: the names of the open steps, each time."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.steps: list[tuple[Step, ...]] = []

    def __call__(self, steps: tuple[Step, ...]) -> None:
        self.names.append([each.name for each in steps])
        self.steps.append(steps)


@pytest.fixture
def heard() -> Iterator[Heard]:
    before, listener = progress.listener(), Heard()
    progress.listen(listener)
    yield listener
    progress.listen(before)


def test_a_listener_hears_of_steps_that_begin_go_on_and_end(heard: Heard) -> None:
    with step("outer"), step("inner", total=2) as inner:
        inner.advance(detail="half")
        tick()
    assert heard.names == [["outer"], ["outer", "inner"], ["outer", "inner"], ["outer", "inner"], ["outer"], []]
    assert (inner.done, inner.total, inner.detail) == (1, 2, "half")


def test_a_step_ends_when_its_work_raises(heard: Heard) -> None:
    def fail() -> None:
        with step("outer"), step("inner"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert heard.names[-1] == []


def test_a_listener_that_raises_leaves_no_step_open() -> None:
    before = progress.listener()

    def interrupted(steps: tuple[Step, ...]) -> None:
        raise KeyboardInterrupt

    progress.listen(interrupted)
    with pytest.raises(KeyboardInterrupt), step("begun"):
        raise AssertionError("unreachable because telling of the step was interrupted")
    seen = Heard()
    progress.listen(seen)
    tick()
    progress.listen(before)
    assert seen.names == [[]]


def test_other_threads_and_forked_processes_tell_nobody(heard: Heard) -> None:
    thread = threading.Thread(target=lambda: step("elsewhere").__enter__())
    thread.start()
    thread.join()
    assert heard.names == []
    if can_fork():
        with step("here"):
            run_forked(lambda writer: step("in a child").__enter__(), timeout_s=10)
        assert {name for names in heard.names for name in names} == {"here"}


def test_without_a_listener_a_step_does_nothing() -> None:
    before = progress.listener()
    progress.listen(None)
    with step("unheard", total=1) as unheard:
        unheard.advance()
    progress.listen(before)
    assert unheard.done == 1


def test_the_current_work_is_the_innermost_subject_and_its_outermost_step() -> None:
    assert current_work() == ""
    with step("loading"):
        assert current_work() == ""
        with step("convert", subject="Net [fx-x86]"), step("fine-tuning"):
            assert current_work() == "Net [fx-x86] convert"


class Lying(list[int]):
    def __len__(self) -> int:
        raise NotImplementedError


def test_a_length_is_known_where_the_data_tell_it() -> None:
    class Endless(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([1, 2])

    assert known_length([1, 2]) == 2
    assert [known_length(data) for data in (iter([1]), torch.utils.data.DataLoader(Endless()), Lying())] == [None] * 3
