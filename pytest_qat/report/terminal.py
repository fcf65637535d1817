"""The record as tables for a terminal; rich does the drawing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["render"]

_STYLES = {"passed": "green", "failed": "bold red", "inconclusive": "yellow", "blocked": "dim"}
_NOTHING = "-"
_ENERGY = (("energy/sample", "energy_j_per_sample", "J"), ("throughput/W", "throughput_per_w", "/s/W"))


def render(runs: Iterable[Mapping[str, Any]], *, width: int, color: bool,
           rankings: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the tables of all runs and rankings as text, with ANSI colors if `color`."""
    sink = io.StringIO()
    console = Console(file=sink, width=max(width, 80), force_terminal=color, no_color=not color,
                      color_system="standard" if color else None, legacy_windows=False, highlight=False)
    for run in runs:
        console.print(_run(run))
        console.print()
    for ranking in rankings:
        console.print(_ranking(ranking))
        console.print()
    return "\n".join(_without_padding(line) for line in sink.getvalue().rstrip().splitlines()) + "\n"


def _without_padding(line: str) -> str:
    """Drop the spaces that rich fills a line with, also those inside of color codes."""
    kept = re.sub(r"(?:\x1b\[[0-9;]*m| )+$", "", line)
    return f"{kept}\x1b[0m" if "\x1b" in kept else kept


def _run(run: Mapping[str, Any]) -> Group:
    table = _table(run)
    parts: list[Any] = [_title(run), *([table] if table.row_count else []), *_note_lines(run)]
    parts += [Padding(line, (0, 0, 0, 2)) for line in (*_check_lines(run), *_finding_lines(run))]
    return Group(*parts)


def _ranking(ranking: Mapping[str, Any]) -> Group:
    """The recipes of one model, best first; those that do not hold say why below."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "recipe", "int8 latency", "speedup", "accuracy", "size", ""):
        table.add_column(name, justify="left" if name in ("", "recipe") else "right", no_wrap=True)
    notes = []
    place = 0
    for entry in ranking["entries"]:
        place += entry["holds"]
        table.add_row(
            str(place) if entry["holds"] else "", entry["recipe"],
            _NOTHING if entry["latency_s"] is None else _time(entry["latency_s"]),
            _NOTHING if entry["speedup"] is None else f"{entry['speedup']:.2f}x",
            _NOTHING if entry["accuracy"] is None else f"{entry['accuracy']:.2%}",
            _NOTHING if entry["size_bytes"] is None else _bytes(entry["size_bytes"]),
            Text("holds", style=_STYLES["passed"]) if entry["holds"] else Text(
                "does not hold" if entry["judged"] else "not judged", style="dim"))
        if not entry["holds"]:
            notes.append(Padding(Text(f"{entry['recipe']}: {entry['note']}"), (0, 0, 0, 2)))
    return Group(Text(f"recipes for {ranking['model']}, fastest that holds the tolerances first", style="bold"),
                 table, *notes)


def _title(run: Mapping[str, Any]) -> Text:
    threads = f"{run['threads']} thread{'s' if run['threads'] != 1 else ''}"
    batch = f", batch {run['batch']}" if run.get("batch") else ""
    return Text.assemble((f"{run['name']} [{run['recipe']}]", "bold"),
                         f"  {run['model']}, {_where(run)}, {threads}{batch}")


def _where(run: Mapping[str, Any]) -> str:
    """Name what runs the model: torch's engine, or another runtime."""
    if run["runtime"] == "torch" and run["engine"]:
        return f"engine {run['engine']}"
    engine = f", engine {run['engine']}" if run["engine"] else ""
    return f"runtime {run['runtime']}{engine}"


def _table(run: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "fp32", "PTQ", "int8", "ratio", "required", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right", no_wrap=True)
    metrics, tolerances = run["metrics"], dict(run["tolerances"])
    for entry in run["checks"].values():
        tolerances.update(entry.get("tolerances", {}))
    for cells in (*_accuracy_row(metrics, tolerances), *_speed_rows(metrics, tolerances),
                  *_size_row(metrics, tolerances), *_memory_row(metrics), *_coverage_row(metrics, tolerances)):
        label, *numbers, check = cells
        table.add_row(label, *(number or _NOTHING for number in numbers), _verdict(run, check))
    return table


Row = tuple[str, str, str, str, str, str, str]


def _accuracy_row(metrics: Mapping[str, Any], tolerances: Mapping[str, Any]) -> Iterator[Row]:
    accuracy = metrics["accuracy"]
    if accuracy is not None:
        form = "{:.2%}" if accuracy["is_fraction"] else "{:.4g}"
        fp32, int8, allowed = (form.format(value) for value in (
            accuracy["fp32"], accuracy["int8"], tolerances["accuracy_drop"]))
        ptq = "" if accuracy["ptq"] is None else form.format(accuracy["ptq"])
        gain = form.replace("{:", "{:+").format(0.0 - accuracy["drop"])
        label = "accuracy" if accuracy["kind"] == "metric" else "agreement"
        yield (label, fp32, ptq, int8, gain, f">= -{allowed}", "accuracy")


def _speed_rows(metrics: Mapping[str, Any], tolerances: Mapping[str, Any]) -> Iterator[Row]:
    latency, speedup = metrics["latency_s"], metrics["speedup"]
    if latency is None or speedup is None:
        return
    ratio, throughput = f"{speedup['estimate']:.2f}x", metrics["throughput_per_s"]
    yield ("latency", _time(latency["fp32"]), "", _time(latency["int8"]), ratio,
           f">= {tolerances['min_speedup']:.2f}x", "speedup")
    percentiles = metrics["latency_percentiles_s"]
    if percentiles:
        for name in ("p90", "p99"):
            yield (f"  {name}", _time(percentiles["fp32"][name]), "", _time(percentiles["int8"][name]), "", "", "")
    if metrics["speedup_over_eager"] is not None:
        yield ("  as written", _time(latency["fp32_eager"]), "", _time(latency["int8"]),
               f"{metrics['speedup_over_eager']['estimate']:.2f}x", "", "")
    for entry in metrics.get("batches") or ():
        if entry["speedup"] is not None:
            yield (f"  batch {entry['batch']}", _time(entry["latency_s"]["fp32"]), "",
                   _time(entry["latency_s"]["int8"]), f"{entry['speedup']['estimate']:.2f}x", "", "")
    yield ("throughput", _rate(throughput["fp32"]), "", _rate(throughput["int8"]), ratio, "", "")
    for label, key, unit in _ENERGY:
        values = metrics[key]
        if values is not None and values["fp32"] and values["int8"]:
            gain = values["fp32"] / values["int8"] if key == "energy_j_per_sample" else values["int8"] / values["fp32"]
            yield (label, f"{values['fp32']:.3g} {unit}", "", f"{values['int8']:.3g} {unit}", f"{gain:.2f}x", "", "")


def _memory_row(metrics: Mapping[str, Any]) -> Iterator[Row]:
    peak = metrics.get("peak_memory_bytes")
    if peak is not None:
        yield ("peak memory", _bytes(peak["fp32"]), "", _bytes(peak["int8"]), f"{peak['fp32'] / peak['int8']:.2f}x",
               "", "")
        model = {side: max(0, peak[side] - peak["idle"]) for side in ("fp32", "int8")}
        yield ("  of the model", _bytes(model["fp32"]), "", _bytes(model["int8"]),
               f"{model['fp32'] / model['int8']:.2f}x" if model["int8"] else "", "", "")


def _size_row(metrics: Mapping[str, Any], tolerances: Mapping[str, Any]) -> Iterator[Row]:
    size = metrics["size_bytes"]
    if size is not None:
        yield ("size", _bytes(size["fp32"]), "", _bytes(size["int8"]), f"{metrics['size_reduction']:.2f}x",
               f">= {tolerances['min_size_reduction']:.2f}x", "size")


def _coverage_row(metrics: Mapping[str, Any], tolerances: Mapping[str, Any]) -> Iterator[Row]:
    coverage, floor = metrics["coverage"], tolerances["min_coverage"]
    if coverage is not None:
        share = coverage["mac_share"]
        yield ("MACs in int8", "", "", "unknown" if share is None else f"{share:.1%}", "",
               f">= {floor:.1%}" if floor is not None else "> 0%", "coverage")


def _note_lines(run: Mapping[str, Any]) -> list[Text]:
    """What could not be measured, and why."""
    metrics = run["metrics"]
    notes = [(label, metrics.get("energy_note")) for label, _, _ in _ENERGY]
    notes.append(("peak memory", metrics.get("memory_note")))
    notes += [(f"batch {entry['batch']}", entry["problem"]) for entry in metrics.get("batches") or ()]
    return [Text(f"{label:<15} {note}", style="dim") for label, note in notes if note]


def _check_lines(run: Mapping[str, Any]) -> list[Text]:
    lines: dict[tuple[str, str], list[str]] = {}
    for name, entry in run["checks"].items():
        if entry["outcome"] != "passed" or name != "size":  # the table says that size passed
            lines.setdefault((entry["outcome"], " ".join(entry["reasons"])), []).append(name)
    return [Text.assemble((f"{', '.join(names)} {outcome}: ", _STYLES[outcome]), reason)
            for (outcome, reason), names in lines.items()]


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
    if not check:
        return Text("")
    outcome = run["checks"].get(check, {}).get("outcome")
    return Text(outcome, style=_STYLES[outcome]) if outcome else Text("not checked", style="dim")


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.1f} µs"


def _rate(per_second: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6)):
        if per_second >= factor:
            return f"{per_second / factor:.2f} {unit}/s"
    return f"{per_second:,.0f}/s"


def _bytes(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"
