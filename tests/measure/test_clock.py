"""The clock of a timing: waits for a CPU are left out, and a machine without the count still has a clock."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_qat.measure import clock as module
from pytest_qat.measure.clock import system_clock, time_calls

MS = 1_000_000


class Script:
    """A clock that only scripted calls move; `hidden` are waits that fall between two of its own readings."""

    def __init__(self, *hidden: int) -> None:
        self.now = 0
        self.waited = 0
        self._hidden = iter(hidden)

    def work(self, spent: int) -> None:
        self.now += spent

    def wait(self, spent: int) -> None:
        self.now += spent
        self.waited += spent

    def now_ns(self) -> int:
        self.wait(next(self._hidden, 0))
        return self.now

    def waited_ns(self) -> int:
        return self.waited


# -- timing calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 17])
def test_as_many_calls_are_made_and_timed_together_as_asked_for(times: int) -> None:
    script, calls = Script(), itertools.count(1)
    assert time_calls(lambda: script.work(next(calls) * MS), times=times, clock=script) == sum(range(times + 1)) * MS
    assert next(calls) == times + 1


def test_waits_during_the_calls_are_left_out_and_earlier_ones_do_not_matter() -> None:
    script = Script()
    script.wait(40 * MS)

    def call() -> None:
        script.work(2 * MS)
        script.wait(5 * MS)

    assert time_calls(call, times=3, clock=script) == 6 * MS


@pytest.mark.parametrize("hidden", [
    (5,), (0, 5), (5, 7), (5, 7, 9), (0, 5, 6, 7), (5, 0, 7), (3, 4, 5, 0, 6),
])
def test_a_wait_between_the_readings_of_time_and_waits_makes_them_read_again(hidden: tuple[int, ...]) -> None:
    script = Script(*(spent * MS for spent in hidden))
    assert time_calls(lambda: script.work(MS), times=2, clock=script) == 2 * MS


def test_waits_that_are_counted_late_never_make_a_time_negative() -> None:
    script = Script()

    def call() -> None:
        script.now += MS
        script.waited += 3 * MS

    assert time_calls(call, times=1, clock=script) == 0


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9 * MS), st.integers(0, 9 * MS)), min_size=1, max_size=20),
       st.lists(st.integers(0, 9 * MS), max_size=6))
def test_whatever_waits_fall_where_only_the_work_is_counted(events: list[tuple[int, int]], hidden: list[int]) -> None:
    script, following = Script(*hidden), iter(events)

    def call() -> None:
        work, wait = next(following)
        script.work(work)
        script.wait(wait)

    assert time_calls(call, times=len(events), clock=script) == sum(work for work, _ in events)


def test_an_error_of_the_call_comes_through() -> None:
    def broken() -> None:
        raise ValueError("from the call")

    with pytest.raises(ValueError, match="from the call"):
        time_calls(broken, times=3, clock=Script())


# -- this machine's clock -------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Paths and descriptors that the module opens."""
    seen: list[tuple[str, int]] = []
    plain_open: Callable[[str, int], int] = os.open

    def noting(path: str, flags: int) -> int:
        seen.append((path, plain_open(path, flags)))
        return seen[-1][1]

    monkeypatch.setattr(module.os, "open", noting)
    return seen


def assert_closed(opened: list[tuple[str, int]]) -> None:
    for _, descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_waits_are_the_second_number_of_the_file_read_anew_each_time(
        tmp_path: Path, opened: list[tuple[str, int]]) -> None:
    file = tmp_path / "schedstat"
    file.write_text("1000 250 3\n", encoding="utf-8")
    with system_clock(str(file)) as clock:
        assert clock.waited_ns() == 250
        file.write_text("123456789012345 98765432109876 123456\n", encoding="utf-8")
        assert clock.waited_ns() == 98765432109876
        os.fstat(opened[0][1])  # still open
    assert [path for path, _ in opened] == [str(file)]
    assert_closed(opened)


@pytest.mark.parametrize("content", [b"", b"\n", b"12", b"12 many 3", b"one two three", b"\xff\xfe\x00", b"12 -4 3",
                                     b"1 2.5 3"])
def test_a_garbled_file_gives_plain_time_and_is_closed(
        tmp_path: Path, opened: list[tuple[str, int]], content: bytes) -> None:
    file = tmp_path / "schedstat"
    file.write_bytes(content)
    with system_clock(str(file)) as clock:
        assert clock.waited_ns() == 0
        assert clock.now_ns() <= clock.now_ns()
    assert len(opened) == 1
    assert_closed(opened)


def test_a_file_that_opens_but_cannot_be_read_gives_plain_time_and_is_closed(
        tmp_path: Path, opened: list[tuple[str, int]]) -> None:
    with system_clock(str(tmp_path)) as clock:
        assert clock.waited_ns() == 0
    assert len(opened) == 1
    assert_closed(opened)


def test_an_error_under_plain_time_does_not_speak_of_the_missing_file() -> None:
    with pytest.raises(ValueError, match="own") as caught, system_clock("/nowhere/schedstat"):
        raise ValueError("the model's own")
    assert caught.value.__context__ is None


def test_a_missing_file_gives_plain_time(tmp_path: Path) -> None:
    with system_clock(str(tmp_path / "none")) as clock:
        before = clock.now_ns()
        assert clock.waited_ns() == 0
        threading.Event().wait(0.01)
        assert clock.now_ns() - before >= 9 * MS


@pytest.mark.parametrize("content", ["1000 250 3\n", "garbled"])
def test_the_file_is_closed_after_an_error_too(
        tmp_path: Path, opened: list[tuple[str, int]], content: str) -> None:
    file = tmp_path / "schedstat"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="from inside"), system_clock(str(file)):
        raise ValueError("from inside")
    assert len(opened) == 1
    assert_closed(opened)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count waits")
def test_the_count_is_that_of_the_calling_thread(opened: list[tuple[str, int]]) -> None:
    threads: list[int] = []

    def use() -> None:
        threads.append(threading.get_native_id())
        with system_clock() as clock:
            first, second = clock.waited_ns(), clock.waited_ns()
            assert 0 <= first <= second

    use()
    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert [path for path, _ in opened] == [f"/proc/self/task/{thread}/schedstat" for thread in threads]
    assert len(set(threads)) == 2
    assert_closed(opened)
