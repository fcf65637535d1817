"""Who holds the machine's lock, and for how long."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interruptible import INTERRUPTIBLE

from pytest_qat.core import progress
from pytest_qat.core.progress import Step, step
from pytest_qat.measure.lock_holders import Holder, Notes, told
from pytest_qat.measure.machine_lock import MachineLock

HOLDER = """
import sys
from pathlib import Path
from pytest_qat.core.progress import step
from pytest_qat.measure.machine_lock import MachineLock

with step("convert", subject="Net [fx-x86]"), getattr(MachineLock(Path(sys.argv[2])), sys.argv[1])():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTIBLE + HOLDER, request.param, str(tmp_path)],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.fixture
def heard() -> Iterator[list[Step]]:
    before, steps = progress.listener(), list[Step]()
    progress.listen(lambda opened: steps.extend(each for each in opened if each not in steps))
    yield steps
    progress.listen(before)


@pytest.mark.parametrize("holder", ["alone", "shared"], indirect=True)
def test_whoever_waits_hears_who_holds_the_machine(holder: subprocess.Popen[bytes], tmp_path: Path,
                                                   heard: list[Step]) -> None:
    lock = MachineLock(tmp_path, patience_s=1.0)
    with pytest.warns(RuntimeWarning, match=rf"pid {holder.pid} \(Net \[fx-x86\] convert\) has had it"), lock.alone():
        pass
    [waiting] = [each for each in heard if "waiting" in each.name]
    assert waiting.still
    assert waiting.detail.startswith(f"pid {holder.pid} (Net [fx-x86] convert) has had it for ")


@pytest.mark.parametrize("holder", ["alone"], indirect=True)
def test_a_holder_that_was_killed_is_named_no_more_and_leaves_no_note(holder: subprocess.Popen[bytes],
                                                                      tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    assert [each.pid for each in notes.others()] == [holder.pid]
    holder.kill()
    holder.wait()
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert notes.others() == []
    assert list(tmp_path.glob("*.json")) + list(tmp_path.glob("*.holder")) == []


def test_nobody_waits_for_himself_and_a_note_ends_with_the_lock(tmp_path: Path, heard: list[Step]) -> None:
    lock, other = MachineLock(tmp_path), Notes(tmp_path)
    with step("speed", subject="Net [fx-x86]"), lock.alone():
        assert lock._notes.others() == []
        [seen] = other.others()
    assert (seen.pid, seen.work) == (os.getpid(), "Net [fx-x86] speed")
    assert abs(seen.since_s - time.time()) < 60
    assert other.others() == []
    assert not [each for each in heard if "waiting" in each.name]


def test_without_a_step_the_holder_is_named_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", "my tests", "-k", "x" * 100])
    with MachineLock(tmp_path).shared():
        [seen] = Notes(tmp_path).others()
    assert seen.work.startswith("pytest 'my tests' -k xxx")
    assert len(seen.work) == 80


def test_a_note_that_cannot_be_read_names_nobody(tmp_path: Path) -> None:
    with MachineLock(tmp_path).alone():
        [note] = tmp_path.glob("*.json")
        note.write_text("{")
        assert Notes(tmp_path).others() == []


def test_the_longest_holder_is_told_of() -> None:
    one, two = (Holder(pid=pid, work="Net speed", since_s=since) for pid, since in ((7, 100.0), (8, 160.0)))
    assert told([one, two], now_s=225.0) == "pid 7 (Net speed) has had it for 2 min 5 s, and 1 more"
    assert told([one], now_s=99.0) == "pid 7 (Net speed) has had it for 0 s"
    assert told([], now_s=0.0) == ""
