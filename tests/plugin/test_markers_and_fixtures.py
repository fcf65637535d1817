"""`@pytest.mark.qat` and the fixtures in a user's own test files."""

from __future__ import annotations

import json

import pytest
from conftest import Project


def run(project: Project, code: str, *arguments: str) -> pytest.RunResult:
    project.pytester.makepyfile(test_user=f"import pytest, torch\n{code}")
    return project.run("-v", *arguments)


def test_assertions_on_a_run_pass_and_share_one_pipeline(project: Project) -> None:
    project.add('''
        def counted():
            with open("calls", "a") as file:
                file.write("x")
            return case()
    ''')
    result = run(project, '''
pytestmark = pytest.mark.qat(model="models:counted")

def test_accuracy(qat_run):
    qat_run.assert_accuracy(drop=0.05)
    assert qat_run.metrics["accuracy"]["samples"] == 64

def test_size(qat_run):
    qat_run.assert_size_reduction(at_least=0.5)

def test_speed(qat_run):
    qat_run.assert_speedup(at_least=0)

def test_coverage(qat_run):
    qat_run.assert_coverage(at_least="90%")

def test_diagnosis(qat_run):
    diagnosis = qat_run.diagnose()
    assert diagnosis.healthy, diagnosis
    assert [stage.after for stage in diagnosis.stages] == ["unrounded", "fake-quantize", "int8"]
''', "--qat-json=qat.json")
    result.assert_outcomes(passed=5)
    assert (project.path / "calls").read_text() == "x"
    (recorded,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert set(recorded["checks"]) == {"accuracy", "size", "speedup", "coverage"}
    result.stdout.fnmatch_lines(["Net [[]fx-x86[]]*models:counted*"])


def test_a_failed_assertion_prints_verdict_and_no_traceback_of_ours(project: Project) -> None:
    result = run(project, '''
@pytest.mark.qat(model="models:good")
def test_size(qat_run):
    qat_run.assert_size_reduction(at_least=50)
''')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*artifact shrinks *50.00x is required.*"])
    assert "plugin/fixtures.py" not in result.stdout.str()


def test_the_markers_tolerances_are_held_after_the_body(project: Project) -> None:
    result = run(project, '''
@pytest.mark.qat(model="models:good", min_size_reduction=50)
def test_fails():
    pass

@pytest.mark.qat(model="models:good", min_size_reduction=0.5)
def test_passes():
    pass

@pytest.mark.qat(model="models:good", min_size_reduction=0.5)
def test_own_assertion_first():
    assert 1 == 2
''')
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*50.00x is required.*", "*assert 1 == 2*"])


def test_a_marker_without_tolerances_and_fixtures_makes_the_judging_checks(project: Project) -> None:
    result = run(project, '''
@pytest.mark.qat(model="models:good")
def test_all():
    pass
''', "--qat-json=qat.json")
    result.assert_outcomes(passed=1)
    (recorded,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert set(recorded["checks"]) == {"accuracy", "size", "speedup"}


def test_fixtures_give_case_prepared_and_converted(project: Project) -> None:
    run(project, '''
import torch.ao.quantization as tq
pytestmark = pytest.mark.qat(model="models:good", recipe="fx-qnnpack")

def test_case(qat_case):
    assert qat_case.label == "Net"

def test_prepared(qat_prepared):
    assert any(isinstance(m, tq.FakeQuantizeBase) for m in qat_prepared.modules())
    qat_prepared.conv = None

def test_prepared_is_a_copy(qat_prepared, qat_case):
    assert qat_prepared(*qat_case.example_inputs).shape == (16, 4)

def test_converted(qat_converted, qat_case):
    assert torch.backends.quantized.engine == "qnnpack"
    assert qat_converted(*qat_case.example_inputs).shape == (16, 4)
    assert qat_converted.fc.weight().dtype == torch.qint8

def test_engine_is_restored():
    assert torch.backends.quantized.engine != "qnnpack"
''', "--qat-min-speedup=0").assert_outcomes(passed=5)


def test_models_may_be_objects_and_functions(project: Project) -> None:
    run(project, '''
import models
CASE = models.good()

@pytest.mark.qat(model=CASE)
def test_case_object(qat_case):
    assert qat_case is CASE

@pytest.mark.qat(model=models.good)
def test_function(qat_converted):
    assert qat_converted.fc.weight().dtype == torch.qint8
''').assert_outcomes(passed=2)


@pytest.mark.parametrize(("marker", "expected"), [
    ('model="models:good", min_speed=2', "has no argument 'min_speed'"),
    ('model="models:good", min_speed=2', "Did you mean min_speedup?"),
    ('"models:good"', "got the positional argument 'models:good'"),
    ("min_speedup=2", "names no model"),
    ('model="models:good", recipe="fx-y86"', "no recipe is named 'fx-y86'"),
    ('model="models:good", accuracy_drop=5', "write accuracy_drop as 5%"),
    ('model="models:god"', "models has no attribute 'god'"),
])
@pytest.mark.parametrize("fixture", ["qat_run", ""])
def test_a_bad_marker_fails_its_test_with_one_sentence(
        project: Project, marker: str, expected: str, fixture: str) -> None:
    result = run(project, f'''
@pytest.mark.qat({marker})
def test_bad({fixture}):
    pass

def test_other():
    pass
''')
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    text = " ".join(result.stdout.str().split())
    assert expected in text
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text


def test_a_fixture_without_a_marker_says_what_is_missing(project: Project) -> None:
    result = run(project, '''
def test_bad(qat_run):
    pass
''')
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*uses a qat fixture, but no @pytest.mark.qat names its model*"])


def test_compare_latency_gives_a_speedup_with_an_interval(project: Project) -> None:
    run(project, '''
import time

def test_faster(qat_compare_latency):
    speedup = qat_compare_latency(lambda: time.sleep(0.004), lambda: time.sleep(0.001), floor=1.0)
    assert speedup.ci[0] > 1.0
    assert speedup.pairs >= 8
''').assert_outcomes(passed=1)


def test_the_closest_marker_wins(project: Project) -> None:
    run(project, '''
pytestmark = pytest.mark.qat(model="models:good", min_size_reduction=50)

@pytest.mark.qat(min_size_reduction=0.1)
def test_loose():
    pass
''').assert_outcomes(passed=1)


def test_a_float_floor_that_a_marker_moves_is_measured_anew(project: Project) -> None:
    run(project, '''
pytestmark = pytest.mark.qat(model="models:good")

def test_low(qat_run):
    qat_run.assert_speedup(at_least=0)

def test_high(qat_run):
    with pytest.raises(AssertionError, match="1000.00x is required"):
        qat_run.assert_size_reduction(at_least=1000)
''').assert_outcomes(passed=2)


UNCLEAR = """
def unclear():
    return case(eval_data=None)
"""


def test_what_is_unclear_skips_a_test_but_hides_no_failure(project: Project) -> None:
    project.add(UNCLEAR)
    (project.path / "test_mine.py").write_text('''
import pytest

@pytest.mark.qat(model="models:unclear", min_accuracy=0.5, min_size_reduction=1000)
def test_marker():
    pass

@pytest.mark.qat(model="models:unclear", min_accuracy=0.5)
def test_body(qat_run):
    qat_run.assert_accuracy()
    qat_run.assert_size_reduction(at_least=1000)

@pytest.mark.qat(model="models:unclear", min_accuracy=0.5)
def test_own(qat_run):
    qat_run.assert_accuracy()
    assert 1 + 1 == 3

@pytest.mark.qat(model="models:unclear", min_accuracy=0.5)
def test_skipped(qat_run):
    qat_run.assert_accuracy()
    qat_run.assert_size_reduction(at_least=0.1)
''')
    result = project.run("test_mine.py", "-rs")
    result.assert_outcomes(failed=3, skipped=1)
    result.stdout.fnmatch_lines(["*1000.00x is required*", "INCONCLUSIVE*min_accuracy 50.00% cannot be checked*"])
    project.run("test_mine.py", "--qat-strict").assert_outcomes(failed=4)


RERUNS = """
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed:
        report.outcome = "rerun"  # as pytest-rerunfailures says it
    return report

def pytest_report_teststatus(report):
    if report.outcome == "rerun":
        return "rerun", "R", "RERUN"
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("-n", "1")])
def test_outcomes_of_other_plugins_are_left_to_them(project: Project, arguments: tuple[str, ...]) -> None:
    project.pytester.makeconftest(RERUNS)
    project.pytester.makepyfile(test_flaky="""
        import pytest

        def test_flaky():
            assert False

        @pytest.mark.qat(model="models:good", min_size_reduction=1000)
        def test_marked():
            pass
    """)
    result = project.subprocess("test_flaky.py", *arguments)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.fnmatch_lines(["*2 rerun*"])


def test_a_marker_that_a_conftest_adds_is_held_to(project: Project) -> None:
    project.pytester.makeconftest("""
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.qat(model="models:good", min_size_reduction=1000))
    """)
    project.pytester.makepyfile("def test_plain():\n    pass\n")
    project.pytester.runpytest_inprocess("--qat-diagnose=off").assert_outcomes(failed=1)


def test_fixtures_may_be_asked_for_in_the_body(project: Project) -> None:
    project.pytester.makepyfile('''
        def test_faster(request):
            assert callable(request.getfixturevalue("qat_compare_latency"))
    ''')
    project.pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_what_a_test_demands_is_in_record_and_table(project: Project) -> None:
    result = run(project, '''
@pytest.mark.qat(model="models:good", min_size_reduction=1000)
def test_size():
    pass
''', "--qat-json=qat.json")
    (made,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert made["checks"]["size"]["tolerances"] == {"min_size_reduction": 1000.0}
    result.stdout.fnmatch_lines(["size *>= 1000.00x  failed"])


def test_models_given_as_objects_have_a_record_each(project: Project) -> None:
    run(project, '''
import models

CASE = models.case(name="First")

@pytest.mark.qat(model=CASE, min_size_reduction=0.1)
def test_named():
    pass

@pytest.mark.qat(model=CASE, min_size_reduction=0.1)
def test_named_again():
    pass

@pytest.mark.qat(model=models.case(name="Second"), min_size_reduction=0.1)
def test_unnamed():
    pass

@pytest.mark.qat(model=lambda: models.case(name="Third"), min_size_reduction=0.1)
def test_lambda():
    pass

@pytest.mark.qat(model=models.good, min_size_reduction=0.1)
def test_function():
    pass
''', "--qat-json=qat.json").assert_outcomes(passed=5)
    runs = json.loads((project.path / "qat.json").read_text())["runs"]
    assert {made["model"]: made["name"] for made in runs} == {
        "test_user:CASE": "First", "QATCase of test_user.py::test_unnamed": "Second",
        "function of test_user.py::test_lambda": "Third", "models:good": "Net"}
