"""`python -m pytest_qat --version`: which versions of this package, PyTorch and the runtimes are installed.

It imports none of them. Everything else is an option of pytest: `pytest --qat-model=package.module:function`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pytest_qat.core.versions import package_versions, runtime_versions

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is asked for and return the exit code: 0; argparse exits with 2 on arguments that it does not know.

    Args:
        arguments: Instead of the command line's.
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
    parser.parse_args(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
