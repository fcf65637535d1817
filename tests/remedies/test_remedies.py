"""The walk: whatever the package advises is called forth and followed, and what comes of it is another, true answer.

Every piece of advice in the code has a row here, or stands among those that cannot be followed on this machine, with
the reason. Somebody who adds one adds its row: `test_every_advice_has_a_row` fails until then.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Project

from tests.remedies.rows_case import CASE_ROWS, DATA_ROWS
from tests.remedies.rows_data import MEASURE_ROWS, PREFLIGHT_ROWS
from tests.remedies.rows_errors_of_calls import CALL_ROWS
from tests.remedies.rows_errors_of_stages import EXPORT_ROWS, LOAD_ROWS, OBSERVER_ROWS, PREPARE_ROWS
from tests.remedies.rows_lost import LOST_ROWS
from tests.remedies.rows_models import EXPORTED_ROWS, FINDING_ROWS, PART_ROWS
from tests.remedies.rows_options import FILE_ROWS, MARKER_ROWS, OPTION_ROWS, REFERENCE_ROWS
from tests.remedies.rows_properties import PROPERTY_ROWS
from tests.remedies.rows_recipes import RECIPE_ROWS
from tests.remedies.rows_scores import OUTPUT_ROWS, SCORE_ROWS, SET_ROWS
from tests.remedies.rows_stages import STAGE_ROWS
from tests.remedies.rows_verdicts import ACCURACY_ROWS, SET_VERDICT_ROWS, SPEED_ROWS
from tests.remedies.sites import Site, sites
from tests.remedies.walk import Row, World, check

ROWS: list[Row] = [*CASE_ROWS, *DATA_ROWS, *PREFLIGHT_ROWS, *SCORE_ROWS, *MEASURE_ROWS, *OPTION_ROWS,
                   *FILE_ROWS, *MARKER_ROWS, *REFERENCE_ROWS, *PROPERTY_ROWS, *ACCURACY_ROWS, *SPEED_ROWS,
                   *FINDING_ROWS, *PART_ROWS, *EXPORTED_ROWS, *RECIPE_ROWS, *SET_ROWS, *OUTPUT_ROWS,
                   *SET_VERDICT_ROWS, *LOST_ROWS,
                   *(replace(row, slow=True) for row in (
                       *STAGE_ROWS, *CALL_ROWS, *PREPARE_ROWS, *OBSERVER_ROWS, *EXPORT_ROWS, *LOAD_ROWS))]

NOT_FOLLOWED = {
    ("diagnosis/causes.py", "report it to pytest-qat"): "only people can report",
    ("finetune.py", "Use --qat-device=cpu."): "needs a GPU that fails in training; cpu is what all other rows use",
    ("core/libraries.py", "pip install {}"): "installs a package",
    ("core/libraries.py", "Write a function that builds the model"): "needs transformers",
    ("recipe.py", "pip install {}"): "installs a package",
    ("workflows/quantizers.py", "pip install 'pytest-qat[executorch]'"): "installs a package",
    ("runtimes/inductor.py", "Install g++."): "installs a compiler",
    ("references.py", "Run `python -c 'import {}'`"): "shows the user's own traceback, which no run of ours does",
    ("references.py", "Run `python {}` to see"): "shows the user's own traceback, which no run of ours does",
    ("report/json.py", "Choose another folder."): "needs a folder that root may not write to",
    ("workflows/known_errors/int8_calls.py", "move the converted model and its inputs to the CPU."): "needs a GPU",
    ("measure/latency.py", "Time several calls, or larger inputs"): "needs a clock that stands still",
    ("plugin/laws.py", "Delete the file, or restore the functions."): "needs an example saved by another version",
}
"""Advice that nothing here follows, and why."""

NO_ADVICE = {
    ("core/system.py", "see NTSTATUS values"), ("diagnosis/coverage.py", "convert gave the reference form"),
    ("measure/energy.py", "only root may read the energy counters"), ("plugin/__init__.py", "qat(model, recipe"),
    ("properties/guarded.py", "{}; return .int_repr()"), ("properties/known_issues.py", "quantize and fake-quantize"),
    ("properties/laws/workflows.py", "run a second time"), ("workflows/fx/tracing.py", "def forward"),
    ("workflows/fx/workflow.py", "def forward"),
    ("diagnosis/changes.py", "train with momentum=0 in every batch norm"),
    ("pipeline/run.py", "not measured: give --qat-memory=on"),
}
"""Text that only reads like advice, or notes beside a figure."""


def _row_of(site: Site) -> tuple[str, str] | None:
    """Return the longest beginning that stands for a site, of a row or of what is not followed."""
    known = [*((row.path, row.text) for row in ROWS), *NOT_FOLLOWED, *NO_ADVICE]
    fitting = [(path, text) for path, text in known if path == site.path and site.text.startswith(text)]
    return max(fitting, key=lambda entry: len(entry[1]), default=None)


def test_every_advice_has_a_row() -> None:
    found = Counter({site: _row_of(site) for site in sites()}.values())
    lost = [f"{site.path}:{site.line} {site.text}" for site in sites() if _row_of(site) is None]
    assert lost == [], "advice that nobody has followed"
    assert {(row.path, row.text): row.sites for row in ROWS} == {
        entry: count for entry, count in found.items() if entry not in NOT_FOLLOWED and entry not in NO_ADVICE}


def test_no_row_stands_for_what_is_gone() -> None:
    seen = {_row_of(site) for site in sites()}
    assert [entry for entry in (*NOT_FOLLOWED, *NO_ADVICE) if entry not in seen] == []
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_what_is_followed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    followed = sum(row.sites for row in ROWS)
    left = sum(_row_of(site) in NOT_FOLLOWED for site in sites())
    with capsys.disabled():
        print(f"\n{followed + left} pieces of advice, {followed} of them followed; not followed: {left}")
    assert followed > 8 * left


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else [])
                                 for row in ROWS])
def test_following_it_leads_on(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    check(row, row.text, World(path=tmp_path, patch=monkeypatch, project=project))
