"""Failing examples as files: a failed law writes one, and `--qat-replay` reads it back."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_qat.core.files import write_whole
from pytest_qat.core.versions import package_versions
from pytest_qat.errors import DataError, StageError
from pytest_qat.properties.examples import decode, encode
from pytest_qat.properties.law import Law
from pytest_qat.properties.laws import get_law
from pytest_qat.properties.runner import Failure

__all__ = ["SavedExample", "read_saved", "saved_files", "write_saved"]

SCHEMA_VERSION = 1
_EXPECTED = "Pass a file that a failed law has written, or a folder of such files."


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedExample:
    """A failing example that was read from a file.

    Attributes:
        reference: The reference that names the implementation.
        ops: Name of the implementation.
        law: The law that it broke.
        example: The example.
        lines: What the failure said.
        versions: Versions of Python and the packages when it failed.
    """

    reference: str
    ops: str
    law: Law
    example: Any
    lines: tuple[str, ...]
    versions: dict[str, str]


def write_saved(failure: Failure, folder: Path, *, reference: str, seed: int) -> Path:
    """Write a failure to a new file, named after the law and the example, and return its path.

    Raises:
        StageError: the disk is full, or the folder cannot be written.
    """
    document = {"schema_version": SCHEMA_VERSION, "reference": reference, "ops": failure.ops, "law": failure.law,
                "example": encode(failure.example), "lines": list(failure.lines), "seed": seed,
                "versions": {"python": platform.python_version(), **package_versions()}}
    text = json.dumps(document, indent=2)
    digest = hashlib.sha256(json.dumps([document["reference"], failure.ops, document["example"]]).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{failure.law}-{failure.ops}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"cannot write to {folder}: {error.strerror or error}.",
                         hint="Set cache_dir to a writable folder.") from error
    path = folder / f"{name}-{digest[:8]}.json"
    write_whole(text.encode(), path)
    return path


def saved_files(path: Path) -> list[Path]:
    """Return the saved examples in a folder, or the file itself.

    Raises:
        DataError: there are none.
    """
    found = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise DataError(f"there are no saved examples at {path}.", hint=_EXPECTED)
    return found


def read_saved(path: Path) -> SavedExample:
    """Read a file that `write_saved` wrote.

    Raises:
        DataError: it is not such a file, or it names a law that does not exist.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA_VERSION:
            raise DataError(f"{path.name} has schema version {document['schema_version']!r}, expected "
                            f"{SCHEMA_VERSION}.", hint="Run --qat-ops again with this version.")
        law = get_law(document["law"])
        return SavedExample(
            reference=str(document["reference"]), ops=str(document["ops"]), law=law,
            example=decode(law.example, document["example"]), lines=tuple(map(str, document["lines"])),
            versions=dict(document["versions"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name} is not a saved example: {type(error).__name__}: {error}.",
                        hint=_EXPECTED) from error
