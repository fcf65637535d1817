"""Child processes that succeed, raise, crash, hang or stay silent: the parent reports what happened and survives."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.runtimes import build as building
from pytest_qat.runtimes import build_child
from pytest_qat.runtimes.base import Kernel, StoredTensor
from pytest_qat.runtimes.build import Built, build
from pytest_qat.runtimes.build_note import Note, read_note, write_note
from pytest_qat.runtimes.exported import ExportedRuntime

RUNTIME = '''
"""A runtime whose programs are Python code: `lower` runs them. As a script it is a child that uses this runtime."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from pytest_qat.errors import StageError
from pytest_qat.runtimes import build_child
from pytest_qat.runtimes.base import Kernel, StoredTensor
from pytest_qat.runtimes.exported import ExportedRuntime, Lowered


def load_exported(path):
    inputs = ((torch.ones(2), {"n": [torch.ones(3), 5]}), {})
    return SimpleNamespace(code=path.read_text(), graph=torch.fx.Graph(), example_inputs=inputs)


class Scripted(ExportedRuntime):
    name = "scripted"
    suffix = ".artifact"

    def lower(self, exported):
        names = {"StageError": StageError, "content": b"artifact"}
        exec(exported.code, names)
        return Lowered(content=names["content"], kernels=(Kernel(int8=False, op="conv"),))

    def load(self, path, *, threads):
        def call(values):
            assert [tuple(value.shape) for value in values] == [(2,), (3,)]
            path.with_suffix(".threads").write_text(f"{threads} {torch.get_num_threads()}")
        return call

    def kernels_in(self, path, named):
        return (Kernel(int8=True, op=named[0].op, module="a", macs=7), Kernel(int8=False, op="fc", reason="why"))

    def tensors_in(self, path):
        return (StoredTensor(name="w", dtype="int8", shape=(2, 3), size_bytes=6),)


if __name__ == "__main__":
    build_child.load_exported = load_exported
    build_child.main(*sys.argv[1:], load=lambda name: {"scripted": Scripted}[name]())
'''
HANG = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path) -> Iterator[None]:
    script_of(tmp_path).parent.mkdir()
    script_of(tmp_path).write_text(RUNTIME)
    with preserved_torch_state():
        yield


def script_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-path") / "scripted_runtime.py"


def built(folder: Path, *, timeout_s: float = 120, **code: str) -> dict[str, Built]:
    """Build sides whose programs are code."""
    for side, text in code.items():
        (folder / f"{side}.pt2").write_text(textwrap.dedent(text))
    return build("scripted", {side: folder / f"{side}.pt2" for side in code},  # type: ignore[arg-type]
                 {side: folder / f"{side}.artifact" for side in code}, threads=1, timeout_s=timeout_s,
                 child=(sys.executable, str(script_of(folder))))


def outcome(artifact: Path, process: subprocess.Popen[bytes], *, timeout_s: float = 60) -> Built:
    return building._outcome("int8", "scripted", process, artifact,  # type: ignore[arg-type]
                             ends=time.monotonic() + timeout_s, timeout_s=timeout_s)


def own_children() -> set[int]:
    """Process ids of this process's children, zombies among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == os.getpid():
            found.add(int(stat.parent.name))
    return found


@pytest.fixture
def _leaves_no_process() -> Iterator[None]:
    before = own_children()
    yield
    assert own_children() <= before


# -- a child that finishes --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_leaves_no_process")
def test_both_sides_are_built_and_their_noise_stays_with_them(tmp_path: Path,
                                                              capfd: pytest.CaptureFixture[str]) -> None:
    noise = "import os, sys; print('noise'); sys.stderr.write('noise'); os.write(1, b'noise'); os.write(2, b'noise')"
    found = built(tmp_path, fp32=noise, int8=f"{noise}; content = b'smaller'")
    assert list(found) == ["fp32", "int8"]
    assert [made.artifact.read_bytes() for made in found.values()] == [b"artifact", b"smaller"]
    for made in found.values():
        assert made.kernels == (Kernel(int8=True, op="conv", module="a", macs=7),
                                Kernel(int8=False, op="fc", reason="why"))
        assert made.tensors == (StoredTensor(name="w", dtype="int8", shape=(2, 3), size_bytes=6),)
        assert made.artifact.with_suffix(".threads").read_text() == "1 1"
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "int8.log").read_text().count("noise") == 4


# -- children that do not -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_leaves_no_process")
def test_a_crash_of_native_code_is_a_finding_with_its_signal_and_stage(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"scripted .*SIGSEGV.* fp32 .*lowering") as caught:
        built(tmp_path, fp32="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", int8=HANG)
    (finding,) = caught.value.findings
    assert (finding.code, finding.severity) == ("native-crash", "error")
    assert finding.evidence == {"signal": "SIGSEGV", "stage": "lowering"}
    assert not (tmp_path / "fp32.artifact").exists()


@pytest.mark.usefixtures("_leaves_no_process")
def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(CheckFailed, match=r"scripted .*int8.* 0\.2 s") as caught:
        built(tmp_path, int8=HANG, timeout_s=0.2)
    assert time.monotonic() - start < 30
    assert [finding.code for finding in caught.value.findings] == ["stage-timeout"]
    assert "--qat-stage-timeout" in caught.value.findings[0].remedy


@pytest.mark.parametrize("stage", ["lowering", "the first run"])
def test_a_hang_names_the_stage_it_is_in(tmp_path: Path, stage: str) -> None:
    write_note(Note(stage=stage), tmp_path / "int8.artifact")
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            with pytest.raises(CheckFailed) as caught:
                outcome(tmp_path / "int8.artifact", process, timeout_s=0.1)
        finally:
            process.kill()
    assert caught.value.findings[0].evidence == {"timeout_s": 0.1, "stage": stage}
    assert stage in caught.value.findings[0].message


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGABRT, signal.SIGKILL])
def test_every_deadly_signal_is_named(tmp_path: Path, number: signal.Signals) -> None:
    write_note(Note(stage="the first run"), tmp_path / "int8.artifact")
    with subprocess.Popen([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"]) as process, \
            pytest.raises(CheckFailed) as caught:
        outcome(tmp_path / "int8.artifact", process)
    assert caught.value.findings[0].evidence == {"signal": number.name, "stage": "the first run"}


@pytest.mark.usefixtures("_leaves_no_process")
def test_a_child_that_exits_early_is_quoted_by_the_last_line_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"scripted .*status 3 .*int8.*: the last words$"):
        built(tmp_path, int8="import os; os.write(2, b'first\\nthe last words\\n'); os._exit(3)")


def test_a_child_that_exits_without_output_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "int8.log").touch()
    with subprocess.Popen(["true"]) as process, pytest.raises(StageError, match=r"status 0 .*: nothing"):
        outcome(tmp_path / "int8.artifact", process)


def test_a_note_of_an_earlier_child_is_not_believed(tmp_path: Path) -> None:
    write_note(Note(stage="exiting", done=True), tmp_path / "int8.artifact")
    with pytest.raises(CheckFailed) as caught:
        built(tmp_path, int8=HANG, timeout_s=0.1)
    assert caught.value.findings[0].evidence["stage"] == "starting"


# -- what is raised in it -------------------------------------------------------------------------------------------


def reported(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> StageError:
    """Do the child's work in this process, then return what its parent makes of it."""
    (folder / "int8.pt2").write_text(code)
    names = runpy.run_path(str(script_of(folder)))
    monkeypatch.setattr(build_child, "load_exported", names["load_exported"])
    build_child.build_artifact("scripted", folder / "int8.pt2", folder / "int8.artifact", threads=1,
                               load=lambda name: names["Scripted"]())
    with subprocess.Popen(["true"]) as process, pytest.raises(StageError) as caught:
        outcome(folder / "int8.artifact", process)
    return caught.value


def test_an_error_comes_with_its_first_line_and_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = reported(tmp_path, "raise ValueError('no such op\\nand much more')", monkeypatch)
    assert error.message.partition("int8 model: ")[2].startswith("ValueError: no such op (in lowering; raised at ")


def test_an_error_that_wraps_another_is_reported_by_its_cause_without_colors(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = reported(tmp_path, """
try:
    try:
        raise OSError('\x1b[96monly 4D queries\x1b[0m')
    except OSError as cause:
        raise ValueError('step 3/3 failed') from cause
except ValueError as cause:
    raise RuntimeError('\x1b[1mNext steps:\x1b[0m') from cause
""", monkeypatch)
    assert error.message.partition("int8 model: ")[2].startswith("RuntimeError: only 4D queries (in lowering; ")


def test_an_error_without_a_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "KeyError: no message (in lowering; " in reported(tmp_path, "raise KeyError", monkeypatch).message


def test_a_long_error_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(reported(tmp_path, "raise ValueError('x' * 10_000)", monkeypatch).message) < 500


def test_the_hint_of_an_error_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reported(tmp_path, "raise StageError('cannot', hint='Do this.')", monkeypatch).hint == "Do this."


def test_a_runtime_that_cannot_be_imported_is_an_error_in_the_note(tmp_path: Path) -> None:
    def load(name: str) -> ExportedRuntime:
        raise ImportError("no libfoo.so")

    build_child.build_artifact("scripted", tmp_path / "int8.pt2", tmp_path / "int8.artifact", threads=1, load=load)
    note = read_note(tmp_path / "int8.artifact")
    assert (note.done, note.stage) == (False, "starting")
    assert "no libfoo.so" in note.error


@pytest.mark.usefixtures("_leaves_no_process")
def test_a_disk_that_fills_up_in_a_child_is_a_stage_error_without_half_a_file(tmp_path: Path) -> None:
    full = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        content = bytes(50_000)
    """
    with pytest.raises(StageError, match=r"cannot write int8\.artifact \(50,000 bytes\)") as caught:
        built(tmp_path, int8=full)
    assert "TMPDIR" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.json", "int8.log", "int8.pt2"]


# -- what a child leaves behind -------------------------------------------------------------------------------------


def test_a_child_that_crashes_after_its_work_is_done_has_done_it(tmp_path: Path) -> None:
    code = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGSEGV)"
    assert built(tmp_path, int8=code)["int8"].artifact.read_bytes() == b"artifact"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_what_a_child_has_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"""
        import pathlib, subprocess, sys, time
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(note)!r}).write_text(str(helper.pid))
        time.sleep(600)
    """
    with pytest.raises(CheckFailed, match="within 10 s"):
        built(tmp_path, int8=code, timeout_s=10)
    wait_until_gone(int(note.read_text()))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("number", [
    signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_child_and_what_it_has_started_end_with_a_parent_that_is_killed(tmp_path: Path,
                                                                          number: signal.Signals) -> None:
    note = tmp_path / "pids"
    (tmp_path / "int8.pt2").write_text(textwrap.dedent(f"""
        import os, pathlib, subprocess, sys, time
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(note)!r}).with_suffix(".draft").write_text(f"{{os.getpid()}} {{helper.pid}}")
        pathlib.Path({str(note)!r}).with_suffix(".draft").replace({str(note)!r})
        time.sleep(600)
    """))
    code = f"""
import sys
from pathlib import Path
from pytest_qat.runtimes.build import build
folder = Path({str(tmp_path)!r})
build("scripted", {{"int8": folder / "int8.pt2"}}, {{"int8": folder / "int8.artifact"}}, threads=1, timeout_s=600,
      child=(sys.executable, {str(script_of(tmp_path))!r}))
"""
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code]) as parent:
        try:
            ends = time.monotonic() + 120
            while not note.exists():
                assert parent.poll() is None, "the parent ended by itself"
                assert time.monotonic() < ends, "the child never began"
                time.sleep(0.05)
        finally:
            parent.send_signal(number)
    for process in map(int, note.read_text().split()):
        wait_until_gone(process)


def wait_until_gone(process: int) -> None:
    """Wait until a process has ended; a zombie has."""
    ends = time.monotonic() + 10
    while Path(f"/proc/{process}/cmdline").exists() and Path(f"/proc/{process}/cmdline").read_bytes():
        assert time.monotonic() < ends, f"process {process} lives on"
        time.sleep(0.05)


# -- the note -------------------------------------------------------------------------------------------------------


def test_a_note_comes_back_as_it_was_written(tmp_path: Path) -> None:
    note = Note(stage="exiting", done=True, kernels=(Kernel(int8=True, op="conv", macs=3),), hint="Do this.",
                tensors=(StoredTensor(name="w", dtype="int8", shape=(2, 3), size_bytes=6),), error="ValueError: no")
    write_note(note, tmp_path / "int8.artifact")
    assert read_note(tmp_path / "int8.artifact") == note


def test_a_child_of_a_name_that_is_no_runtime_reports_the_known_names(tmp_path: Path) -> None:
    build_child.build_artifact("tensorrt", tmp_path / "int8.pt2", tmp_path / "int8.artifact", threads=1,
                               load=build_child._exported_runtime)
    error = read_note(tmp_path / "int8.artifact").error
    assert all(name in error for name in ("tensorrt", "executorch", "litert", "onnxruntime", "inductor"))
