"""What the operating system lacks is known, named, and costs nothing else."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from pytest_qat.core import system
from pytest_qat.core.system import can_fork, death_by, kill_group, lost_here, peak_memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux has")
def test_nothing_is_lost_on_linux() -> None:
    assert lost_here() == ()


def test_each_missing_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork", raising=False)
    monkeypatch.delattr(os, "killpg", raising=False)
    monkeypatch.setattr(system, "_STATUS", Path("/nowhere"))
    monkeypatch.setattr(system, "_SCHEDULER_STATISTICS", Path("/nowhere"))
    for module in ("resource", "sqlite3"):
        monkeypatch.setitem(sys.modules, module, None)
    assert not can_fork()
    assert peak_memory_bytes() is None
    kill_group(0)  # would kill this process
    named = ("os.fork", "os.killpg", "/proc/self/schedstat", "resource", "sqlite3")
    assert [part in clause for part, clause in zip(named, lost_here(), strict=True)] == [True] * len(named)


def test_peak_memory_is_the_same_from_proc_and_from_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    from_proc = peak_memory_bytes()
    assert from_proc is not None
    monkeypatch.setattr(system, "_STATUS", Path("/nowhere"))
    assert peak_memory_bytes() == pytest.approx(from_proc, rel=0.1)


@pytest.mark.parametrize(("status", "name", "word"), [
    (-int(signal.SIGSEGV), "SIGSEGV", "egmentation"), (-40, "signal 40", "eal-time"),
    (0xC0000005, "0xC0000005", "access violation"), (0xC000001D, "0xC000001D", "illegal instruction"),
    (0xC0FFEE00, "0xC0FFEE00", "NTSTATUS")])
def test_deaths_in_native_code_have_a_name_on_every_system(status: int, name: str, word: str) -> None:
    death = death_by(status)
    assert death is not None
    assert death.name == name
    assert word in death.meaning


@pytest.mark.parametrize("status", [0, 1, 255])
def test_a_process_that_ends_by_itself_has_not_died(status: int) -> None:
    assert death_by(status) is None
