"""The first run of a session prints nothing of libraries' own, and everything of the user's."""

from __future__ import annotations

import pytest
from conftest import Project

pytestmark = pytest.mark.slow
TORCHAO = "KernelPreference"


@pytest.mark.parametrize("option", ["--qat-ops=torch", "--qat-model=models:good"])
def test_collecting_prints_no_log_line_of_a_library(project: Project, option: str) -> None:
    pytest.importorskip("torchao")
    result = project.subprocess(option, "--collect-only", "-q")
    assert result.ret == 0
    assert result.stderr.str() == ""
    assert TORCHAO not in result.stdout.str()


def test_a_run_through_torchao_prints_the_user_s_log_lines_and_warnings_alone(project: Project) -> None:
    pytest.importorskip("torchao")
    project.add('''
        def noisy():
            import logging, warnings
            warnings.warn("a warning of the user's")
            logging.getLogger("users.model").warning("a line of the user's")
            return case(train_data=None, loss_fn=None)
    ''')
    result = project.subprocess("--qat-model=models:noisy", "--qat-recipe=pt2e-torch", "-k", "prepare",
                                "-o", "log_cli=true")
    text = result.stdout.str() + result.stderr.str()
    assert "a warning of the user's" in text
    assert "a line of the user's" in text
    assert TORCHAO not in text
    assert result.parseoutcomes()["passed"] == 1
