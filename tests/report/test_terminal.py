"""The tables of the terminal report."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from pytest_qat.report.tables import ranking_rows, rows
from pytest_qat.report.terminal import render

METRICS = {
    "accuracy": {"fp32": 0.9712, "int8": 0.9656, "ptq": 0.9634, "drop": 0.0056, "drop_ci": [-0.002, 0.013],
                 "p_value": 0.2, "samples": 500, "kind": "metric", "metric": "top-1", "is_fraction": True,
                 "sqnr_db": None},
    "latency_s": {"fp32": 0.00312, "int8": 0.00104, "fp32_eager": 0.00364},
    "latency_percentiles_s": {"fp32": {"p50": 0.00312, "p90": 0.00345, "p99": 0.0041},
                              "int8": {"p50": 0.00104, "p90": 0.00121, "p99": 0.0023},
                              "fp32_eager": {"p50": 0.00364, "p90": 0.004, "p99": 0.005}},
    "throughput_per_s": {"fp32": 10256.4, "int8": 30769.2, "fp32_eager": 8791.2},
    "speedup": {"estimate": 3.0, "ci": [2.91, 3.08], "pairs": 24, "confidence": 0.95, "noise_floor": 0.01,
                "layouts": {"fp32": "contiguous", "int8": "channels_last"}},
    "speedup_over_eager": {"estimate": 3.5, "ci": [3.4, 3.6], "pairs": 8},
    "size_bytes": {"fp32": 9_123_456, "int8": 2_345_678}, "size_reduction": 3.89,
    "coverage": {"macs": 1000, "int8_macs": 990, "mac_share": 0.99, "weights": 100, "int8_weights": 99,
                 "weight_share": 0.99, "int8_modules": 7},
    "parity": {"sqnr_db": 31.0, "finite": True, "quantization_sqnr_db": 28.0},
    "energy_j_per_sample": None, "throughput_per_w": None, "energy_note": "no counter on this machine",
    "peak_memory_bytes": None, "memory_note": None, "batches": None}
TOLERANCES = {"accuracy_drop": 0.01, "min_accuracy": None, "min_speedup": 1.0, "min_size_reduction": 1.5,
              "min_coverage": None}
SPEED = ("latency_s", "latency_percentiles_s", "batches", "throughput_per_s", "speedup", "speedup_over_eager",
         "energy_j_per_sample", "throughput_per_w", "energy_note")
SIZE = ("size_bytes", "size_reduction")


def record(*, without: tuple[str, ...] = (), outcomes: dict[str, str] | None = None, **metrics: Any) -> dict[str, Any]:
    names = ("prepare", "convert", "coverage", "parity", "accuracy", "size", "speedup", "roundtrip")
    checks = {name: {"outcome": "passed", "reasons": [f"{name} is as it should be."]} for name in names}
    for name, outcome in (outcomes or {}).items():
        checks[name] = {"outcome": outcome, "reasons": [f"{name} is not as it should be."]}
    known = {**copy.deepcopy(METRICS), **metrics}
    return {"model": "fixtures.edge_model:build", "recipe": "fx-x86", "name": "EdgeModel", "workflow": "fx",
            "runtime": "torch", "engine": "x86", "threads": 1, "batch": 32, "fine_tuning": None,
            "tolerances": dict(TOLERANCES), "checks": checks, "findings": [],
            "metrics": {name: None if name in without else value for name, value in known.items()}}


def finding(**changes: Any) -> dict[str, Any]:
    return {"code": "range-collapsed", "severity": "warning", "module": "body.3", "message": "the range is too small.",
            "remedy": "calibrate on real data.", "evidence": {}, **changes}


def shown(*runs: dict[str, Any], width: int = 80) -> str:
    return render(runs, width=width, color=False)


def row(text: str, label: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(label)]
    return re.sub(r" {2,}", " | ", line.strip())


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def batch(size: int, problem: str | None = None) -> dict[str, Any]:
    took = None if problem else {"fp32": 0.004 * size, "int8": 0.001 * size}
    return {"batch": size, "problem": problem, "overhead": None, "latency_s": took,
            "speedup": None if problem else {"estimate": 4.0, "ci": [3.9, 4.1], "pairs": 9}}


def test_every_figure_stands_beside_its_requirement_and_verdict() -> None:
    text = shown(record())
    assert row(text, "accuracy ") == "accuracy | 97.12% | 96.34% | 96.56% | -0.56% | >= -1.00% | passed"
    assert row(text, "latency") == "latency | 3.12 ms | - | 1.04 ms | 3.00x | >= 1.00x | passed"
    assert row(text, "size") == "size | 9.12 MB | - | 2.35 MB | 3.89x | >= 1.50x | passed"
    assert row(text, "MACs in int8") == "MACs in int8 | - | - | 99.0% | - | >= 10.0% | passed"
    assert row(text, "throughput ") == "throughput | 10,256/s | - | 30,769/s | 3.00x | -"


def test_the_title_says_what_the_figures_depend_on() -> None:
    title = one_line(shown(record()))[:120]
    for part in ("EdgeModel [fx-x86]", "fixtures.edge_model:build", "engine x86", "1 thread,", "batch 32"):
        assert part in title


def test_the_model_as_written_is_shown_beside_like_for_like() -> None:
    assert row(shown(record()), "  as written") == "as written | 3.64 ms | - | 1.04 ms | 3.50x | -"


def test_slow_calls_are_shown_below_the_median() -> None:
    text = shown(record())
    assert row(text, "  p90") == "p90 | 3.45 ms | - | 1.21 ms | - | -"
    assert row(text, "  p99") == "p99 | 4.10 ms | - | 2.30 ms | - | -"
    labels = [line.split("  ")[0] or line.strip().split("  ")[0] for line in text.splitlines()]
    assert labels.index("latency") < labels.index("p90") < labels.index("p99") < labels.index("throughput")


def test_each_batch_size_has_a_row_and_one_that_did_not_run_has_its_reason() -> None:
    text = shown(record(batches=[batch(1), batch(8, "RuntimeError: made for one size"), batch(32)]))
    assert row(text, "  batch 1 ") == "batch 1 | 4.00 ms | - | 1.00 ms | 4.00x | -"
    assert row(text, "  batch 32") == "batch 32 | 128.00 ms | - | 32.00 ms | 4.00x | -"
    assert row(text, "batch 8") == "batch 8 | RuntimeError: made for one size"
    assert "  batch 8" not in text
    assert "batch 1 " not in shown(record())


def test_peak_memory_is_shown_whole_and_less_what_the_runtime_takes() -> None:
    text = shown(record(peak_memory_bytes={"fp32": 300_000_000, "int8": 250_000_000, "idle": 240_000_000}))
    assert row(text, "peak memory") == "peak memory | 300.00 MB | - | 250.00 MB | 1.20x | -"
    assert row(text, "  of the model") == "of the model | 60.00 MB | - | 10.00 MB | 6.00x | -"


@pytest.mark.parametrize(("int8", "model"), [(240_000_000, "60.00 MB | - | 0 B"), (200_000_000, "60.00 MB | - | 0 B")])
def test_a_model_too_small_to_show_in_memory_has_no_ratio(int8: int, model: str) -> None:
    text = shown(record(peak_memory_bytes={"fp32": 300_000_000, "int8": int8, "idle": 240_000_000}))
    assert row(text, "  of the model") == f"of the model | {model} | - | -"


def test_memory_that_was_not_measured_says_why() -> None:
    text = shown(record(memory_note="not measured: for this test"))
    assert row(text, "peak memory") == "peak memory | not measured: for this test"
    assert "of the model" not in text
    assert "peak memory" not in shown(record())


def test_a_score_that_is_no_share_is_shown_as_it_is_and_its_change_in_percent_of_float_s() -> None:
    loss = {**METRICS["accuracy"], "fp32": 1.25, "int8": 12.5, "ptq": 2.0, "drop": 11.25, "is_fraction": False}
    assert row(shown(record(accuracy=loss)), "accuracy ") == (
        "accuracy | 1.25 | 2 | 12.5 | -900.00% | >= -1.00% | passed")


@pytest.mark.parametrize("outcome", ["passed", "failed", "inconclusive", "blocked"])
@pytest.mark.parametrize("width", [80, 100, 200, 20])
def test_no_line_is_wider_than_the_terminal_or_eighty_columns(outcome: str, width: int) -> None:
    run = record(outcomes=dict.fromkeys(("accuracy", "size", "speedup", "coverage"), outcome))
    run["findings"] = [finding(message="a long sentence about what was seen, " * 8)]
    run["metrics"].update(memory_note="a long reason why this is not known, " * 4, batches=[
        batch(1024), batch(1, "RuntimeError: a long reason why this cannot be, " * 4)])
    lines = shown(run, width=width).splitlines()
    assert max(map(len, lines)) <= max(width, 80)


def test_a_terminal_narrower_than_eighty_columns_gets_eighty() -> None:
    assert shown(record(), width=20) == shown(record(), width=80)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_verdicts_are_whole_at_eighty_columns_however_fast_the_model(scale: float) -> None:
    run = record(
        outcomes=dict.fromkeys(("accuracy", "size", "speedup", "coverage"), "inconclusive"),
        latency_s={side: seconds * scale for side, seconds in METRICS["latency_s"].items()},
        batches=[batch(size) for size in (1, 1024)],
        peak_memory_bytes={"fp32": 9_876_543_210, "int8": 987_654_321, "idle": 240_000_000},
        throughput_per_s={side: count / scale for side, count in METRICS["throughput_per_s"].items()})
    text = shown(run)
    for label in ("accuracy ", "latency", "size ", "MACs in int8"):
        assert row(text, label).endswith("inconclusive")
    assert "…" not in text


def test_energy_that_no_counter_measured_says_so_in_both_rows() -> None:
    text = shown(record())
    assert row(text, "energy/sample") == "energy/sample | no counter on this machine"
    assert row(text, "throughput/W") == "throughput/W | no counter on this machine"


def test_energy_that_was_measured_is_shown_with_its_gain() -> None:
    text = shown(record(energy_j_per_sample={"fp32": 0.3, "int8": 0.1}, throughput_per_w={"fp32": 3.333, "int8": 10.0},
                        energy_note=None))
    assert row(text, "energy/sample") == "energy/sample | 0.3 J | - | 0.1 J | 3.00x | -"
    assert row(text, "throughput/W") == "throughput/W | 3.33 /s/W | - | 10 /s/W | 3.00x | -"
    assert "no counter" not in text


def test_energy_that_nobody_asked_for_is_not_shown() -> None:
    assert "energy" not in shown(record(without=SPEED))


@pytest.mark.parametrize(("check", "label"), [
    ("accuracy", "accuracy "), ("speedup", "latency"), ("size", "size "), ("coverage", "MACs in int8"),
])
@pytest.mark.parametrize("outcome", ["failed", "inconclusive", "blocked"])
def test_a_verdict_that_is_no_pass_is_seen_in_the_table_and_with_its_reason(check: str, label: str,
                                                                           outcome: str) -> None:
    text = shown(record(outcomes={check: outcome}))
    assert row(text, label).endswith(outcome)
    assert f"{check} {outcome}: {check} is not as it should be." in text


@pytest.mark.parametrize("check", ["prepare", "convert", "parity", "roundtrip"])
def test_a_failed_check_without_a_row_is_seen_too(check: str) -> None:
    assert f"{check} failed: {check} is not as it should be." in shown(record(outcomes={check: "failed"}))


def test_a_figure_whose_check_was_not_made_says_so() -> None:
    run = record()
    del run["checks"]["size"]
    assert row(shown(run), "size").endswith("not checked")


@pytest.mark.parametrize(("without", "missing"), [
    (("accuracy",), ["accuracy |"]), (SPEED, ["latency", "throughput", "as written"]), (SIZE, ["size |"]),
    (("coverage",), ["MACs"]), (("parity", "peak_memory_bytes"), []),
    (("accuracy", *SPEED, *SIZE, "coverage", "parity"), ["fp32", "required", "accuracy |", "latency", "MACs"]),
])
def test_what_was_not_measured_has_no_row(without: tuple[str, ...], missing: list[str]) -> None:
    run = record(without=without)
    run.update(batch=None)
    text = shown(run)
    assert "EdgeModel [fx-x86]" in text
    squeezed = re.sub(r" {2,}", " | ", text)
    assert [word for word in missing if word in squeezed] == []


def test_a_run_that_failed_before_anything_was_measured_shows_its_reason() -> None:
    run = record(without=tuple(METRICS), outcomes={"prepare": "failed"})
    run.update(batch=None, checks={"prepare": run["checks"]["prepare"]})
    assert "prepare failed: prepare is not as it should be." in shown(run)


def test_without_a_control_its_column_is_empty() -> None:
    text = shown(record(accuracy={**METRICS["accuracy"], "ptq": None}))
    assert row(text, "accuracy ").split(" | ")[2] == "-"


def test_agreement_is_not_called_accuracy() -> None:
    text = shown(record(accuracy={**METRICS["accuracy"], "kind": "agreement"}))
    assert row(text, "agreement").split(" | ")[1] == "97.12%"


@pytest.mark.parametrize(("drop", "shown_as"), [(0.0056, "-0.56%"), (-0.0056, "+0.56%"), (0.0, "+0.00%")])
def test_a_drop_reads_as_a_change(drop: float, shown_as: str) -> None:
    assert row(shown(record(accuracy={**METRICS["accuracy"], "drop": drop})), "accuracy ").split(" | ")[4] == shown_as


@pytest.mark.parametrize(("seconds", "shown_as"), [
    (2.5, "2.50 s"), (1.0, "1.00 s"), (0.0025, "2.50 ms"), (0.00025, "250.0 µs"), (1e-7, "0.1 µs"),
])
def test_times_are_shown_in_a_unit_that_fits(seconds: float, shown_as: str) -> None:
    text = shown(record(latency_s={"fp32": seconds, "int8": seconds, "fp32_eager": seconds}))
    assert row(text, "latency").split(" | ")[1] == shown_as


@pytest.mark.parametrize(("count", "shown_as"), [(999, "999 B"), (1000, "1.00 kB"), (2_500_000, "2.50 MB")])
def test_bytes_are_shown_in_a_unit_that_fits(count: int, shown_as: str) -> None:
    text = shown(record(size_bytes={"fp32": count, "int8": count}))
    assert row(text, "size").split(" | ")[1] == shown_as


def test_a_finding_is_shown_with_module_and_remedy() -> None:
    run = record()
    run["findings"] = [finding(), finding(code="left-in-float", message="hidden: its check names it.")]
    text = one_line(shown(run))
    assert "warning body.3: the range is too small. Remedy: calibrate on real data." in text
    assert "hidden" not in text


def test_names_in_brackets_are_shown_as_they_are() -> None:
    run = record(outcomes={"size": "failed"})
    run.update(name="net[red]")
    run["checks"]["size"]["reasons"] = ["the shape is [bold](2, 3)[/bold]."]
    run["findings"] = [finding(module="layers[0]", message="[link=x]this[/link].")]
    text = one_line(shown(run))
    for part in ("net[red]", "[bold](2, 3)[/bold]", "layers[0]", "[link=x]this[/link]"):
        assert part in text


def test_every_run_has_its_own_table() -> None:
    text = shown(record(), {**record(), "recipe": "eager-x86"})
    assert text.index("EdgeModel [fx-x86]") < text.index("EdgeModel [eager-x86]")
    assert text.count("latency") == 2


def test_colors_are_used_only_where_they_are_asked_for() -> None:
    run = record(outcomes={"size": "failed"})
    assert "\x1b[" not in shown(run)
    colored = render([run], width=80, color=True)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == shown(run)


@pytest.mark.parametrize(("changes", "label"), [
    ({"kind": "set_metric", "metric": "auc"}, "auc"), ({"metric": "pixel accuracy"}, "pixel accuracy"),
    ({"metric": "mine"}, "accuracy"), ({"kind": "agreement", "metric": None}, "agreement"),
    ({"kind": "set_metric", "metric": "a_very_long_name_of_a_metric"}, "a_very_long_name_of…"),
])
def test_the_row_of_accuracy_is_called_by_what_was_scored(changes: dict, label: str) -> None:
    assert rows(record(accuracy={**METRICS["accuracy"], **changes}))[0].label == label


def test_the_score_of_a_ranking_is_in_percent_only_where_it_is_a_share() -> None:
    entry = {"recipe": "fx-x86", "holds": True, "latency_s": None, "speedup": None, "size_bytes": None, "note": "",
             "judged": True, "accuracy": 23.4567}
    shown = [ranking_rows({"model": "m:f", "entries": [{**entry, "is_fraction": share}]})[0].cells[4]
             for share in (True, False)]
    assert shown == ["2345.67%", "23.46"]
