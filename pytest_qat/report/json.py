"""`--qat-json`: the canonical record as a file. It is replaced as a whole, so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from pytest_qat.errors import InvalidOption
from pytest_qat.record.schema import Document

__all__ = ["check_writable", "write_json"]


def check_writable(path: Path, *, name: str) -> None:
    """Make sure that a report can be written before anything is measured.

    Raises:
        InvalidOption: the folder is missing or read-only, or the path is a folder.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise InvalidOption(f"{name} is {path}, which is a folder, expected a file.",
                            hint=f"Write {name}={path}/qat.json.")
    if not folder.is_dir():
        raise InvalidOption(f"{name} is {path}, but there is no folder {folder}.",
                            hint=f"Run `mkdir -p {folder}` first.")
    try:
        if _is_device(path):
            path.open("a").close()
        else:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise InvalidOption(f"{name} is {path}, but {folder} cannot be written to ({error.strerror}).",
                            hint="Choose another folder.") from None


def write_json(document: Document, path: Path) -> None:
    """Write the document, replacing an older file in one step; a link stays a link, and a device is written to."""
    text = json.dumps(document, indent=2, allow_nan=False)
    path = path.resolve()
    if _is_device(path):
        path.write_text(text + "\n", encoding="utf-8")
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private; a report is not
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()
