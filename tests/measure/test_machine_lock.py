"""The machine's lock, tested with several processes."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_qat.measure.machine_lock import MachineLock
from tests.measure.lock_holders import (
    HOLDER,
    LONG_S,
    ON_DEMAND,
    ROUNDS,
    SHORT_S,
    STEPS,
    Holder,
    gate_is_free,
    wait_for_a_queue,
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    started: list[Holder] = []

    def start(how: str, *, folder: Path | None = tmp_path, script: str = HOLDER) -> Holder:
        started.append(Holder(how, folder, temporary=tmp_path, script=script))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def one_holds_and_one_waits(folder: Path, holder: Callable[..., Holder]) -> tuple[Holder, Holder]:
    """Start a stage that shares the machine, and a timing that waits for it at the gate."""
    before = holder("shared")
    assert before.holds()
    waiting = holder("alone")
    assert waiting.says("asks")
    wait_for_a_queue(folder)
    return before, waiting


@pytest.mark.parametrize(("first", "second"), [("shared", "alone"), ("alone", "shared"), ("alone", "alone")])
def test_a_timing_and_anything_else_wait_for_each_other(holder: Callable[..., Holder], first: str,
                                                        second: str) -> None:
    before = holder(first)
    assert before.holds()
    after = holder(second)
    assert not after.holds(within_s=SHORT_S)
    before.release()
    assert after.holds()


def test_heavy_stages_do_not_wait_for_each_other(holder: Callable[..., Holder]) -> None:
    assert all([holder("shared").holds(), holder("shared").holds()])


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_a_holder_that_is_killed_frees_the_lock(holder: Callable[..., Holder], how: str) -> None:
    killed = holder(how)
    assert killed.holds()
    after = holder("alone")
    killed.kill()
    assert after.holds()


def test_stages_that_begin_later_do_not_overtake_a_timing_that_waits_for_a_stage(
        tmp_path: Path, holder: Callable[..., Holder]) -> None:
    before = holder("shared")
    assert before.holds()
    timing = holder("alone")
    assert timing.says("asks")
    wait_for_a_queue(tmp_path)
    late = [holder("shared") for _ in range(4)]
    assert not any(each.holds(within_s=SHORT_S) for each in late)
    assert not timing.holds(within_s=0)
    before.release()
    assert timing.holds(), "or a stage that began later is in, and stays"
    assert not any(each.holds(within_s=SHORT_S / 4) for each in late)
    timing.release()
    assert all(each.holds() for each in late)


def test_stages_that_begin_later_do_not_overtake_a_timing_that_waits_for_another_timing(
        tmp_path: Path, holder: Callable[..., Holder]) -> None:
    timing, *late = (holder(how, script=ON_DEMAND) for how in ("alone", "shared", "shared", "shared", "shared"))
    assert all(each.says("ready") for each in (timing, *late))
    lock = MachineLock(tmp_path)
    order = []
    for _ in range(5):
        with lock.alone():
            timing.ask()
            wait_for_a_queue(tmp_path)
            for each in late:
                each.ask()
            time.sleep(SHORT_S / 2)
        order.append(timing.got_it() < min(each.got_it() for each in late))
    assert order == [True] * 5


def test_stages_that_follow_each_other_without_a_break_do_not_starve_a_timing(holder: Callable[..., Holder]) -> None:
    busy = [holder("shared", script=ROUNDS), holder("shared", script=ROUNDS)]
    assert all(each.holds() for each in busy)
    for _ in range(3):
        timing = holder("alone")
        assert timing.holds(within_s=LONG_S / 2)
        timing.release()
    assert [each.process.poll() for each in busy] == [None, None]


def test_a_stage_that_gives_way_between_its_steps_stops_for_a_timing_and_goes_on(
        holder: Callable[..., Holder]) -> None:
    stage = holder("shared", script=STEPS)
    assert stage.holds()
    for _ in range(3):
        timing = holder("alone")
        assert timing.holds(), "in the middle of the stage"
        while stage.says("at", within_s=SHORT_S / 2):
            stage.forget()
        timing.release()
        assert stage.says("at")


def test_two_stages_that_give_way_both_stop_for_a_timing(holder: Callable[..., Holder]) -> None:
    stages = [holder("shared", script=STEPS), holder("shared", script=STEPS)]
    assert all(stage.holds() for stage in stages)
    timing = holder("alone")
    assert timing.holds()
    for stage in stages:
        while stage.says("at", within_s=SHORT_S / 2):
            stage.forget()
    timing.release()
    assert all(stage.says("at") for stage in stages)


def test_giving_way_to_nobody_keeps_the_machine(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    lock = MachineLock(tmp_path)
    with lock.shared():
        lock.give_way()
        timing = holder("alone")
        assert not timing.holds(within_s=SHORT_S)
    assert timing.holds()


def test_a_timing_that_is_killed_while_it_waits_lets_everybody_pass(tmp_path: Path,
                                                                   holder: Callable[..., Holder]) -> None:
    before, waiting = one_holds_and_one_waits(tmp_path, holder)
    stage = holder("shared")
    assert not stage.holds(within_s=SHORT_S)
    waiting.kill()
    assert stage.holds(), "beside the one before"
    timing = holder("alone")
    assert not timing.holds(within_s=SHORT_S)
    before.release()
    stage.release()
    assert timing.holds()


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_whoever_is_killed_at_the_gate_leaves_no_trace(tmp_path: Path, holder: Callable[..., Holder],
                                                       how: str) -> None:
    before = holder("shared")
    assert before.holds()
    timing = holder("alone")
    assert timing.says("asks")
    wait_for_a_queue(tmp_path)
    at_the_gate = holder(how)
    assert not at_the_gate.holds(within_s=SHORT_S)
    at_the_gate.kill()
    before.release()
    assert timing.holds()
    timing.release()
    assert holder("shared").holds()
    assert gate_is_free(tmp_path)


def test_two_sessions_of_one_user_exclude_each_other_without_being_told_where(
        tmp_path: Path, holder: Callable[..., Holder]) -> None:
    before = holder("alone", folder=None)
    assert before.holds()
    after = holder("alone", folder=None)
    assert after.says("asks")
    assert not after.holds(within_s=SHORT_S)
    before.release()
    assert after.holds()
    assert holder("alone", folder=tmp_path / "elsewhere").holds(), "another place is another machine"


@pytest.mark.parametrize(("held", "asked"), [("alone", "alone"), ("alone", "shared"), ("shared", "alone")])
def test_a_suspended_holder_is_not_waited_for_for_ever(tmp_path: Path, holder: Callable[..., Holder], held: str,
                                                       asked: str) -> None:
    first = holder(held)
    assert first.says("held")
    first.process.send_signal(signal.SIGSTOP)
    lock = MachineLock(tmp_path, patience_s=0.3)
    with pytest.warns(RuntimeWarning, match=r"held the timing lock for 0\.3 s"), getattr(lock, asked)():
        lock.give_way()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # waiting again would end in the warning again
        with lock.shared():
            lock.give_way()
    first.process.send_signal(signal.SIGCONT)


def test_a_suspended_process_at_the_gate_is_not_waited_for_for_ever(tmp_path: Path,
                                                                    holder: Callable[..., Holder]) -> None:
    _, waiting = one_holds_and_one_waits(tmp_path, holder)
    waiting.process.send_signal(signal.SIGSTOP)
    with pytest.warns(RuntimeWarning, match="held the timing lock"):
        lock = MachineLock(tmp_path, patience_s=0.3)
    with lock.alone(), lock.shared():
        lock.give_way()
    waiting.process.send_signal(signal.SIGCONT)


def test_ctrl_c_ends_a_wait_for_the_machine(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    before, waiting = one_holds_and_one_waits(tmp_path, holder)
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.process.wait(timeout=20) != 0, "the lock is still held, and the wait is over"
    assert before.process.poll() is None


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_the_lock_is_freed_when_the_work_raises(tmp_path: Path, holder: Callable[..., Holder], how: str) -> None:
    def fail() -> None:
        with getattr(MachineLock(tmp_path), how)():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert holder("alone").holds()


def test_one_lock_serves_one_stage_after_another(tmp_path: Path) -> None:
    lock = MachineLock(tmp_path)
    entered = []
    for how in (lock.shared, lock.alone, lock.shared, lock.alone):
        with how():
            entered.append(how)
    assert len(entered) == 4


def test_without_a_place_for_the_lock_work_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    lock = MachineLock(file / "below")
    started = time.monotonic()
    with lock.alone(), lock.shared():
        assert time.monotonic() - started < LONG_S


def test_where_files_cannot_be_locked_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    lock = MachineLock(tmp_path)
    with lock.alone(), lock.shared():
        lock.give_way()
    assert list(tmp_path.iterdir()) == []


def test_by_default_every_user_has_one_place_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: "mallory")
    with MachineLock().alone():
        folder = tmp_path / "pytest-qat-mallory"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list(folder.iterdir())


def test_a_user_without_a_name_still_gets_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", nameless)
    with MachineLock().shared():
        assert (tmp_path / "pytest-qat-unknown").is_dir()
