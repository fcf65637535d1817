"""Each option does what its help says; ini keys and the command line agree."""

from __future__ import annotations

import json

import pytest
from conftest import Project

from pytest_qat.plugin.options import OPTIONS
from pytest_qat.plugin.settings import Options, read_options
from pytest_qat.recipe import COMPLETE_RECIPES
from pytest_qat.tolerances import Tolerances


def recorded(project: Project, *arguments: str) -> dict[str, object]:
    project.run("--qat-model=models:good", "--qat-json=qat.json", *arguments)
    (run,) = json.loads((project.path / "qat.json").read_text())["runs"]
    return run


def options(project: Project, *arguments: str) -> Options:
    return read_options(project.pytester.parseconfig("-p", "no:randomly", *arguments))


def test_the_help_of_pytest_shows_every_option_as_it_is_written(project: Project) -> None:
    result = project.pytester.runpytest_inprocess("--help")
    assert result.ret == 0
    shown = " ".join(result.stdout.str().split())
    for option in OPTIONS:
        assert f"--{option.name}" in shown
        assert option.help.partition("(")[0].strip() in shown
    assert "as 0.01 or 1%" in shown


def test_tolerances_of_the_command_line_win_over_case_and_ini(project: Project) -> None:
    project.pytester.makeini("[pytest]\nqat_min_speedup = 3\nqat_accuracy_drop = 2%\nqat_min_size_reduction = 9\n"
                             "qat_min_coverage = 5%\n")
    tolerances = recorded(project, "-k", "prepare", "--qat-min-size-reduction=4")["tolerances"]
    # min_speedup: the case says 0; accuracy_drop: the case says nothing; size: the command line says 4
    assert tolerances == {"accuracy_drop": 0.02, "min_accuracy": None, "min_speedup": 0.0,
                          "min_size_reduction": 4.0, "min_coverage": 0.05}


def test_a_case_s_value_wins_over_the_ini_file_even_if_it_is_the_default(project: Project) -> None:
    project.add("def strict():\n    return case(tolerances=Tolerances(min_speedup=1.0))\n")
    project.pytester.makeini("[pytest]\nqat_min_speedup = 0.5\nqat_min_size_reduction = 1.1\n")
    project.run("--qat-model=models:strict", "--qat-json=qat.json", "-k", "prepare")
    (run,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert (run["tolerances"]["min_speedup"], run["tolerances"]["min_size_reduction"]) == (1.0, 1.1)


def test_the_floor_of_coverage_is_a_tenth_unless_somebody_says(project: Project) -> None:
    own = Tolerances(min_coverage=0.3)
    assert options(project).tolerances(Tolerances()).coverage_floor == 0.1
    assert options(project).tolerances(own).coverage_floor == 0.3
    assert options(project, "--qat-min-coverage=50%").tolerances(own).coverage_floor == 0.5
    project.pytester.makeini("[pytest]\nqat_min_coverage = 0.2\n")
    assert options(project).tolerances(Tolerances()).coverage_floor == 0.2
    assert options(project).tolerances(own).coverage_floor == 0.3


@pytest.mark.slow
def test_a_bad_ini_value_hurts_no_session_that_does_not_ask(project: Project) -> None:
    project.pytester.makeini("[pytest]\nqat_threads = 0\n")
    project.pytester.makepyfile(test_plain="def test_one(): pass")
    result = project.pytester.runpytest_subprocess("-n", "1", "test_plain.py")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_bad_ini_value_is_a_usage_error(project: Project) -> None:
    project.pytester.makeini("[pytest]\nqat_min_speedup = quick\n")
    result = project.run("--qat-model=models:good")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*qat_min_speedup is 'quick', which is not a number*"])


def test_threads_are_used_and_recorded(project: Project) -> None:
    assert recorded(project, "-k", "prepare", "--qat-threads=2")["threads"] == 2


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], ()), (["--qat-batches"], (1, 8, 32)), (["--qat-batches", "--qat-model=models:good"], (1, 8, 32)),
    (["--qat-batches=4"], (4,)), (["--qat-batches", "64, 2,64"], (2, 64)),
])
def test_batches_are_sizes_with_commas_or_the_usual_ones(
        project: Project, arguments: list[str], expected: tuple[int, ...]) -> None:
    assert options(project, *arguments).batches == expected
    project.pytester.makeini("[pytest]\nqat_batches = 3,5\n")
    assert options(project, *arguments).batches == (expected or (3, 5))


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], False), (["--qat-json=qat.json"], True), (["--qat-memory=on"], True),
    (["--qat-json=qat.json", "--qat-memory=off"], False),
])
def test_memory_is_measured_for_a_record_unless_it_is_switched(
        project: Project, arguments: list[str], expected: bool) -> None:
    assert options(project, *arguments).memory is expected
    project.pytester.makeini("[pytest]\nqat_memory = off\n")
    assert options(project, *arguments).memory is ("--qat-memory=on" in arguments)


def test_recipe_all_runs_every_recipe(project: Project) -> None:
    result = project.run("--qat-model=models:good", "--qat-recipe=all", "-k", "prepare", "--collect-only", "-q")
    assert [line for line in result.outlines if "::" in line] == [
        f"qat-model:models:good[{name}]::prepare" for name in COMPLETE_RECIPES]


def test_a_cases_own_recipes_hold_unless_the_command_line_names_one(project: Project) -> None:
    project.add("def own():\n    return case(recipes=('eager-qnnpack', 'fx-x86'))\n")
    result = project.run("--qat-model=models:own", "--collect-only", "-q", "-k", "prepare")
    assert [line for line in result.outlines if "::" in line] == [
        "qat-model:models:own[eager-qnnpack]::prepare", "qat-model:models:own[fx-x86]::prepare"]
    result = project.run("--qat-model=models:own", "--collect-only", "-q", "-k", "prepare", "--qat-recipe=fx-fbgemm")
    assert [line for line in result.outlines if "::" in line] == ["qat-model:models:own[fx-fbgemm]::prepare"]


def test_inputs_make_a_bare_model_a_case(project: Project) -> None:
    project.add("def bare():\n    return Net().eval()\n")
    result = project.run("--qat-model=models:bare", "--qat-inputs=4x3x8x8", "--qat-min-speedup=0",
                         "--qat-min-size-reduction=0")
    assert result.parseoutcomes().get("failed", 0) == 0
    text = " ".join(result.stdout.str().split())
    assert "neither train nor train_data" in text
    assert "eval_data" in text


def test_the_seed_decides_the_fine_tuning(project: Project) -> None:
    project.add('''
        def noisy():
            def train(model):
                with open("noise", "a") as file:
                    file.write(f"{torch.rand(1).item()}\\n")
            return case(train=train)
    ''')
    for seed in (0, 0, 1):
        project.run("--qat-model=models:noisy", f"--qat-seed={seed}", "-k", "convert")
    first, second, third = (project.path / "noise").read_text().split()
    assert first == second != third


def test_strict_turns_inconclusive_into_failed(project: Project) -> None:
    project.add('''
        def few():
            return case(eval_data=[(images[:3], target[:3]) for images, target in batches(1, seed=1)])
    ''')
    project.run("--qat-model=models:few", "-k", "accuracy").assert_outcomes(passed=1, deselected=7)
    strict = project.run("--qat-model=models:few", "-k", "accuracy", "--qat-strict")
    strict.assert_outcomes(failed=1, deselected=7)
    assert "Strict mode" in strict.stdout.str()


def test_json_is_kept_when_every_model_fails_to_load(project: Project) -> None:
    project.run("--qat-model=models:nothing", "--qat-json=qat.json")
    document = json.loads((project.path / "qat.json").read_text())
    assert document["runs"] == []
    assert "has no attribute 'nothing'" in document["errors"][0]["message"]


def test_a_repeated_model_is_collected_once(project: Project) -> None:
    result = project.run("--qat-model=models:good", "--qat-model=models:good", "-k", "prepare")
    result.assert_outcomes(passed=1, deselected=7)
