"""What a row of the walk is: the advice, what calls it forth, and what comes of following it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

from pytest_qat.checks import CheckResult
from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.findings import Finding
from pytest_qat.pipeline.run import StageFailed
from pytest_qat.verdict import Verdict

PLAIN = """
def plain():
    return case(model=Net().eval(), train_data=None, loss_fn=None, eval_data=None)
"""
"""A model of a user's project that is not trained, for advice that has nothing to do with training."""


@dataclass(frozen=True)
class World:
    """What a row may need: a folder, a user's project, and torch's or the machine's parts replaced for a moment."""

    path: Path
    patch: pytest.MonkeyPatch
    project: Project


@dataclass(frozen=True, kw_only=True)
class Row:
    """One piece of advice and what comes of it.

    Attributes:
        path: File in the package.
        text: How the advice begins in the code, with `{}` for what is filled in.
        calls: What makes the package give it.
        follow: The same with the advice followed; what comes of it must be free of this advice.
        then: Part of the next answer where there is one; empty: nothing is left to complain about.
        sites: How often the code has the text.
        slow: Whether it takes long.
    """

    path: str
    text: str
    calls: Callable[[World], object]
    follow: Callable[[World], object]
    then: str = ""
    sites: int = 1
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.path}: {self.text[:90]}"


def said(work: Callable[[World], object], world: World) -> str:
    """Return all that the package says when this is done; empty where it has nothing to say."""
    try:
        value = work(world)
    except StageFailed as failed:
        return _text(failed.error)
    except (CheckFailed, QATError) as error:
        return _text(error)
    return _text(value)


def _text(value: Any) -> str:
    match value:
        case CheckFailed():
            return " ".join([*value.reasons, *map(_text, value.findings)])
        case QATError():
            return f"{value.message} {value.hint}"
        case Finding():
            return f"{value.message} {value.remedy}"
        case Verdict():
            return "" if value.outcome.value == "passed" else " ".join(value.reasons)
        case CheckResult():
            return f"{_text(value.verdict)} {_text(value.findings)}".strip()
        case pytest.RunResult():
            return "" if value.ret == 0 else " ".join(" ".join([*value.outlines, *value.errlines]).split())
        case str():
            return value
        case list() | tuple():
            return " ".join(filter(None, map(_text, value)))
    return ""


def each_told(*works: Callable[[World], object]) -> Callable[[World], object]:
    """Do several things, of which each must be told something."""
    def work(world: World) -> list[str]:
        told = [said(each, world) for each in works]
        assert all(told)
        return told
    return work


def pattern(text: str) -> re.Pattern[str]:
    """Return what finds an advice in what is printed."""
    return re.compile(r"\s+".join(re.escape(word).replace(r"\{\}", ".+?") for word in text.split()), re.DOTALL)


def check(row: Row, text: str, world: World) -> None:
    """Follow a row: the advice is given, and once it is followed it is not given again."""
    first = said(row.calls, world)
    assert pattern(text).search(first), f"this advice is not given; said was: {first!r}"
    second = said(row.follow, world)
    assert not pattern(text).search(second), f"the advice leads in a circle: {second!r}"
    assert row.then in second
    if not row.then:
        assert not second.strip(), f"the advice leads to what it does not tell: {second!r}"


def only(findings: Iterable[Finding], code: str) -> list[Finding]:
    """Return the findings of a code."""
    return [finding for finding in findings if finding.code == code]
