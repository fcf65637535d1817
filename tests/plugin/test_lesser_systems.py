"""The plugin on systems that lack what Linux has (macOS, Windows): everything works, and one line says what is lost."""

from __future__ import annotations

import os
import sys

import pytest
from conftest import Project
from inner_runs import OPS, everything

LESSER = '''
"""Run as Python starts: no fork, no process groups, no /proc, no POSIX modules."""
import builtins
import io
import os
import signal
import subprocess
import sys

KILL = int(signal.SIGKILL)


def kill(process):
    process.send_signal(KILL)


subprocess.Popen.kill = kill  # on Windows it needs no signal either
for name in ("fork", "forkpty", "killpg", "setsid", "getpgid", "sched_getaffinity",
             "pread"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGSTOP", "SIGHUP", "SIGALRM", "alarm", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("resource", "fcntl"):
    sys.modules[name] = None


def without_proc(function):
    def opened(path, *arguments, **options):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return function(path, *arguments, **options)
    return opened


os.open = without_proc(os.open)
os.stat = without_proc(os.stat)
io.open = builtins.open = without_proc(builtins.open)
'''


@pytest.fixture
def lesser(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    folder = project.path / "lesser"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LESSER)
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return project


@pytest.mark.slow
def test_a_model_is_checked_and_what_is_lost_is_one_line(lesser: Project) -> None:
    result = lesser.subprocess("--qat-model=models:good", "--qat-memory=on", "-W", "error::UserWarning:filelock")
    result.assert_outcomes(passed=8)
    [line] = [line for line in result.outlines if line.startswith("qat: on this system")]
    for part in ("os.fork", "os.killpg", "/proc/self/schedstat", "resource", "file locks"):
        assert part in line
    assert "does not report a process's peak memory" in everything(result)


@pytest.mark.slow
def test_a_kernel_is_held_to_the_laws(lesser: Project) -> None:
    (lesser.path / "kernels.py").write_text(OPS)
    lesser.subprocess("--qat-ops=kernels:good").assert_outcomes(passed=21)
    broken = lesser.subprocess("--qat-ops=kernels:bad", "-k", "P17_layout")
    broken.assert_outcomes(failed=1)
    assert "qat: on this system, a crash in native code ends the whole session" in everything(broken)


@pytest.mark.slow
def test_a_runtime_builds_its_artifacts(lesser: Project) -> None:
    pytest.importorskip("onnxruntime")
    (lesser.path / "lesser" / "sitecustomize.py").write_text(LESSER.replace('"SIGKILL", ', ""))  # torch's compiler, too
    lesser.subprocess("--qat-model=models:good", "--qat-recipe=pt2e-onnxruntime", "-k", "convert or size",
                      "--qat-min-size-reduction=0").assert_outcomes(passed=2, deselected=6)


@pytest.mark.skipif(sys.platform != "linux", reason="compares with a system that lacks nothing")
def test_where_nothing_is_lost_nothing_is_said(project: Project) -> None:
    result = project.run("--qat-model=models:good", "-k", "prepare")
    assert not [line for line in result.outlines if line.startswith("qat: on this system")]
