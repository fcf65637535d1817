"""What a user sees while a model is being tested: on a terminal, in a pipe, under pytest-xdist."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from conftest import Project

from pytest_qat.plugin.progress import kind_of_display
from tests.plugin.terminal import COLUMNS, Screen, Terminal

needs_terminal = pytest.mark.skipif(os.name != "posix", reason="opens a terminal")

SLOW = '''
    import os, sys, time

    def slow():
        print("printed while loading")
        def train(model):
            print("printed by train")
            os.write(1, b"written by native code\\n")
            time.sleep(float(os.environ.get("QAT_TEST_SLEEP", "2.5")))
            with torch.no_grad():
                next(model.parameters()).mul_(1.01)
        return case(name="Slow", train=train)
'''
ARGUMENTS = ("--qat-model=models:slow", "-k", "prepare or convert")
TRAINING = "Slow [fx-x86] convert: fine-tuning by the case's train"


@pytest.fixture
def start(project: Project) -> Iterator[Callable[..., Terminal]]:
    project.add(SLOW)
    opened: list[Terminal] = []

    def started(*arguments: str, **environment: str | None) -> Terminal:
        opened.append(Terminal(*(arguments or ARGUMENTS), cwd=project.path, environment=environment))
        return opened[-1]

    yield started
    for each in opened:
        each.close()


def shows(text: str) -> Callable[[Screen], bool]:
    return lambda screen: any(text in line for line in screen.lines)


def drawn(terminal: Terminal) -> list[str]:
    """Everything that was drawn on the live line, without colors."""
    return [re.sub(r"\x1b\[[0-9;]*m", "", line)
            for line in re.findall(r"\n\x1b\[2K(.*?)\x1b\[1A", terminal.text, re.DOTALL)]


ON_TERMINAL: dict[str, Any] = {
    "terminal": True, "capture": "fd", "live_logs": False, "environment": {"TERM": "xterm"}, "verbosity": 0}


@pytest.mark.parametrize(("changes", "kind"), [
    ({}, "live"), ({"verbosity": 2}, "live"), ({"verbosity": -1}, "live"), ({"verbosity": -2}, "none"),
    ({"terminal": False}, "lines"), ({"terminal": False, "verbosity": -1}, "none"),
    ({"environment": {"TERM": "dumb"}}, "lines"), ({"environment": {}}, "lines"),
    ({"environment": {"TERM": "xterm", "CI": "true"}}, "lines"),
    ({"environment": {"TERM": "xterm", "BUILD_NUMBER": "7"}}, "lines"),
    ({"environment": {"TERM": "xterm", "NO_COLOR": "1"}}, "live"),
    ({"capture": "no"}, "lines"), ({"capture": "tee-sys"}, "lines"), ({"capture": "sys"}, "lines"),
    ({"live_logs": True}, "lines"),
])
def test_a_live_line_needs_a_terminal_of_its_own(changes: Mapping[str, Any], kind: str) -> None:
    assert kind_of_display(**{**ON_TERMINAL, **changes}) == kind


@needs_terminal
@pytest.mark.slow
def test_a_terminal_shows_a_live_line_from_the_start_and_keeps_none_of_it(start: Callable[..., Terminal],
                                                                          project: Project) -> None:
    terminal = start(*ARGUMENTS, "--junitxml=junit.xml", "--qat-json=qat.json", "-o", "junit_logging=all")
    header = terminal.until(shows("qat: 1 model"))
    first = terminal.until(shows("models:slow importing torch, 0 s"))
    assert header is not None
    assert first is not None
    assert first - header < 2.0
    assert terminal.until(shows("models:slow loading"))
    assert terminal.until(shows(f"{TRAINING}, 1 s"))
    assert terminal.screen.lines[-2].rstrip() == "qat-model:models:slow[fx-x86] ."
    assert terminal.screen.lines[-1].startswith(TRAINING)
    assert terminal.wait() == 0
    lines = [line.rstrip() for line in terminal.screen.lines]
    assert any(re.fullmatch(r"qat-model:models:slow\[fx-x86\] \.\. +\[100%\]", line) for line in lines), lines
    assert not any("fine-tuning by" in line and "passed" not in line for line in lines)
    assert not any("importing torch" in line or "printed by" in line or "by native" in line for line in lines)
    assert len(drawn(terminal)) > 8
    assert all(len(line) < COLUMNS for line in drawn(terminal))
    for name in "junit.xml", "qat.json":
        text = (project.path / name).read_text()
        assert "importing torch" not in text
        assert TRAINING not in text
    assert "printed by train" in (project.path / "junit.xml").read_text()


@needs_terminal
@pytest.mark.slow
def test_verbose_lines_stay_whole(start: Callable[..., Terminal]) -> None:
    terminal = start(*ARGUMENTS, "-v", NO_COLOR="1")
    assert terminal.wait() == 0
    lines = [line.rstrip() for line in terminal.screen.lines]
    assert [line.split()[:2] for line in lines if line.startswith("qat-model:")] == [
        ["qat-model:models:slow[fx-x86]::prepare", "PASSED"], ["qat-model:models:slow[fx-x86]::convert", "PASSED"]]
    assert any(line.startswith(TRAINING) for line in drawn(terminal))
    assert re.search(r"\x1b\[[0-9;]*m", terminal.text) is None, "NO_COLOR"


@needs_terminal
@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "environment"), [(("-s",), {}), ((), {"TERM": "dumb"})])
def test_where_no_line_can_be_replaced_none_is(start: Callable[..., Terminal], arguments: tuple[str, ...],
                                               environment: dict[str, str]) -> None:
    terminal = start(*ARGUMENTS, *arguments, **environment)
    assert terminal.wait() == 0
    assert "\x1b[1A" not in terminal.text
    assert ("printed by train" in terminal.text) == ("-s" in arguments)


@needs_terminal
@pytest.mark.slow
def test_a_marked_test_s_model_is_trained_where_output_is_captured(start: Callable[..., Terminal],
                                                                   project: Project) -> None:
    (project.path / "test_user.py").write_text(
        'import pytest\n\n@pytest.mark.qat(model="models:slow", accuracy_drop=0.9)\ndef test_it():\n    pass\n')
    terminal = start("test_user.py")
    assert terminal.wait() == 0
    assert "printed" not in terminal.text
    assert "written by native code" not in terminal.text
    assert any(line.startswith(TRAINING) for line in drawn(terminal))


@needs_terminal
@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_shows_what_it_printed(start: Callable[..., Terminal], project: Project) -> None:
    project.add('def bad():\n    print("printed while loading")\n    raise ValueError("no weights")')
    terminal = start("--qat-model=models:bad")
    assert terminal.wait() == pytest.ExitCode.INTERRUPTED
    lines = [line.rstrip() for line in terminal.screen.lines]
    assert any("Captured stdout" in line for line in lines)
    assert lines.count("printed while loading") == 1


@pytest.mark.slow
def test_a_pipe_gets_a_line_after_ten_seconds(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAT_TEST_SLEEP", "21")
    project.add(SLOW)
    result = project.subprocess(*ARGUMENTS)
    assert result.ret == 0
    lines = [line for line in result.outlines if line.startswith(f"qat: {TRAINING}")]
    seconds = [int(line.rpartition(", ")[2].removesuffix(" s")) for line in lines]
    assert 1 <= len(lines) <= 3
    assert all(after - before >= 9 for before, after in itertools.pairwise(seconds))
    assert "\x1b" not in result.stdout.str()


@pytest.mark.parametrize("arguments", [("-q",), ("-p", "no:terminal"), ()])
def test_a_session_in_another_one_shows_progress_without_another_thread(
        project: Project, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setattr("pytest_qat.report.display.PlainScreen.every_s", 0.0)
    monkeypatch.setattr("pytest_qat.report.display.PlainScreen.least_s", 0.0)
    result = project.run("--qat-model=models:good", "-k", "prepare or convert", *arguments)
    assert result.ret == 0
    lines = [line for line in result.outlines if line.startswith("qat: Net [fx-x86] convert: fine-tuning, ")]
    assert bool(lines) == (arguments == ())
    assert "fine-tuning, " not in "".join(line for line in result.outlines if not line.startswith("qat: "))


@pytest.mark.slow
def test_under_xdist_the_controller_shows_what_workers_do(project: Project) -> None:
    project.add(SLOW + "\n    def other():\n        return slow()")
    (project.path / "fast_lines.py").write_text(
        "from pytest_qat.report.display import PlainScreen\nPlainScreen.every_s = PlainScreen.least_s = 0.0\n")
    result = project.subprocess("--qat-model=models:slow", "--qat-model=models:other", "-k", "prepare or convert",
                                "-n", "2", "--qat-json=qat.json", "-p", "fast_lines")
    assert result.ret == 0, result.stdout.str()
    shown = [line for line in result.outlines if line.startswith("qat: gw")]
    assert any(TRAINING in line for line in shown)
    assert all(re.fullmatch(r"qat: gw\d .*", line) for line in shown)
    assert len(json.loads((project.path / "qat.json").read_text())["runs"]) == 2


@needs_terminal
@pytest.mark.slow
def test_under_xdist_a_terminal_has_one_live_line_for_all_workers(start: Callable[..., Terminal]) -> None:
    terminal = start(*ARGUMENTS, "-n", "2")
    first, second = shows(f"gw0 {TRAINING}"), shows(f"gw1 {TRAINING}")
    assert terminal.until(lambda screen: first(screen) or second(screen))
    assert terminal.wait() == 0
    lines = [line.rstrip() for line in terminal.screen.lines]
    assert not any(TRAINING in line for line in lines)
    assert any(re.fullmatch(r"\.\. +\[100%\]", line) for line in lines), lines
