"""One line that says what is being done."""

from __future__ import annotations

import re

import pytest

from pytest_qat.core.progress import Step
from pytest_qat.report.progress import Work, live_line, plain_line, work_of

TRAINING = Work(subject="Net [fx-x86]", stage="convert: fine-tuning", elapsed_s=75.3, done=30, total=105,
                unit="batches", detail="loss 0.0123")
WORKS = [
    TRAINING,
    Work(subject="Net [pt2e-executorch]", stage="deploy: building", elapsed_s=12, limit_s=900, detail="int8: lowering"),
    Work(subject="Net [fx-x86]", stage="speed: timing", elapsed_s=7, budget_s=20, still=True),
    Work(subject="", stage="waiting for the machine", elapsed_s=3, detail="pid 12 (Net speed) has had it for 3 s"),
    Work(subject="模型 [fx-x86]", stage="prepare"),
]


def shown(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def test_steps_are_named_by_the_outermost_and_the_innermost_of_a_subject() -> None:
    steps = [Step(name="trying"), Step(name="convert", subject="Net [fx-x86]"), Step(name="building", total=9),
             Step(name="waiting", still=True, done=3, unit="s", detail="why")]
    found = work_of(steps, elapsed_s=4.0)
    assert (found.subject, found.stage, found.done, found.total) == ("Net [fx-x86]", "convert: waiting", 3, None)
    assert found.still
    assert work_of(steps[:2], elapsed_s=0).stage == "convert"
    assert not work_of(steps[:3], elapsed_s=0).still
    assert work_of([Step(name="importing torch")], elapsed_s=0).subject == ""


def test_a_plain_line_has_model_recipe_stage_count_and_time() -> None:
    assert plain_line({"": TRAINING}) == (
        "qat: Net [fx-x86] convert: fine-tuning, 30/105 batches, 1 min 15 s, loss 0.0123")
    assert "12 s (at most 15 min 0 s)" in plain_line({"": WORKS[1]})
    assert "7 s of 20 s" in plain_line({"": WORKS[2]})
    two = plain_line({"gw0": TRAINING, "gw1": WORKS[2]})
    assert "gw0 Net [fx-x86] convert" in two
    assert "; gw1 Net [fx-x86] speed: timing" in two


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("color", [True, False])
def test_a_live_line_is_one_line_that_leaves_a_column_free(work: Work, width: int, color: bool) -> None:
    from rich.cells import cell_len

    for works in ({"": work}, {"gw0": work, "gw1": work}):
        line = live_line(works, width=width, color=color)
        assert "\n" not in line
        assert cell_len(shown(line)) <= max(width - 1, 8)
        assert color or line == shown(line)


def test_a_live_line_has_a_bar_where_it_is_known_how_much_there_is_to_do() -> None:
    bars = [shown(live_line({"": work}, width=120, color=True)).count("━") for work in WORKS]
    assert [count > 0 for count in bars] == [True, False, True, False, False]
    assert all(part in shown(live_line({"": TRAINING}, width=120, color=True)) for part in (
        "Net [fx-x86]", "convert: fine-tuning", "30/105 batches", "1 min 15 s", "loss 0.0123"))


def test_without_color_the_bar_is_as_long_as_what_is_done() -> None:
    half = Work(subject="Net", stage="timing", elapsed_s=10, budget_s=20)
    assert live_line({"": half}, width=120, color=False).count("━") == 12


def test_a_terminal_without_utf8_gets_ascii() -> None:
    for works in ({"": TRAINING}, {"gw0": TRAINING, "gw1": WORKS[2]}):
        assert live_line(works, width=120, color=True, encoding="ascii").isascii()


def test_brackets_in_names_are_no_markup() -> None:
    assert "[bold]" in live_line({"": Work(subject="[bold]Net", stage="[/] x")}, width=80, color=True)
