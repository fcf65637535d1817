"""What is being done just now, as one line: with a bar for a terminal, plain for a pipe or a file.

Pure but for rich, which is imported where a line for a terminal is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_qat.core.progress import Step
from pytest_qat.core.text import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Work", "live_line", "plain_line", "work_of"]

_BAR = 24
_LEAST_FOR_BAR = 70
"""Columns below which a bar would leave no room for words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a process is doing, as plain values that a worker of pytest-xdist can send.

    Attributes:
        subject: Model and recipe.
        stage: Stage, and what of it is done just now.
        elapsed_s: For how long that has been going on.
        done: How much of it is done.
        total: How much there is to do; None where that is not known.
        unit: What is counted.
        budget_s: Seconds that are meant to be used up, or None.
        limit_s: Most seconds that it may take, or None.
        detail: Something else to show.
        still: Whether nothing may run beside it.
    """

    subject: str
    stage: str
    elapsed_s: float = 0.0
    done: int = 0
    total: int | None = None
    unit: str = ""
    budget_s: float | None = None
    limit_s: float | None = None
    detail: str = ""
    still: bool = False


def work_of(steps: Sequence[Step], *, elapsed_s: float) -> Work:
    """Return what open steps amount to: the innermost one, named by it and by the outermost one of its subject.

    Args:
        steps: At least one, the outermost first.
        elapsed_s: For how long the innermost one has been open.
    """
    last = steps[-1]
    subject = next((each.subject for each in reversed(steps) if each.subject), "")
    begin = max((place for place, each in enumerate(steps) if each.subject), default=0)
    names = [each.name for each in steps[begin:] if each.name]
    return Work(subject=subject, stage=": ".join(dict.fromkeys([*names[:1], *names[-1:]])), elapsed_s=elapsed_s,
                done=last.done, total=last.total, unit=last.unit, budget_s=last.budget_s, limit_s=last.limit_s,
                detail=last.detail, still=any(each.still for each in steps))


def plain_line(works: Mapping[str, Work]) -> str:
    """Return a line without colors.

    Args:
        works: By worker of pytest-xdist; the name is empty without it.
    """
    return "qat: " + "; ".join(f"{f'{worker} ' if worker else ''}{_title(work)}, {', '.join(_figures(work))}"
                               for worker, work in works.items())


def live_line(works: Mapping[str, Work], *, width: int, color: bool, encoding: str = "utf-8") -> str:
    """Return a line for a terminal, with its escape codes for color, cut off at its width.

    Args:
        works: At least one, by worker of pytest-xdist; a single one gets a bar.
        width: Columns; one is left free, so that no terminal wraps.
        color: Whether to use color.
        encoding: Of the terminal; without UTF-8 the bar is made of ASCII.
    """
    from rich.console import Console
    from rich.text import Text

    columns = max(width - 1, 8)
    file = _Terminal(encoding)
    console = Console(file=file, width=columns, force_terminal=True, legacy_windows=False, highlight=False,
                      color_system="standard" if color else None, no_color=not color, emoji=False, markup=False)
    if len(works) == 1:
        [(worker, work)] = works.items()
        line = _with_bar(worker, work, columns)
    else:
        line = Text(" | ".join(f"{worker} {_title(work)} {_figures(work)[0]}" for worker, work in works.items()))
        line.truncate(columns, overflow="ellipsis" if console.encoding.startswith("utf") else "crop")
    console.print(line, end="", soft_wrap=False, no_wrap=True, overflow="crop", crop=True)
    return file.getvalue().replace("\n", "")


class _Terminal(io.StringIO):
    """Text that is printed in the encoding of a terminal."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def _with_bar(worker: str, work: Work, columns: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{worker} " if worker else "").append(work.subject, style="bold").append(f" {work.stage}".rstrip())
    figures = Text(", ".join(_figures(work)), style="cyan")
    share = _share(work)
    if share is None or columns < _LEAST_FOR_BAR:
        line = title.append(", ").append(figures)
        line.truncate(columns, overflow="crop")
        return line
    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True, overflow="crop", max_width=columns // 2)
    row.add_column(width=_BAR)
    row.add_column(no_wrap=True, overflow="crop")
    row.add_row(title, ProgressBar(total=1.0, completed=share, width=_BAR, style="bright_black", complete_style="green",
                                   finished_style="green"), figures)
    return row


def _title(work: Work) -> str:
    return f"{work.subject} {work.stage}".strip()


def _share(work: Work) -> float | None:
    if work.total:
        return min(1.0, work.done / work.total)
    return min(1.0, work.elapsed_s / work.budget_s) if work.budget_s else None


def _figures(work: Work) -> list[str]:
    """Return how far it is, for how long it has been going on, and what else there is to say."""
    count = []
    if work.total is not None:
        count = [f"{work.done}/{work.total} {work.unit}".rstrip()]
    elif work.done:
        count = [f"{work.done} {work.unit}".rstrip()]
    spent = duration(work.elapsed_s)
    if work.budget_s is not None:
        spent += f" of {duration(work.budget_s)}"
    if work.limit_s is not None:
        spent += f" (at most {duration(work.limit_s)})"
    return [*count, spent, *([work.detail] if work.detail else [])]
