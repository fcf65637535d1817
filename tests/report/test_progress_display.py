"""When progress is shown and when it is not, by a scripted clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import pytest

from pytest_qat.core import progress
from pytest_qat.core.progress import Step, step, tick
from pytest_qat.report.display import Display, LiveScreen, PlainScreen, Sender
from pytest_qat.report.progress import Work


class Clock:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorded:
    """A screen that keeps what is shown; no other thread draws on it."""

    threaded = False

    def __init__(self, *, every_s: float, least_s: float = 0.0) -> None:
        self.every_s, self.least_s = every_s, least_s
        self.shown: list[str] = []
        self.cleared = 0

    def show(self, works: Mapping[str, Work]) -> None:
        self.shown.append(" / ".join(f"{worker}{work.stage} {work.elapsed_s:g}" for worker, work in works.items()))

    def clear(self) -> None:
        self.cleared += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _nobody_listens_afterwards() -> Iterator[None]:
    before = progress.listener()
    yield
    progress.listen(before)


def displayed(screen: Recorded | LiveScreen | PlainScreen, clock: Clock) -> Display:
    display = Display(screen, clock=clock)
    progress.listen(display)
    return display


def test_lines_come_at_most_every_ten_seconds_and_not_at_once(clock: Clock) -> None:
    lines: list[str] = []
    displayed(PlainScreen(lines.append, threaded=False), clock)
    with step("fine-tuning", subject="Net", total=100, unit="batches") as shown:
        for _ in range(100):
            clock.now += 0.35
            shown.advance()
    assert [line.split(", ")[1:] for line in lines] == [
        ["29/100 batches", "10 s"], ["58/100 batches", "20 s"], ["87/100 batches", "30 s"]]


def test_a_short_run_prints_no_line(clock: Clock) -> None:
    lines: list[str] = []
    displayed(PlainScreen(lines.append, threaded=False), clock)
    for name in "prepare", "convert", "deploy":
        with step(name):
            clock.now += 3.0
            tick()
    assert lines == []


def test_a_line_does_not_tell_of_what_has_only_just_begun(clock: Clock) -> None:
    lines: list[str] = []
    displayed(PlainScreen(lines.append, threaded=False), clock)
    clock.now += 60
    with step("prepare"):
        assert lines == []
        clock.now += 1
        tick()
    assert len(lines) == 1


def test_a_live_line_comes_at_once_and_goes_with_the_last_step(clock: Clock) -> None:
    screen = Recorded(every_s=0.1)
    displayed(screen, clock)
    with step("convert"):
        assert screen.shown == ["convert 0"]
        for _ in range(10):
            clock.now += 0.03
            tick()
        assert screen.cleared == 0
    assert len(screen.shown) == 3
    assert screen.cleared == 1


def test_while_pairs_are_timed_lines_come_once_a_second_and_the_first_at_once(clock: Clock) -> None:
    screen = Recorded(every_s=0.1)
    displayed(screen, clock)
    with step("speed"), step("timing", budget_s=20, still=True):
        assert screen.shown == ["speed 0", "speed: timing 0"]
        for _ in range(100):
            clock.now += 0.03
            tick()
        assert screen.shown[2:] == ["speed: timing 1.02", "speed: timing 2.04"]


def test_no_thread_runs_while_pairs_are_timed_or_when_nothing_is_done(clock: Clock) -> None:
    def threads() -> int:
        return sum(thread.name == "qat-progress" for thread in threading.enumerate())

    screen = Recorded(every_s=0.1)
    screen.threaded = True
    display = displayed(screen, clock)
    counts = [threads()]
    with step("speed"):
        counts.append(threads())
        with step("timing", still=True):
            counts.append(threads())
            tick()
            counts.append(threads())
        counts.append(threads())
    counts.append(threads())
    with step("again"):
        display.close()
        counts.append(threads())
    assert counts == [0, 1, 0, 0, 1, 0, 0]


def test_a_thread_draws_what_says_nothing_for_long(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr("pytest_qat.report.display._TICK_S", 0.01)
    drawn = threading.Event()

    class Screen(Recorded):
        threaded = True

        def show(self, works: Mapping[str, Work]) -> None:
            super().show(works)
            if len(self.shown) > 1:
                drawn.set()

    displayed(Screen(every_s=0.0), clock)
    with step("fine-tuning by the case's train"):
        assert drawn.wait(10)


def test_workers_are_shown_side_by_side_until_they_end(clock: Clock) -> None:
    screen = Recorded(every_s=0.1)
    display = Display(screen, clock=clock)
    display.heard("gw0 ", Work(subject="Net", stage="convert", elapsed_s=3))
    clock.now += 1
    display.heard("gw1 ", Work(subject="Other", stage="prepare"))
    clock.now += 1
    display.heard("gw0 ", None)
    assert screen.shown == ["gw0 convert 3", "gw0 convert 4 / gw1 prepare 0", "gw1 prepare 1"]
    display.heard("gw1 ", None)
    assert screen.cleared == 1


def test_one_worker_that_times_quiets_the_display_of_all(clock: Clock) -> None:
    screen = Recorded(every_s=0.1)
    display = Display(screen, clock=clock)
    display.heard("gw0 ", Work(subject="Net", stage="timing", still=True))
    for _ in range(9):
        clock.now += 0.1
        display.heard("gw1 ", Work(subject="Other", stage="waiting", still=True))
    assert len(screen.shown) == 1


def test_nothing_is_drawn_while_something_else_writes(clock: Clock) -> None:
    screen = Recorded(every_s=0.1)
    display = displayed(screen, clock)
    with step("convert"):
        with display.hidden():
            assert screen.cleared == 1
        clock.now += 1
        tick()
    assert len(screen.shown) == 2


def test_a_worker_sends_each_step_at_once_and_its_progress_once_a_second(clock: Clock) -> None:
    sent: list[dict[str, object] | None] = []
    progress.listen(Sender(sent.append, clock=clock))
    with step("convert", subject="Net"), step("fine-tuning", total=10) as shown:
        for _ in range(10):
            clock.now += 0.25
            shown.advance()
    assert [(each["stage"], each["done"]) if each else None for each in sent] == [
        ("convert", 0), ("convert: fine-tuning", 0), ("convert: fine-tuning", 4), ("convert: fine-tuning", 8),
        ("convert", 0), None]
    assert Work(**sent[1]).total == 10  # type: ignore[arg-type]


def test_a_worker_whose_controller_is_gone_works_on(clock: Clock) -> None:
    def gone(work: object) -> None:
        raise OSError("cannot send to a closed channel")

    progress.listen(Sender(gone, clock=clock))
    with step("convert") as shown:
        shown.advance()
    assert shown.done == 1


def test_the_live_line_comes_back_to_where_pytest_writes(clock: Clock) -> None:
    written: list[str] = []
    screen = LiveScreen(written.append, column=lambda: 105, width=lambda: 100, color=False)
    display = displayed(screen, clock)
    with step("convert", subject="Net [fx-x86]"):
        pass
    display.close()
    assert written == ["\n\x1b[2KNet [fx-x86] convert, 0 s\x1b[1A\x1b[6G", "\n\x1b[2K\x1b[1A\x1b[6G"]


def test_a_step_that_is_told_of_again_keeps_its_beginning(clock: Clock) -> None:
    screen = Recorded(every_s=0.0)
    display = displayed(screen, clock)
    one = Step(name="convert")
    display((one,))
    clock.now += 2
    display((one, Step(name="inner")))
    clock.now += 2
    display((one,))
    assert screen.shown == ["convert 0", "convert: inner 0", "convert 4"]
