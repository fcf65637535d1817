"""Keep what libraries print about themselves off the user's terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

__all__ = ["quiet_loggers", "silenced"]

_NOISY_LOGGERS = ("torch.__trace", "torch.utils._pytree")
"""Thousands of records from every export, at level DEBUG whatever the settings, and a warning about torchao's own code
when torchao is imported."""


@contextlib.contextmanager
def quiet_loggers() -> Iterator[None]:
    """Disable the loggers through which torch talks about itself, and restore them on leaving.

    The user's warnings and loggers are left alone, and so are torch's other loggers. TORCH_TRACE, with which a user
    asks for these records, keeps them on.
    """
    before = {logger: logger.disabled for logger in map(logging.getLogger, _NOISY_LOGGERS)}
    try:
        for logger in before:
            logger.disabled = logger.disabled or "TORCH_TRACE" not in os.environ
        yield
    finally:
        for logger, was_disabled in before.items():
            logger.disabled = was_disabled


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Discard what is written to file descriptor 2 by native code that starts up.

    `sys.stdout` and `sys.stderr` are flushed first, so nothing of Python's is lost.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    try:
        kept = os.dup(2)
    except OSError:  # it is closed, so nothing can be printed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
