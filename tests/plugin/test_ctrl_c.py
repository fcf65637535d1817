"""Ctrl-C ends the session in each stage, says so in pytest's words, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project
from interruptible import INTERRUPTIBLE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")]
LONG_S = 240.0

MODELS = '''
    import os, sys, time
    from pathlib import Path

    PARENT = int(os.environ.setdefault("QAT_TEST_PARENT", str(os.getpid())))

    def there():
        """Say which process got here, and stay."""
        Path("draft").write_text(str(os.getpid()))
        Path("draft").replace("there")
        time.sleep(600)

    def loading():
        there()

    def training():
        return case(train=lambda model: there())

    class InGrandchild(Net):
        def forward(self, x):
            if PARENT not in (os.getpid(), os.getppid()):
                there()
            return super().forward(x)

    class InChild(Net):
        def forward(self, x):
            if PARENT != os.getpid():
                there()
            return super().forward(x)

    def first_call():
        return case(model=InChild().eval())

    def probing():
        return case(model=InGrandchild().eval())

    def lowering():
        from pytest_qat.runtimes.build import build

        script = "import models; models.there()"
        build.__kwdefaults__["child"] = (sys.executable, "-c", script)
        return case(train=None, train_data=None, loss_fn=None)

    def evaluating():
        return case(metric=lambda output, target: there())
'''
TIMING = '''
    import time
    from pathlib import Path

    def test_timing(qat_compare_latency):
        def call():
            Path("there").write_text("0")
            time.sleep(0.2)

        qat_compare_latency(call, call)
'''
HOLDER = """
from pytest_qat.measure.machine_lock import MachineLock
with MachineLock().alone():
    print("held", flush=True)
    input()
"""


@contextlib.contextmanager
def held_machine(temporary: Path) -> Iterator[int]:
    """Let another process hold the lock of the machine whose temporary folder this is; yield its number."""
    with subprocess.Popen([sys.executable, "-c", INTERRUPTIBLE + HOLDER], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(temporary)}) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield holder.pid
        finally:
            holder.kill()


def interrupted(project: Project, *arguments: str, when: str = "") -> str:
    """Run pytest, send SIGINT to it alone once it prints something, else once there is a file; return its output."""
    out = project.path / "out.txt"
    with out.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-c", f"{INTERRUPTIBLE}import pytest; raise SystemExit(pytest.main())",
             "-p", "no:randomly", "--qat-max-time=600", "--qat-memory=off", "--qat-diagnose=off", *arguments],
            cwd=project.path, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(project.path)})
        try:
            ends = time.monotonic() + LONG_S
            while run.poll() is None and time.monotonic() < ends:
                if when in out.read_text() if when else (project.path / "there").exists():
                    break
                time.sleep(0.05)
            assert run.poll() is None, out.read_text()
            run.send_signal(signal.SIGINT)
            sent = time.monotonic()
            code = run.wait(timeout=LONG_S)
            took_s = time.monotonic() - sent
        finally:
            run.kill()
            run.wait()
    text = out.read_text()
    assert code == pytest.ExitCode.INTERRUPTED, text
    assert took_s < 60, "it waited for something"
    assert "INTERNALERROR" not in text
    assert "KeyboardInterrupt" in text
    return text


def is_gone(pid: int, *, within_s: float = 20.0) -> bool:
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("function", "arguments"), [
    ("loading", ()),
    ("training", ()),
    ("evaluating", ()),
    ("probing", ("--qat-probe", "--qat-recipe=eager-x86")),
    ("first_call", ("--qat-recipe=eager-x86",)),
    ("lowering", ("--qat-recipe=pt2e-onnxruntime",)),
])
def test_ctrl_c_ends_a_stage_and_its_processes(project: Project, function: str, arguments: tuple[str, ...]) -> None:
    if function == "lowering":
        pytest.importorskip("onnxruntime")
    project.add(MODELS)
    interrupted(project, f"--qat-model=models:{function}", *arguments)
    assert is_gone(int((project.path / "there").read_text()))


def test_ctrl_c_ends_a_timing(project: Project) -> None:
    project.pytester.makepyfile(TIMING)
    assert "KeyboardInterrupt" in interrupted(project, "test_ctrl_c_ends_a_timing.py")


def test_whoever_waits_for_the_machine_says_for_whom_and_ctrl_c_ends_it(project: Project) -> None:
    with held_machine(project.path) as pid:
        text = interrupted(project, "--qat-model=models:good", when=f", pid {pid} (-c) has had it for ")
    assert f"pid {pid}" in text
