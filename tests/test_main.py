"""`python -m pytest_qat`."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from pytest_qat.__main__ import main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pytest_qat", *arguments], capture_output=True, text=True, check=False,
                          timeout=60)


def test_version_prints_what_is_installed() -> None:
    done = run("--version")
    assert done.returncode == 0, done.stderr
    printed = dict(line.split() for line in done.stdout.splitlines())
    assert printed["torch"] == metadata.version("torch")
    assert printed["pytest-qat"] == metadata.version("pytest-qat")
    installed = {distribution.name for distribution in metadata.distributions()}
    for runtime in ("executorch", "litert-torch", "onnxruntime"):
        assert (runtime in printed) == (runtime in installed)


def test_help_says_how_to_check_a_model() -> None:
    for arguments in ((), ("--help",)):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "pytest --qat-model=" in done.stdout


def test_an_unknown_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--verzion"])
    assert ended.value.code == 2
    assert "--verzion" in capsys.readouterr().err
