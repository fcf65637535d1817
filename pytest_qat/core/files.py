"""Write files completely or not at all."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from pytest_qat.errors import StageError

__all__ = ["save_whole", "write_whole"]


def write_whole(content: bytes, path: Path) -> None:
    """Write a file; if that fails, leave no partial file behind.

    torch's own functions that write files are not used, because they abort the process when the disk is full.

    Raises:
        StageError: the file cannot be written.
    """
    draft = path.with_suffix(f"{path.suffix}.part")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise StageError(f"cannot write {path.name} ({len(content):,} bytes): {error.strerror or error}",
                         hint="Free some space, or set TMPDIR to a folder with room.") from error


def save_whole(value: Any, path: Path) -> None:
    """Save a value as `torch.save` does, completely or not at all.

    Raises:
        StageError: the file cannot be written.
    """
    content = io.BytesIO()
    torch.save(value, content)
    write_whole(content.getvalue(), path)
