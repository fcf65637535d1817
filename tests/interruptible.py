"""Processes that Ctrl-C reaches, also where SIGINT is ignored, as in a background job: children inherit that."""

from __future__ import annotations

__all__ = ["INTERRUPTIBLE"]

INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""To be put before the program of `python -c`."""
