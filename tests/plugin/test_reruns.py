"""A marked test that a plugin runs again is judged again."""

from __future__ import annotations

import pytest
from conftest import Project

TWICE = """
import pytest
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):  # as pytest-rerunfailures does it after a failure
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, nextitem=nextitem, log=False)
    for report in runtestprotocol(item, nextitem=nextitem, log=False):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""


def run_twice(project: Project, code: str, *arguments: str) -> pytest.RunResult:
    project.pytester.makeconftest(TWICE)
    project.pytester.makepyfile(test_user=f"import pytest\nattempts = []\n{code}")
    return project.run("test_user.py", "-rs", *arguments)


@pytest.mark.parametrize("fixture", ["", "qat_run"])
def test_a_marker_that_fails_fails_each_attempt(project: Project, fixture: str) -> None:
    result = run_twice(project, f'''
@pytest.mark.qat(model="models:good", min_size_reduction=1000)
def test_marked({fixture}):
    pass
''')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1000.00x is required.*"])


def test_a_marker_is_held_to_again_where_an_earlier_attempt_made_the_check_itself(project: Project) -> None:
    run_twice(project, '''
@pytest.mark.qat(model="models:good", min_size_reduction=1000)
def test_marked(qat_run):
    attempts.append(1)
    if len(attempts) == 1:
        qat_run.assert_size_reduction(at_least=0.1)
''').assert_outcomes(failed=1)


def test_attempts_share_one_fine_tuning(project: Project) -> None:
    project.add('''
        def counted():
            def train(model):
                with open("trainings", "a") as file:
                    file.write("x")
                for parameter in model.parameters():
                    parameter.data.mul_(0.999)
            return case(train=train, train_data=None, loss_fn=None)
    ''')
    run_twice(project, '''
@pytest.mark.qat(model="models:counted", min_size_reduction=0.1)
def test_marked():
    pass
''').assert_outcomes(passed=1)
    assert (project.path / "trainings").read_text() == "x"


UNCLEAR = """
def unclear():
    return case(eval_data=None, tolerances=Tolerances(min_accuracy=0.5, min_speedup=0.0, min_size_reduction=0.5))
"""


def test_what_an_earlier_attempt_left_unclear_does_not_skip_the_next(project: Project) -> None:
    project.add(UNCLEAR)
    run_twice(project, '''
@pytest.mark.qat(model="models:unclear")
def test_marked(qat_run):
    attempts.append(1)
    if len(attempts) == 1:
        qat_run.assert_accuracy()
    else:
        qat_run.assert_size_reduction()
''').assert_outcomes(passed=1)


def test_a_skip_of_the_tests_own_is_not_called_inconclusive(project: Project) -> None:
    project.add(UNCLEAR)
    result = run_twice(project, '''
@pytest.mark.qat(model="models:unclear")
def test_marked(qat_run):
    attempts.append(1)
    if len(attempts) > 1:
        pytest.skip("enough")
    qat_run.assert_accuracy()
''', "-v")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*test_marked SKIPPED (enough)*"])
    result.stdout.no_fnmatch_line("*INCONCLUSIVE*")
