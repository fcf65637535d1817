"""A marker that a fixture or the body of a test adds is held to, and no other test pays for it."""

from __future__ import annotations

import json

import pytest
from conftest import Project

FIXTURE = """
import pytest

@pytest.fixture
def ships(request):
    request.applymarker(pytest.mark.qat(model="models:good", min_size_reduction=1000))
"""
BY_FIXTURE = FIXTURE + """
def test_marked(ships):
    pass
"""
WAYS = {
    "a fixture": BY_FIXTURE,
    "a fixture of another scope": """
import pytest

@pytest.fixture(scope="module", autouse=True)
def ships(request):
    request.node.add_marker(pytest.mark.qat(model="models:good", min_size_reduction=1000))

def test_marked():
    pass
""",
    "the body": """
import pytest

def test_marked(request):
    request.node.add_marker(pytest.mark.qat(model="models:good", min_size_reduction=1000))
""",
    "the body, before the fixture": """
import pytest

def test_marked(request):
    request.node.add_marker(pytest.mark.qat(model="models:good", min_size_reduction=1000))
    assert request.getfixturevalue("qat_case").label == "Net"
""",
    "a fixture after qat_run": FIXTURE + """
@pytest.mark.qat(model="models:good")
def test_marked(qat_run, ships):
    pass
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_marker_that_comes_late_is_held_to(project: Project, way: str) -> None:
    project.pytester.makepyfile(test_user=WAYS[way])
    result = project.pytester.runpytest_inprocess("test_user.py", "--qat-diagnose=off")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1000.00x is required.*", "Net [[]fx-x86[]]*", "size *>= 1000.00x  failed"])


def test_a_late_marker_that_holds_passes_and_is_in_the_record(project: Project) -> None:
    project.pytester.makepyfile(test_user=BY_FIXTURE.replace("1000", "0.1"))
    project.run("test_user.py", "--qat-json=qat.json").assert_outcomes(passed=1)
    (made,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert set(made["checks"]) == {"size"}
    assert made["checks"]["size"]["tolerances"] == {"min_size_reduction": 0.1}


def test_a_late_marker_is_judged_after_the_tests_own_failure(project: Project) -> None:
    project.pytester.makepyfile(test_user=FIXTURE + "def test_marked(ships):\n    assert 1 == 2\n")
    result = project.pytester.runpytest_inprocess("test_user.py", "--qat-diagnose=off")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    result.stdout.no_fnmatch_line("*quantized models*")


def test_a_bad_late_marker_fails_its_test_with_one_sentence(project: Project) -> None:
    project.pytester.makepyfile(test_user=BY_FIXTURE.replace("min_size_reduction", "min_size"))
    result = project.pytester.runpytest_inprocess("test_user.py", "--qat-diagnose=off")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "has no argument 'min_size'" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_late_marker_is_held_to_on_a_worker(project: Project) -> None:
    project.pytester.makepyfile(test_user=BY_FIXTURE, test_other="def test_plain():\n    pass\n")
    result = project.pytester.runpytest_subprocess("-n", "2", "-p", "no:randomly", "--qat-diagnose=off")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*1000.00x is required.*", "size *>= 1000.00x  failed"])


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan"])
def test_a_late_marker_does_nothing_where_no_test_runs(project: Project, option: str) -> None:
    project.pytester.makepyfile(test_user=BY_FIXTURE)
    result = project.pytester.runpytest_inprocess("test_user.py", "--qat-diagnose=off", option)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*quantized models*")


def test_tests_without_a_marker_start_no_session(project: Project) -> None:
    project.pytester.makepyfile(test_user="""
        import sys

        def test_plain():
            pass

        def test_nothing_came_of_it(request):
            assert not request.config.pluginmanager.has_plugin("qat-session")
            assert "pytest_qat.plugin.marked" not in sys.modules
            assert "torch" not in sys.modules
    """)
    others = [option for name in ("hypothesispytest", "jaxtyping", "typeguard", "anyio", "hydra_pytest", "kgb")
              for option in ("-p", f"no:{name}")]
    project.pytester.runpytest_subprocess("-p", "no:randomly", *others).assert_outcomes(passed=2)
