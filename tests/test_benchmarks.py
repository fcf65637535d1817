"""The scripts behind the figures of the documentation can be run: each imports, and has a `main`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
SHARED = ("pairs", "plain_script")
"""What benchmarks share, and the one that is run as a whole by another."""
# torch.testing's utilities load a Hypothesis profile when imported, so each import has a process of its own.
PROGRAM = """
import importlib, sys, traceback, warnings
warnings.simplefilter("ignore")
failed = []
for name in sys.argv[1:]:
    try:
        assert callable(importlib.import_module(f"tests.benchmarks.{name}").main)
    except BaseException:
        failed.append(name)
        traceback.print_exc()
sys.exit(f"these do not import: {', '.join(failed)}" if failed else 0)
"""


@pytest.mark.slow
def test_every_benchmark_imports_and_has_a_main() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in (*SHARED, "__init__"))
    assert len(names) > 10
    result = subprocess.run([sys.executable, "-c", PROGRAM, *names], cwd=FOLDER.parent.parent, check=False, timeout=300,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
