"""Build artifacts in child processes: converters and first runs may crash, hang or print without harm to this one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_qat.core import progress
from pytest_qat.core.system import death_by, kill_group
from pytest_qat.core.torch_state import child_environment
from pytest_qat.errors import CheckFailed, StageError
from pytest_qat.findings import Finding
from pytest_qat.recipe import RuntimeName
from pytest_qat.runtimes.base import Kernel, StoredTensor
from pytest_qat.runtimes.build_note import delete_note, read_note

__all__ = ["CHILD", "Built", "build"]

CHILD = (sys.executable, "-m", "pytest_qat.runtimes.build_child")
"""Command of a child process; it takes the name of the runtime, program, artifact and number of threads."""
_TAIL_BYTES = 2000
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a child built.

    Attributes:
        artifact: The file that ships.
        kernels: What it computes.
        tensors: What is stored in it.
    """

    artifact: Path
    kernels: tuple[Kernel, ...]
    tensors: tuple[StoredTensor, ...]


def build(runtime: RuntimeName, programs: Mapping[str, Path], artifacts: Mapping[str, Path], *, threads: int,
          timeout_s: float, child: Sequence[str] = CHILD) -> dict[str, Built]:
    """Build all sides at the same time, each in a child process.

    Args:
        runtime: The runtime that the children load.
        programs: Exported programs on disk, by side.
        artifacts: Files to write, by side.
        threads: Threads of the first run.
        timeout_s: Most seconds for all of them.
        child: Command of a child.

    Raises:
        CheckFailed: the runtime cannot run a model, or a child was killed by a signal or took too long.
        StageError: a child raised.
    """
    environment = {**child_environment(threads=threads), "TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "3"}
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for side, program in programs.items():
            delete_note(artifacts[side])  # of an earlier child
            with _log_of(artifacts[side]).open("wb") as log:
                children[side] = subprocess.Popen(  # noqa: S603 - this package, run by this interpreter
                    [*child, runtime, str(program), str(artifacts[side]), str(threads)],
                    env=environment, stdin=subprocess.PIPE,  # a child ends itself when this pipe closes
                    stdout=log, stderr=log, start_new_session=True)
        ends = time.monotonic() + timeout_s
        built = {}
        with progress.step("building", limit_s=timeout_s) as shown:
            for side, process in children.items():
                _await(process, children, artifacts, ends=ends, shown=shown)
                built[side] = _outcome(side, runtime, process, artifacts[side], ends=ends, timeout_s=timeout_s)
        return built
    finally:
        for process in children.values():
            _end(process)


def _await(child: subprocess.Popen[bytes], children: Mapping[str, subprocess.Popen[bytes]],
           artifacts: Mapping[str, Path], *, ends: float, shown: progress.Step) -> None:
    """Wait until a child has ended or the time is up, and show what the children are doing meanwhile."""
    while child.poll() is None and (left := ends - time.monotonic()) > 0:
        at_work = [side for side, each in children.items() if each.poll() is None]
        shown.advance(0, detail="; ".join(f"{side}: {read_note(artifacts[side]).stage}" for side in at_work))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=min(_LOOK_S, left))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and the processes it has started, such as compilers."""
    kill_group(child.pid)
    child.kill()
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _outcome(side: str, runtime: RuntimeName, child: subprocess.Popen[bytes], artifact: Path, *, ends: float,
             timeout_s: float) -> Built:
    try:
        status = child.wait(timeout=max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        stage = read_note(artifact).stage
        raise CheckFailed([f"{runtime} did not finish the {side} model within {timeout_s:g} s."], findings=[Finding(
            code="stage-timeout", severity="error", evidence={"timeout_s": timeout_s, "stage": stage},
            message=f"{runtime} needs more time in {stage}, or hangs there.",
            remedy=f"if it only needs more time, give --qat-stage-timeout more than {timeout_s:g} s.")]) from None
    note = read_note(artifact)
    if note.done:  # a child that crashes while it exits has done its work
        return Built(artifact=artifact, kernels=note.kernels, tensors=note.tensors)
    death = death_by(status)
    if death is not None:
        raise CheckFailed(
            [f"{runtime} crashed with {death.name} ({death.meaning}) on the {side} model in {note.stage}."],
            findings=[Finding(
                code="native-crash", severity="error", evidence={"signal": death.name, "stage": note.stage},
                message=f"native code of {runtime} crashes on the {side} model.")])
    if note.reasons:
        raise CheckFailed([f"{runtime} cannot run the {side} model: {reason}" for reason in note.reasons],
                          findings=note.findings)
    if note.error:
        raise StageError(f"{runtime} cannot build the {side} model: {note.error}", hint=note.hint)
    tail = _log_of(artifact).read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    raise StageError(f"{runtime} ended with exit status {status} on the {side} model; "
                     f"its last output was: {tail[-1] if tail else 'nothing'}")


def _log_of(artifact: Path) -> Path:
    return artifact.with_suffix(".log")
