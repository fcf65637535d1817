"""Which recipe a marked test is held by: the marker's, else the command line's, the case's, the ini file's, fx-x86."""

from __future__ import annotations

import json

import pytest
from conftest import Project

ALL_MODELS = '''
def own():
    return case(recipes=("fx-qnnpack", "fx-fbgemm"))

def ranked():
    return case(recipes=("auto",))

def ranked_or_own():
    return case(recipes=("auto", "fx-fbgemm"))
'''


def recipes_of(project: Project, marker: str, *arguments: str, ini: str = "") -> str:
    """Recipe that a marked test was held by."""
    project.add(ALL_MODELS)
    if ini:
        project.pytester.makeini(f"[pytest]\nqat_recipe = {ini}\n")
    project.pytester.makepyfile(test_user=f'''
        import pytest

        @pytest.mark.qat({marker}, min_size_reduction=0.1)
        def test_marked():
            pass
    ''')
    project.run("test_user.py", "--qat-json=qat.json", *arguments).assert_outcomes(passed=1)
    (made,) = json.loads((project.path / "qat.json").read_text())["runs"]
    return str(made["recipe"])


@pytest.mark.parametrize(("marker", "arguments", "ini", "expected"), [
    ('model="models:own"', (), "", "fx-qnnpack"),
    ('model="models:own"', ("--qat-recipe=fx-fbgemm",), "", "fx-fbgemm"),
    ('model="models:own", recipe="fx-x86"', ("--qat-recipe=fx-fbgemm",), "", "fx-x86"),
    ('model="models:own"', (), "fx-fbgemm", "fx-qnnpack"),
    ('model="models:good"', (), "fx-fbgemm", "fx-fbgemm"),
    ('model="models:good"', ("--qat-recipe=fx-qnnpack",), "fx-fbgemm", "fx-qnnpack"),
    ('model="models:good"', ("--qat-recipe=fx-qnnpack", "--qat-recipe=fx-fbgemm"), "", "fx-qnnpack"),
    ('model="models:own"', ("--qat-recipe=all",), "", "fx-x86"),
])
def test_the_nearest_recipe_wins(
        project: Project, marker: str, arguments: tuple[str, ...], ini: str, expected: str) -> None:
    assert recipes_of(project, marker, *arguments, ini=ini) == expected


@pytest.mark.parametrize(("model", "arguments", "ini", "expected"), [
    ("good", ("--qat-recipe=auto",), "", "fx-x86"),
    ("good", (), "auto", "fx-x86"),
    ("ranked", (), "", "fx-x86"),
    ("own", ("--qat-recipe=auto",), "", "fx-qnnpack"),
    ("ranked_or_own", (), "", "fx-fbgemm"),
    ("good", ("--qat-recipe=auto", "--qat-recipe=fx-fbgemm"), "", "fx-fbgemm"),
])
def test_a_marked_test_is_no_ranking(
        project: Project, model: str, arguments: tuple[str, ...], ini: str, expected: str) -> None:
    assert recipes_of(project, f'model="models:{model}"', *arguments, ini=ini) == expected


def test_a_ranking_beside_a_marked_test_is_still_made(project: Project) -> None:
    project.pytester.makepyfile(test_user='''
        import pytest

        @pytest.mark.qat(model="models:good")
        def test_it():
            pass
    ''')
    result = project.run("--qat-model=models:good", "--qat-recipe=auto", "test_user.py", "--collect-only", "-q")
    assert [line for line in result.outlines if "::" in line] == [
        "test_user.py::test_it", "qat-model:models:good[auto]::ranking"]


def test_the_recipe_of_the_ini_file_gives_way_to_the_cases_own_for_collected_checks_too(project: Project) -> None:
    project.add(ALL_MODELS)
    project.pytester.makeini("[pytest]\nqat_recipe = fx-x86\n")
    result = project.run("--qat-model=models:own", "--qat-model=models:good", "--collect-only", "-q", "-k", "prepare")
    assert [line for line in result.outlines if "::" in line] == [
        "qat-model:models:own[fx-qnnpack]::prepare", "qat-model:models:own[fx-fbgemm]::prepare",
        "qat-model:models:good[fx-x86]::prepare"]


@pytest.mark.parametrize(("body", "fixture"), [
    ("pass", ""), ("qat_run.assert_size_reduction(at_least=1000)", "qat_run")])
def test_a_failed_test_names_the_recipe_that_it_was_held_by(project: Project, body: str, fixture: str) -> None:
    project.add(ALL_MODELS)
    project.pytester.makepyfile(test_user=f'''
        import pytest

        @pytest.mark.qat(model="models:own", min_size_reduction=1000)
        def test_marked({fixture}):
            {body}
    ''')
    result = project.run("test_user.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1000.00x is required.*", "*- qat -*", "models:own by recipe fx-qnnpack"])


def test_an_unclear_test_names_the_recipe_that_it_was_held_by(project: Project) -> None:
    project.add("def unclear():\n    return case(eval_data=None, recipes=('fx-qnnpack',))\n")
    project.pytester.makepyfile(test_user='''
        import pytest

        @pytest.mark.qat(model="models:unclear", min_accuracy=0.5)
        def test_marked():
            pass
    ''')
    result = project.run("test_user.py", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["INCONCLUSIVE*: recipe fx-qnnpack: min_accuracy 50.00% cannot be checked*"])
