"""The child process in which a runtime builds one artifact and runs it once (see `build`).

Run as `python -m pytest_qat.runtimes.build_child RUNTIME PROGRAM ARTIFACT THREADS`. What it is doing, and how it
ended, is in a note beside the artifact (see `build_note`).
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.files import write_whole
from pytest_qat.core.quiet import quiet_loggers
from pytest_qat.core.system import kill_group
from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.exported.places import blamed_node, described, line_of, op_of
from pytest_qat.exported.program import load_exported, module_of
from pytest_qat.findings import Finding
from pytest_qat.runtimes import load_runtime, parse_runtime_name
from pytest_qat.runtimes.build_note import Note, read_note, write_note
from pytest_qat.runtimes.exported import ExportedRuntime

__all__ = ["build_artifact", "main"]

_MOST_CHARACTERS = 300
_FRAMES = 3


def main(name: str, program: str, artifact: str, threads: str, *,
         load: Callable[[str], ExportedRuntime] | None = None) -> None:
    """Build an artifact with nothing on the standard input, and end when the parent ends.

    Args:
        name: Name of the runtime.
        program: Path of the exported program.
        artifact: Path of the file to write.
        threads: Intra-op threads.
        load: Returns the runtime of a name; None: one of this package's.
    """
    parent = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a converter that asks a question gets no answer
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    build_artifact(name, Path(program), Path(artifact), threads=int(threads), load=load or _exported_runtime)


def _exported_runtime(name: str) -> ExportedRuntime:
    runtime = load_runtime(parse_runtime_name(name))
    assert isinstance(runtime, ExportedRuntime), "unreachable because only these build in a child process"
    return runtime


def _end_with_parent(pipe: int) -> None:
    """Wait for the end of the parent, then kill this process and the processes it has started.

    Args:
        pipe: Nothing is ever written to it. The system closes it when the parent ends, even if it is killed.
    """
    os.read(pipe, 1)
    kill_group(0)  # the child leads a process group of its own
    os._exit(1)


def build_artifact(name: str, program: Path, artifact: Path, *, threads: int,
                   load: Callable[[str], ExportedRuntime]) -> None:
    """Build an artifact, run it once and read it; write down each stage, the result or the error.

    Args:
        name: Name of the runtime.
        program: The exported program.
        artifact: The file to write.
        threads: Intra-op threads of the first run.
        load: Returns the runtime of a name.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    exported: list[torch.export.ExportedProgram] = []
    try:
        with quiet_loggers(), torch.no_grad():  # decompositions of some operators fail where autograd looks on
            _build(load(name), program, artifact, threads=threads, exported=exported)
    except Exception as error:  # whatever it is, the parent reports it
        write_note(_failure(error, name, read_note(artifact).stage, exported), artifact)


def _failure(error: Exception, name: str, stage: str, exported: list[torch.export.ExportedProgram]) -> Note:
    """Return what the parent is told about an error: the user's module and line wherever something tells them."""
    if isinstance(error, CheckFailed):
        return Note(stage=stage, reasons=error.reasons, findings=error.findings)
    text = f"{type(error).__name__}: {_cause(error)[:_MOST_CHARACTERS]}"
    if isinstance(error, QATError):
        return Note(stage=stage, hint=error.hint, error=f"{text} (in {stage})")
    node = blamed_node(error, exported[0].graph) if exported else None
    if node is None:
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        raised = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        return Note(stage=stage, error=f"{text} (in {stage}; raised at {raised})")
    line = line_of(node)
    return Note(stage=stage, reasons=(f"{type(error).__name__} in {stage}.",), findings=(Finding(
        code="not-lowerable", severity="error", module=module_of(node) or None,
        message=f"{name} stopped at {described(node)}: {text.rstrip('.')}.",
        evidence={"error": type(error).__name__, "op": op_of(node), "line": line, "stage": stage}),))


def _build(runtime: ExportedRuntime, program: Path, artifact: Path, *, threads: int,
           exported: list[torch.export.ExportedProgram]) -> None:
    def enter(stage: str) -> None:
        write_note(Note(stage=stage), artifact)

    enter("loading the exported program")
    exported.append(load_exported(program))  # for the caller, who may have to tell what failed in it
    example = _example_tensors(exported[0])
    enter("lowering")
    lowered = runtime.lower(exported[0])
    enter("writing the artifact")
    write_whole(lowered.content, artifact)
    enter("loading the artifact")
    call = runtime.load(artifact, threads=threads)
    enter("the first run")
    call(example)
    enter("reading the artifact")
    kernels, tensors = runtime.kernels_in(artifact, lowered.kernels), runtime.tensors_in(artifact)
    write_note(Note(stage="exiting", done=True, kernels=kernels, tensors=tensors), artifact)


def _cause(error: BaseException) -> str:
    """Return the first line of the error that started a chain of them, because converters wrap it in advice.

    Errors of this package are complete by themselves.
    """
    while not isinstance(error, QATError) and error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or ["no message"])[0]


def _example_tensors(exported: torch.export.ExportedProgram) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(exported.example_inputs) if isinstance(leaf, Tensor)]


if __name__ == "__main__":
    main(*sys.argv[1:])
