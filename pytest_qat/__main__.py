"""`python -m pytest_qat --version`: which versions of this package, PyTorch and the runtimes are installed.

`python -m pytest_qat explain CODE`: what the code of a finding stands for. Neither imports any of them. Everything else
is an option of pytest: `pytest --qat-model=package.module:function`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Sequence

from pytest_qat.core.finding_codes import CodeNotes, finding_codes
from pytest_qat.core.versions import package_versions, runtime_versions

__all__ = ["main"]

_WIDTH = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is asked for and return the exit code: 0, or 2 for a code that does not exist.

    Args:
        arguments: Instead of the command line's.

    Raises:
        SystemExit: with 2, by argparse, on arguments that it does not know.
    """
    versions = {"python": sys.version.split()[0], **package_versions(), **runtime_versions()}
    width = max(map(len, versions))
    parser = argparse.ArgumentParser(
        prog="python -m pytest_qat", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Quantize a PyTorch model and check its accuracy, speed and size.\n"
                    "To check a model, run: pytest --qat-model=package.module:function\n"
                    "All options: pytest --help, in the group \"quantized models\".")
    parser.add_argument("--version", action="version", help="print the versions of the installed packages and exit",
                        version="\n".join(f"{name:{width}}  {version}" for name, version in versions.items()))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    explain = commands.add_parser("explain", help="print what the code of a finding stands for, and what helps")
    explain.add_argument("code", metavar="CODE", help="code of a finding, such as float-into-int8")
    given = parser.parse_args(arguments)
    if given.command == "explain":
        return _explain(given.code)
    parser.print_help()
    return 0


def _explain(code: str) -> int:
    codes = finding_codes()
    if code in codes:
        sys.stdout.write(_page(codes[code]))
        return 0
    near = difflib.get_close_matches(code, codes, n=3) or [each for each in codes if code in each][:3]
    sys.stderr.write(f"No finding has the code {code!r}" + (f"; near ones: {', '.join(near)}.\n" if near else ".\n"))
    return 2


def _page(notes: CodeNotes) -> str:
    """Return all that is known of a code, as plain text; `…` is for what differs from model to model."""
    parts = [f"{notes.code} ({', '.join(notes.severities)})"]
    for title, lines, otherwise in (
            ("What it says", notes.messages, "nothing beyond its evidence"),
            ("Evidence", [", ".join(notes.evidence)] if notes.evidence else [], "none"),
            ("What helps", notes.remedies, "depends on the model; the finding in the report says it, if anything does"),
            ("Made in", [", ".join(notes.modules)], "")):
        parts += ["", f"{title}:", *(textwrap.fill(line, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
                                     for line in lines or [otherwise])]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
