"""`python -m pytest_qat`."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pytest_qat.__main__ import _page, main
from pytest_qat.core.finding_codes import CodeNotes, finding_codes


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


def test_explaining_a_code_prints_meaning_evidence_and_remedy() -> None:
    done = run("explain", "float-into-int8")
    assert (done.returncode, done.stderr) == (0, "")
    printed = " ".join(done.stdout.split())
    for part in ("float-into-int8 (error)", "a float tensor reaches it", "Evidence: - stage, error, line",
                 "put a QuantStub in front of", "workflows/known_errors/int8_calls"):
        assert part in printed


def test_every_code_can_be_explained() -> None:
    for code, notes in finding_codes().items():
        page = _page(notes)
        assert page.startswith(f"{code} (")
        assert all(len(line) <= 100 for line in page.splitlines())


@pytest.mark.parametrize(("code", "near"), [("flot-into-int8", "float-into-int8"), ("no-engine", "no-quantized-engine"),
                                            ("mixed-dtype", "mixed-dtypes")])
def test_an_unknown_code_names_near_ones(code: str, near: str) -> None:
    done = run("explain", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert code in done.stderr
    assert near in done.stderr


def test_a_code_unlike_any_other_is_refused_in_one_sentence() -> None:
    done = run("explain", "zzzz")
    assert (done.returncode, done.stderr) == (2, "No finding has the code 'zzzz'.\n")


def test_explaining_nothing_prints_the_usage() -> None:
    done = run("explain")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m pytest_qat explain")


def test_explaining_imports_no_torch() -> None:
    code = ("import sys; from pytest_qat.__main__ import main\n"
            "main(['explain', 'mixed-dtypes']); print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"


def test_what_is_assigned_passed_on_or_made_from_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "table.py").write_text("""
TEXT = "the model is {what}."

class Entry:
    pass

def made(entry):
    return Finding(code=entry.code, evidence={"stage": 1, "place": 2})

ENTRIES = [Entry(code="of-a-table", message=TEXT, remedy="do {this}, as in f(x={{0: 1}}).")]
""", encoding="utf-8")
    (tmp_path / "plain.py").write_text("""
def find(name, late):
    evidence = {"name": name}
    return Finding(code="plain", severity="note", message=f"{name}{late} is odd.", remedy="wait" if late else "",
                   evidence=evidence)
""", encoding="utf-8")
    codes = finding_codes(tmp_path)
    assert list(codes) == ["of-a-table", "plain"]
    assert codes["of-a-table"] == CodeNotes(
        code="of-a-table", severities=("error",), messages=("the model is ….",), remedies=("do …, as in f(x={0: 1}).",),
        evidence=("stage", "place"), modules=("table",))
    assert codes["plain"] == CodeNotes(code="plain", severities=("note",), messages=("… is odd.",), remedies=("wait",),
                                       evidence=("name",), modules=("plain",))
