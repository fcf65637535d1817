"""Stand in for `pip` where a page's commands are run: hold `pip install` against pyproject.toml, install nothing."""

from __future__ import annotations

import re
import sys
from importlib import metadata

__all__ = ["main", "problem"]

_OWN = re.compile(r"(?:\.|pytest-qat)(?:\[(?P<extras>[\w,]+)\])?")


def problem(arguments: list[str]) -> str | None:
    """Say what is wrong with the arguments of pip; None if nothing is.

    Args:
        arguments: Such as `["install", "-e", ".[test]"]`.
    """
    if arguments[:1] != ["install"]:
        return f"pip {' '.join(arguments)}: only pip install is known."
    extras = set(metadata.metadata("pytest-qat").get_all("Provides-Extra") or ())
    for name in arguments[1:]:
        if name in ("-e", "-q"):
            continue
        own = _OWN.fullmatch(name)
        if own is None:
            return f"{name} is not this package."
        unknown = set(filter(None, (own["extras"] or "").split(","))) - extras
        if unknown:
            return f"{name}: pyproject.toml has no extra {', '.join(sorted(unknown))}."
    return None


def main() -> int:
    """Check the command line; the exit status is 1 if pip would refuse it."""
    found = problem(sys.argv[1:])
    if found:
        sys.stderr.write(f"{found}\n")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())
