"""Build an artifact in a process of its own: converters and first runs may crash, hang or print, but not here.

Run as a script, this module is such a process: `python -m pytest_qat.runtimes.build MODULE PROGRAM ARTEFACT THREADS`
loads an exported program, lets the runtime's module build its artifact, and runs that once. What it is at, and how
it ended, it notes in a file beside the artifact.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_qat.core.files import write_whole
from pytest_qat.core.torch_state import child_environment
from pytest_qat.errors import CheckFailed, QATError, StageError
from pytest_qat.findings import Finding
from pytest_qat.runtimes.base import Kernel, StoredTensor

__all__ = ["Built", "build"]

_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a child made.

    Attributes:
        artifact: The file that ships.
        kernels: What it computes.
        tensors: What is stored in it.
    """

    artifact: Path
    kernels: tuple[Kernel, ...]
    tensors: tuple[StoredTensor, ...]


def build(runtime: str, programs: Mapping[str, Path], artifacts: Mapping[str, Path], *, module: str, threads: int,
          timeout_s: float) -> dict[str, Built]:
    """Build all sides at the same time, each in a child process.

    Args:
        runtime: Name of the runtime, for messages.
        programs: Exported programs on disk, by side.
        artifacts: Files to write, by side.
        module: Full name of the runtime's module, which the children import.
        threads: Threads of the first run.
        timeout_s: Most seconds for all of them.

    Raises:
        CheckFailed: a child died by a signal or took too long.
        StageError: a child raised.
    """
    environment = {**child_environment(threads=threads), "TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "3"}
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for side, program in programs.items():
            _note_of(artifacts[side]).unlink(missing_ok=True)  # of an earlier child
            with _log_of(artifacts[side]).open("wb") as log:
                children[side] = subprocess.Popen(  # noqa: S603 - this module, run by this interpreter
                    [sys.executable, "-m", __name__, module, str(program), str(artifacts[side]), str(threads)],
                    env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log,  # the pipe: see _end_with_parent
                    start_new_session=True)
        ends = time.monotonic() + timeout_s
        return {side: _outcome(side, runtime, child, artifacts[side], ends=ends, timeout_s=timeout_s)
                for side, child in children.items()}
    finally:
        for child in children.values():
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and whatever it has started, such as compilers."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _outcome(side: str, runtime: str, child: subprocess.Popen[bytes], artifact: Path, *, ends: float,
             timeout_s: float) -> Built:
    try:
        status = child.wait(timeout=max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise CheckFailed([f"{runtime} did not get done with the {side} model in {timeout_s:g} s."], findings=[Finding(
            code="stage-timeout", severity="error", evidence={"timeout_s": timeout_s, "stage": _stage_of(artifact)},
            message=f"it hangs, or needs longer, in {_stage_of(artifact)}.",
            remedy="give --qat-stage-timeout more seconds, or a smaller model or example_inputs.")]) from None
    told = _told(artifact)
    if status < 0 and "kernels" not in told:  # one that dies in its own clearing up has done its work
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        raise CheckFailed(
            [f"{runtime} died with {name} ({signal.strsignal(-status)}) on the {side} model in {_stage_of(artifact)}."],
            findings=[Finding(
                code="native-crash", severity="error", evidence={"signal": name, "stage": _stage_of(artifact)},
                message=f"native code of {runtime} crashes on the {side} model.",
                remedy="name the last module that it worked on in skip=(...), or choose another recipe.")])
    if "error" in told:
        raise StageError(f"{runtime} cannot take the {side} model: {told['error']}",
                         hint=told.get("hint") or "Look at the whole error by converting it in a shell, or choose "
                                                  "another recipe.")
    if "kernels" not in told:
        tail = _log_of(artifact).read_bytes()[-_TAIL:].decode(errors="replace").strip().splitlines()
        raise StageError(f"{runtime} ended with status {status} on the {side} model: {tail[-1] if tail else 'silence'}",
                         hint="Choose another recipe.")
    return Built(artifact=artifact, kernels=tuple(Kernel(**entry) for entry in told["kernels"]),
                 tensors=tuple(StoredTensor(**{**entry, "shape": tuple(entry["shape"])}) for entry in told["tensors"]))


def _note_of(artifact: Path) -> Path:
    return artifact.with_suffix(".json")


def _log_of(artifact: Path) -> Path:
    return artifact.with_suffix(".log")


def _told(artifact: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(_note_of(artifact).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told


def _stage_of(artifact: Path) -> str:
    return str(_told(artifact).get("stage", "starting"))


def _tell(artifact: Path, **what: Any) -> None:
    """Replace the note at once, so that a reader never sees half of it."""
    draft = artifact.with_suffix(".draft")
    draft.write_text(json.dumps(what), encoding="utf-8")
    draft.replace(_note_of(artifact))


def _end_with_parent(pipe: int) -> None:
    """Wait for the end of the parent, then end this process and whatever it has started.

    Args:
        pipe: Nothing is ever written to it, and the system closes it when the parent is gone, however it went.
    """
    os.read(pipe, 1)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)  # the child leads a session of its own
    os._exit(1)


def _main(module: str, program: str, artifact: str, threads: str) -> None:
    """Be the child."""
    import torch

    path = Path(artifact)
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    try:
        made: Any = importlib.import_module(module)
        _tell(path, stage="loading the exported program")
        exported = made.load_exported(Path(program))
        _tell(path, stage="lowering")
        leaves = _example_leaves(exported)
        content, kernels = made.lower(exported)
        _tell(path, stage="writing the artifact")
        write_whole(content, path)
        _tell(path, stage="loading the artifact")
        call = made.load(path, threads=int(threads))
        _tell(path, stage="the first run")
        call(leaves)
        _tell(path, stage="looking into the artifact")
        kernels = made.seen_in(path, kernels)
        tensors = made.stored_in(path)
        _tell(path, stage="done", kernels=[asdict(kernel) for kernel in kernels],
              tensors=[asdict(tensor) for tensor in tensors])
    except Exception as error:  # tells the parent, whatever it is
        _tell(path, stage=_stage_of(path), hint=getattr(error, "hint", ""),
              error=f"{type(error).__name__}: {_cause(error)[:300]} (in {_stage_of(path)})")


def _cause(error: BaseException) -> str:
    """Return the first line of what an error was raised from in the end: converters wrap it in advice.

    Errors of this package say all themselves.
    """
    while not isinstance(error, QATError) and error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or ["no message"])[0]


def _example_leaves(exported: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = exported.example_inputs
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


if __name__ == "__main__":
    kept = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a converter that asks a question gets no answer
    threading.Thread(target=_end_with_parent, args=(kept,), daemon=True).start()
    _main(*sys.argv[1:])
