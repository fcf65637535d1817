"""The machine's lock, between processes of their own."""

from __future__ import annotations

import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_qat.measure.exclusive import MachineLock

HOLDER = """
import sys
from pathlib import Path
from pytest_qat.measure.exclusive import MachineLock

with getattr(MachineLock(Path(sys.argv[1])), sys.argv[2])():
    print("held", flush=True)
    sys.stdin.readline()
"""
LONG_S, SHORT_S = 30.0, 0.4


class Holder:
    """A process that takes the lock, says so, and keeps it until it is told to let go."""

    def __init__(self, folder: Path, how: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), how], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def holds(self, *, within_s: float = LONG_S) -> bool:
        """Whether the process says that it holds the lock before the time is over."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return bool(selector.select(within_s)) and self.process.stdout.readline() == "held\n"

    def release(self) -> None:
        self.process.communicate("\n", timeout=LONG_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LONG_S)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[str], Holder]]:
    started: list[Holder] = []

    def start(how: str) -> Holder:
        started.append(Holder(tmp_path, how))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.mark.parametrize(("first", "second"), [("shared", "alone"), ("alone", "shared"), ("alone", "alone")])
def test_a_timing_and_anything_else_wait_for_each_other(holder: Callable[[str], Holder], first: str,
                                                        second: str) -> None:
    before = holder(first)
    assert before.holds()
    after = holder(second)
    assert not after.holds(within_s=SHORT_S)
    before.release()
    assert after.holds()


def test_heavy_stages_do_not_wait_for_each_other(holder: Callable[[str], Holder]) -> None:
    assert all([holder("shared").holds(), holder("shared").holds()])


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_a_holder_that_is_killed_frees_the_lock(holder: Callable[[str], Holder], how: str) -> None:
    killed = holder(how)
    assert killed.holds()
    after = holder("alone")
    killed.kill()
    assert after.holds()


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_the_lock_is_freed_when_the_work_raises(tmp_path: Path, holder: Callable[[str], Holder], how: str) -> None:
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
