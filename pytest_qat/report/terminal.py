"""Draw the tables of the record for a terminal with rich; `tables` makes the rows and their wording."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pytest_qat.record.schema import Probes, Ranking, RunRecord
from pytest_qat.report import tables

__all__ = ["render"]

_STYLES = {"passed": "green", "failed": "bold red", "inconclusive": "yellow", "blocked": "dim",
           "error": "red", "warning": "yellow", "note": "dim"}
_LEFT = ("", "recipe", "verdict")
_INDENT = (0, 0, 0, 2)


def render(runs: Iterable[RunRecord], *, width: int, color: bool, rankings: Iterable[Ranking] = (),
           probes: Iterable[Probes] = ()) -> str:
    """Return the tables of all runs and rankings as text.

    Args:
        runs: The merged runs of a session.
        width: Number of columns of the terminal; less than 80 counts as 80.
        color: Whether to use ANSI colors.
        rankings: The rankings of recipes, which come after the runs.
        probes: Which recipes work with each model; these come last.
    """
    sink = io.StringIO()
    console = Console(file=sink, width=max(width, 80), force_terminal=color, no_color=not color,
                      color_system="standard" if color else None, legacy_windows=False, highlight=False)
    for group in (*map(_run, runs), *map(_ranking, rankings), *map(_probes, probes)):
        console.print(group)
        console.print()
    return "\n".join(_without_padding(line) for line in sink.getvalue().rstrip().splitlines()) + "\n"


def _without_padding(line: str) -> str:
    """Remove the spaces that rich adds at the end of a line, including those between color codes."""
    kept = re.sub(r"(?:\x1b\[[0-9;]*m| )+$", "", line)
    return f"{kept}\x1b[0m" if "\x1b" in kept else kept


def _run(run: RunRecord) -> Group:
    name, conditions = tables.title(run)
    parts: list[RenderableType] = [Text.assemble((name, "bold"), f"  {conditions}")]
    rows = tables.rows(run)
    if rows:
        table = _empty_table(tables.COLUMNS)
        for row in rows:
            table.add_row(row.label, *row.cells, _verdict(row))
        parts.append(table)
    parts += [Text(line, style="dim") for line in tables.note_lines(run)]
    parts += [Padding(Text.assemble((line.head, _STYLES[line.kind]), line.text), _INDENT)
              for line in (*tables.check_lines(run), *tables.finding_lines(run))]
    return Group(*parts)


def _ranking(ranking: Ranking) -> Group:
    table = _empty_table(tables.RANKING_COLUMNS)
    for row in tables.ranking_rows(ranking):
        table.add_row(*row.cells, Text(row.state, style=_STYLES["passed"] if row.holds else "dim"))
    return Group(Text(tables.ranking_title(ranking), style="bold"), table,
                 *(Padding(Text(note), _INDENT) for note in tables.ranking_notes(ranking)))


def _probes(probes: Probes) -> Group:
    table = _empty_table(tables.PROBE_COLUMNS)
    for name, works, *rest in tables.probe_rows(probes):
        table.add_row(name, Text(works, style=_STYLES["passed"] if works == "yes" else "dim"), *rest)
    return Group(Text(f"{probes['name']}: which recipes work", style="bold"), table,
                 *(Padding(Text(note), _INDENT) for note in tables.probe_notes(probes)))


def _empty_table(columns: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    return table


def _verdict(row: tables.Row) -> Text:
    if row.check is None:
        return Text("")
    return Text(row.outcome, style=_STYLES[row.outcome]) if row.outcome else Text("not checked", style="dim")
