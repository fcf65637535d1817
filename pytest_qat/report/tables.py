"""The record as rows and lines of text, which the views print each in their own way.

This module is pure: it turns types of the record into strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_qat.core.text import call_time, percent
from pytest_qat.measure.score_names import NAMED_IN_REPORTS
from pytest_qat.record.schema import AccuracyMetrics, Metrics, OutcomeName, Probes, Ranking, RankingEntry, RunRecord
from pytest_qat.tolerances import MIN_COVERAGE

__all__ = ["COLUMNS", "PROBE_COLUMNS", "RANKING_COLUMNS", "Line", "RankingRow", "Row", "check_lines", "finding_lines",
           "note_lines", "probe_notes", "probe_rows", "ranking_notes", "ranking_rows", "ranking_title", "rows", "title"]

COLUMNS = ("", "fp32", "PTQ", "int8", "ratio", "required", "verdict")
RANKING_COLUMNS = ("", "recipe", "int8 latency", "speedup", "accuracy", "size", "")
PROBE_COLUMNS = ("recipe", "works", "MACs in int8", "size reduction", "time")
_NOTHING = "-"
_LONGEST_LABEL = 20
_NAMED_BY_COVERAGE = "left-in-float"
"""Findings with this code are not listed, because the reason of the coverage check names the same modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of a run.

    Attributes:
        label: Name of the figure.
        cells: Float, PTQ control, int8, ratio and requirement as text; "-" where there is none.
        check: The check that judges the figure; None if there is none.
        outcome: Outcome of that check; None if it was not made.
    """

    label: str
    cells: tuple[str, str, str, str, str]
    check: str | None
    outcome: OutcomeName | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingRow:
    """One recipe of a ranking.

    Attributes:
        cells: Place, recipe, latency, speedup, accuracy and size as text.
        holds: Whether the recipe meets the tolerances.
        state: The same in words.
    """

    cells: tuple[str, str, str, str, str, str]
    holds: bool
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of text below a table.

    Attributes:
        kind: An outcome or a severity, which determines the color; "" for no color.
        head: The colored part at the beginning.
        text: The rest of the line.
    """

    kind: str
    head: str
    text: str


# -- one run --------------------------------------------------------------------------------------------------------


def title(run: RunRecord) -> tuple[str, str]:
    """Return the name and recipe of a run, and the conditions that its figures depend on."""
    threads = f"{run['threads']} thread{'s' if run['threads'] != 1 else ''}"
    batch = f", batch {run['batch']}" if run["batch"] else ""
    return f"{run['name']} [{run['recipe']}]", f"{run['model']}, {_where(run)}, {threads}{batch}"


def rows(run: RunRecord) -> list[Row]:
    """Return a row for each figure that was measured."""
    tolerances = dict(run["tolerances"])
    for entry in run["checks"].values():
        tolerances.update(entry.get("tolerances", {}))
    metrics = run["metrics"]
    figures = (*_accuracy(metrics, tolerances), *_speed(metrics, tolerances), *_energy(metrics),
               *_size(metrics, tolerances), *_memory(metrics), *_coverage(metrics, tolerances))
    return [_row(run, *figure) for figure in figures]


def note_lines(run: RunRecord) -> list[str]:
    """Return what could not be measured, and why."""
    metrics = run["metrics"]
    notes = [("energy/sample", metrics["energy_note"]), ("throughput/W", metrics["energy_note"]),
             ("peak memory", metrics["memory_note"])]
    notes += [(f"batch {entry['batch']}", entry["problem"]) for entry in metrics["batches"] or ()]
    return [f"{label:<15} {note}" for label, note in notes if note]


def check_lines(run: RunRecord) -> list[Line]:
    """Return the checks with their reasons; checks with the same outcome and reason share a line."""
    lines: dict[tuple[OutcomeName, str], list[str]] = {}
    for name, entry in run["checks"].items():
        if entry["outcome"] != "passed" or name != "size":  # the table shows everything about a size that passed
            lines.setdefault((entry["outcome"], " ".join(entry["reasons"])), []).append(name)
    return [Line(kind=outcome, head=f"{', '.join(names)} {outcome}: ", text=reason)
            for (outcome, reason), names in lines.items()]


def finding_lines(run: RunRecord) -> list[Line]:
    """Return the findings: severity, module, message and remedy."""
    return [Line(kind=finding["severity"], head=f"{finding['severity']} ",
                 text=f"{finding['module']}: {_advice(finding['message'], finding['remedy'])}" if finding["module"]
                 else _advice(finding["message"], finding["remedy"]))
            for finding in run["findings"] if finding["code"] != _NAMED_BY_COVERAGE]


def _advice(message: str, remedy: str) -> str:
    return f"{message} Remedy: {remedy}" if remedy else message


def _where(run: RunRecord) -> str:
    """Return the engine of torch or the other runtime that runs the model."""
    if run["runtime"] == "torch" and run["engine"]:
        return f"engine {run['engine']}"
    return f"runtime {run['runtime']}, engine {run['engine']}" if run["engine"] else f"runtime {run['runtime']}"


# -- figures --------------------------------------------------------------------------------------------------------

Figure = tuple[str, Sequence[str], str | None]
"""Label, cells and check; if there are fewer than five cells, the rest are empty."""


def _row(run: RunRecord, label: str, cells: Sequence[str], check: str | None) -> Row:
    fp32, ptq, int8, ratio, required = (cell or _NOTHING for cell in (*cells, *[""] * (5 - len(cells))))
    made = run["checks"].get(check) if check else None
    return Row(label=label, cells=(fp32, ptq, int8, ratio, required), check=check,
               outcome=made["outcome"] if made else None)


def _accuracy(metrics: Metrics, tolerances: Mapping[str, float | None]) -> Iterator[Figure]:
    accuracy, allowed = metrics["accuracy"], tolerances["accuracy_drop"]
    if accuracy is None:
        return
    form = partial(percent, digits=2) if accuracy["is_fraction"] else "{:.4g}".format
    ptq = "" if accuracy["ptq"] is None else form(accuracy["ptq"])
    gained, size = 0.0 - accuracy["drop"], abs(accuracy["fp32"])
    share = partial(percent, digits=2)
    moved = form(gained) if accuracy["is_fraction"] or not size else share(gained / size)
    gain = f"{'+' if gained >= 0 else ''}{moved}"
    yield (_score_label(accuracy), (form(accuracy["fp32"]), ptq, form(accuracy["int8"]), gain,
                                    f">= -{share(allowed or 0.0)}"), "accuracy")


def _score_label(accuracy: AccuracyMetrics) -> str:
    """Return what the row is called: a set's score and dense outputs have names of their own."""
    name = accuracy["metric"]
    if name and (accuracy["kind"] == "set_metric" or name in NAMED_IN_REPORTS):
        return name if len(name) <= _LONGEST_LABEL else f"{name[:_LONGEST_LABEL - 1]}…"
    return "agreement" if accuracy["kind"] == "agreement" else "accuracy"


def _speed(metrics: Metrics, tolerances: Mapping[str, float | None]) -> Iterator[Figure]:
    latency, speedup, throughput = metrics["latency_s"], metrics["speedup"], metrics["throughput_per_s"]
    if latency is None or speedup is None or throughput is None:
        return
    ratio, fp32, int8 = _ratio(speedup["estimate"]), call_time(latency["fp32"]), call_time(latency["int8"])
    yield ("latency", (fp32, "", int8, ratio, f">= {_ratio(tolerances['min_speedup'])}"), "speedup")
    percentiles = metrics["latency_percentiles_s"]
    if percentiles is not None:
        fp32_slow, int8_slow = percentiles["fp32"], percentiles["int8"]
        yield ("  p90", (call_time(fp32_slow["p90"]), "", call_time(int8_slow["p90"])), None)
        yield ("  p99", (call_time(fp32_slow["p99"]), "", call_time(int8_slow["p99"])), None)
    eager, over_eager = latency["fp32_eager"], metrics["speedup_over_eager"]
    if eager is not None and over_eager is not None:
        yield ("  as written", (call_time(eager), "", int8, _ratio(over_eager["estimate"])), None)
    for entry in metrics["batches"] or ():
        if entry["speedup"] is not None and entry["latency_s"] is not None:
            yield (f"  batch {entry['batch']}", (call_time(entry["latency_s"]["fp32"]), "",
                                                call_time(entry["latency_s"]["int8"]),
                                                _ratio(entry["speedup"]["estimate"])), None)
    yield ("throughput", (_rate(throughput["fp32"]), "", _rate(throughput["int8"]), ratio), None)


def _energy(metrics: Metrics) -> Iterator[Figure]:
    joules, per_watt = metrics["energy_j_per_sample"], metrics["throughput_per_w"]
    if joules is not None and joules["fp32"] and joules["int8"]:
        yield ("energy/sample", (f"{joules['fp32']:.3g} J", "", f"{joules['int8']:.3g} J",
                                 _ratio(joules["fp32"] / joules["int8"])), None)
    if per_watt is not None and per_watt["fp32"] and per_watt["int8"]:
        yield ("throughput/W", (f"{per_watt['fp32']:.3g} /s/W", "", f"{per_watt['int8']:.3g} /s/W",
                                _ratio(per_watt["int8"] / per_watt["fp32"])), None)


def _size(metrics: Metrics, tolerances: Mapping[str, float | None]) -> Iterator[Figure]:
    size = metrics["size_bytes"]
    if size is not None:
        yield ("size", (_bytes(size["fp32"]), "", _bytes(size["int8"]), _ratio(metrics["size_reduction"]),
                        f">= {_ratio(tolerances['min_size_reduction'])}"), "size")


def _memory(metrics: Metrics) -> Iterator[Figure]:
    peak = metrics["peak_memory_bytes"]
    if peak is None:
        return
    yield ("peak memory", (_bytes(peak["fp32"]), "", _bytes(peak["int8"]), _ratio(peak["fp32"] / peak["int8"])), None)
    fp32, int8 = (max(0, side - peak["idle"]) for side in (peak["fp32"], peak["int8"]))
    yield ("  of the model", (_bytes(fp32), "", _bytes(int8), _ratio(fp32 / int8) if int8 else ""), None)


def _coverage(metrics: Metrics, tolerances: Mapping[str, float | None]) -> Iterator[Figure]:
    coverage, given = metrics["coverage"], tolerances["min_coverage"]
    floor = MIN_COVERAGE if given is None else given
    if coverage is not None:
        share = coverage["mac_share"]
        yield ("MACs in int8", ("", "", "unknown" if share is None else percent(share, unlike=floor), "",
                                f">= {percent(floor)}"), "coverage")


# -- a ranking ------------------------------------------------------------------------------------------------------


def ranking_title(ranking: Ranking) -> str:
    """Return the heading of a ranking."""
    return f"recipes for {ranking['model']}, fastest first; recipes that miss the tolerances come last"


def ranking_rows(ranking: Ranking) -> list[RankingRow]:
    """Return a row for each recipe, best first."""
    return [_ranking_row(place, entry) for place, entry in enumerate(ranking["entries"], start=1)]


def ranking_notes(ranking: Ranking) -> list[str]:
    """Return the reason for each recipe that does not meet the tolerances."""
    return [f"{entry['recipe']}: {entry['note']}" for entry in ranking["entries"] if not entry["holds"]]


def _ranking_row(place: int, entry: RankingEntry) -> RankingRow:
    latency, speedup, accuracy, size = entry["latency_s"], entry["speedup"], entry["accuracy"], entry["size_bytes"]
    score = partial(percent, digits=2) if entry["is_fraction"] else "{:.4g}".format
    return RankingRow(
        holds=entry["holds"],
        state="passed" if entry["holds"] else "not passed" if entry["judged"] else "not judged",
        cells=(str(place) if entry["holds"] else "", entry["recipe"],
               _NOTHING if latency is None else call_time(latency), _NOTHING if speedup is None else _ratio(speedup),
               _NOTHING if accuracy is None else score(accuracy),
               _NOTHING if size is None else _bytes(size)))


# -- numbers --------------------------------------------------------------------------------------------------------


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"



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


# -- which recipes work with a model ----------------------------------------------------------------------------------


def probe_rows(probes: Probes) -> list[tuple[str, str, str, str, str]]:
    """Return a row for each recipe: its name, whether it works, coverage, size reduction and seconds."""
    works = {True: "yes", False: "no", None: "unknown"}
    return [(found["recipe"], works[found["takes"]],
             _NOTHING if found["mac_share"] is None else percent(found["mac_share"]),
             _NOTHING if found["size_reduction"] is None else f"{found['size_reduction']:.2f}x",
             f"{found['seconds']:.0f} s" if found["seconds"] else _NOTHING) for found in probes["probes"]]


def probe_notes(probes: Probes) -> list[str]:
    """Return why recipes do not work, and the command that checks the model with the best recipe that does."""
    lines: dict[str, list[str]] = {}
    for found in probes["probes"]:
        if not found["takes"]:
            where = f"{found['module']}: " if found["module"] else ""
            lines.setdefault(f"{where}{found['reason']}", []).append(found["recipe"])
    notes = [f"{', '.join(recipes)}: {reason}" for reason, recipes in lines.items()]
    best = next((found["recipe"] for found in probes["probes"] if found["takes"]), None)
    if best is not None:
        notes.append(f"To check the model: {probes['command']} --qat-recipe={best}")
    return notes
