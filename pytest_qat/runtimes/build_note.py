"""The note that a child process keeps beside its artifact: its current stage, and what it built or why it failed.

The parent reads it however the child ended, because a crash leaves no time for a last message.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_qat.findings import Finding
from pytest_qat.runtimes.base import Kernel, StoredTensor

__all__ = ["Note", "delete_note", "read_note", "write_note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a child reports.

    Attributes:
        stage: What it is doing, to be read after "in".
        done: Whether it has built the artifact and read it.
        kernels: What the artifact computes, once done.
        tensors: What is stored in it, once done.
        error: Type, message and stage of what it raised; empty if nothing.
        hint: The hint of the error; empty if it has none.
        reasons: Why the runtime does not take the model, if it was a check that failed.
        findings: The findings of that check.
    """

    stage: str
    done: bool = False
    kernels: tuple[Kernel, ...] = ()
    tensors: tuple[StoredTensor, ...] = ()
    error: str = ""
    hint: str = ""
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def write_note(note: Note, artifact: Path) -> None:
    """Replace the note of an artifact in one step, so that a reader never sees half of it."""
    draft = artifact.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(note)), encoding="utf-8")
    draft.replace(_path_of(artifact))


def read_note(artifact: Path) -> Note:
    """Return the note of an artifact; one with the stage `starting` if the child has not written any."""
    try:
        written = json.loads(_path_of(artifact).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Note(stage="starting")
    kernels = tuple(Kernel(**entry) for entry in written.pop("kernels"))
    tensors = tuple(StoredTensor(**{**entry, "shape": tuple(entry["shape"])}) for entry in written.pop("tensors"))
    findings = tuple(Finding(**entry) for entry in written.pop("findings"))
    return Note(kernels=kernels, tensors=tensors, findings=findings, reasons=tuple(written.pop("reasons")), **written)


def delete_note(artifact: Path) -> None:
    """Delete the note of an artifact if there is one."""
    _path_of(artifact).unlink(missing_ok=True)


def _path_of(artifact: Path) -> Path:
    return artifact.with_suffix(".json")
