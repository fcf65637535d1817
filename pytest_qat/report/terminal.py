"""The record as tables for a terminal; rich does the drawing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["render"]

_STYLES = {"passed": "green", "failed": "bold red", "inconclusive": "yellow", "blocked": "dim"}
_NOTHING = "–"


def render(runs: Iterable[Mapping[str, Any]], *, width: int, colour: bool) -> str:
    """Return the tables of all runs as text, with ANSI colours if `colour`."""
    sink = io.StringIO()
    console = Console(file=sink, width=max(width, 80), force_terminal=colour, no_color=not colour,
                      color_system="standard" if colour else None, legacy_windows=False, highlight=False)
    for run in runs:
        console.print(_run(run))
        console.print()
    return sink.getvalue().rstrip() + "\n"


def _run(run: Mapping[str, Any]) -> Group:
    parts: list[Any] = [_title(run), _table(run)]
    parts += [Padding(line, (0, 0, 0, 2)) for line in (*_check_lines(run), *_finding_lines(run))]
    return Group(*parts)


def _title(run: Mapping[str, Any]) -> Text:
    threads = f"{run['threads']} thread{'s' if run['threads'] != 1 else ''}"
    batch = f", batch {run['batch']}" if run.get("batch") else ""
    return Text.assemble((f"{run['name']} [{run['recipe']}]", "bold"),
                         f"  {run['model']}, engine {run['engine']}, {threads}{batch}")


def _table(run: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "fp32", "PTQ", "int8", "int8 / fp32", "required", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right", no_wrap=name == "")
    metrics, tolerances = run["metrics"], run["tolerances"]
    _accuracy_row(table, run, metrics["accuracy"], tolerances)
    _speed_rows(table, run, metrics, tolerances)
    _size_row(table, run, metrics, tolerances)
    coverage = metrics["coverage"]
    if coverage is not None:
        floor = tolerances["min_coverage"]
        table.add_row("in int8 (MACs)", _NOTHING, _NOTHING, f"{coverage['mac_share']:.1%}", _NOTHING,
                      f">= {floor:.1%}" if floor is not None else "> 0 %", _verdict(run, "coverage"))
    return table


def _accuracy_row(table: Table, run: Mapping[str, Any], accuracy: Mapping[str, Any] | None,
                  tolerances: Mapping[str, Any]) -> None:
    if accuracy is None:
        return
    label = "accuracy" if accuracy["kind"] == "metric" else "agreement with fp32"
    table.add_row(label, f"{accuracy['fp32']:.2%}",
                  _NOTHING if accuracy["ptq"] is None else f"{accuracy['ptq']:.2%}", f"{accuracy['int8']:.2%}",
                  f"drop {accuracy['drop']:.2%}", f"drop <= {tolerances['accuracy_drop']:.2%}",
                  _verdict(run, "accuracy"))


def _speed_rows(table: Table, run: Mapping[str, Any], metrics: Mapping[str, Any],
                tolerances: Mapping[str, Any]) -> None:
    latency, speedup = metrics["latency_s"], metrics["speedup"]
    if latency is None or speedup is None:
        return
    over_eager = metrics["speedup_over_eager"]
    throughput, note = metrics["throughput_per_s"], metrics["energy_note"]
    table.add_row("latency", _time(latency["fp32"]), _NOTHING, _time(latency["int8"]),
                  _interval(speedup), f">= {tolerances['min_speedup']:.2f}x", _verdict(run, "speedup"))
    table.add_row("  over eager", _time(latency["fp32_eager"]), _NOTHING, _time(latency["int8"]),
                  f"{over_eager['estimate']:.2f}x", _NOTHING, Text("for information", style="dim"))
    table.add_row("throughput", f"{throughput['fp32']:,.0f}/s", _NOTHING, f"{throughput['int8']:,.0f}/s",
                  f"{speedup['estimate']:.2f}x", _NOTHING, Text(f"noise floor {speedup['noise_floor']:.1%}", style="dim"))
    for label, key, unit in (("energy per sample", "energy_j_per_sample", "J"),
                             ("throughput per watt", "throughput_per_w", "/s/W")):
        values = metrics[key]
        if values is None:
            table.add_row(label, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, Text(note or "", style="dim"))
        elif values["fp32"] and values["int8"]:
            table.add_row(label, f"{values['fp32']:.3g} {unit}", _NOTHING, f"{values['int8']:.3g} {unit}",
                          f"{values['fp32'] / values['int8']:.2f}x", _NOTHING, "")


def _size_row(table: Table, run: Mapping[str, Any], metrics: Mapping[str, Any],
              tolerances: Mapping[str, Any]) -> None:
    size = metrics["size_bytes"]
    if size is not None:
        table.add_row("size", _bytes(size["fp32"]), _NOTHING, _bytes(size["int8"]),
                      f"{metrics['size_reduction']:.2f}x", f">= {tolerances['min_size_reduction']:.2f}x",
                      _verdict(run, "size"))


def _check_lines(run: Mapping[str, Any]) -> list[Text]:
    lines = []
    for name, entry in run["checks"].items():
        outcome = entry["outcome"]
        if outcome == "passed" and name in ("accuracy", "size", "speedup"):
            continue  # the table says it
        lines.append(Text.assemble((f"{name} {outcome}: ", _STYLES[outcome]), " ".join(entry["reasons"])))
    return lines


def _finding_lines(run: Mapping[str, Any]) -> list[Text]:
    lines = []
    for finding in run["findings"]:
        if finding["code"] == "left-in-float":
            continue  # coverage's line names them
        where = f"{finding['module']}: " if finding["module"] else ""
        style = {"error": "red", "warning": "yellow", "note": "dim"}[finding["severity"]]
        mend = f" Remedy: {finding['remedy']}" if finding["remedy"] else ""
        lines.append(Text.assemble((f"{finding['severity']} ", style), f"{where}{finding['message']}{mend}"))
    return lines


def _verdict(run: Mapping[str, Any], check: str) -> Text:
    outcome = run["checks"].get(check, {}).get("outcome")
    return Text(outcome, style=_STYLES[outcome]) if outcome else Text("not checked", style="dim")


def _interval(speedup: Mapping[str, Any]) -> str:
    low, high = speedup["ci"]
    reach = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return f"{speedup['estimate']:.2f}x{reach}"


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.1f} µs"


def _bytes(count: int) -> str:
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"
