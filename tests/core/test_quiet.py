"""Log lines of libraries about themselves are kept out; the user's are not, and loggers are restored."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from pytest_qat.core.quiet import quiet_loggers, silenced

NOISY = "torch.utils._pytree"


def printed(code: str) -> str:
    """Everything that a fresh interpreter prints while it runs some code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True,
                            timeout=200)
    return result.stdout + result.stderr


def test_noisy_loggers_are_off_inside_alone_and_other_loggers_stay_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=NOISY):
        logging.getLogger(NOISY).propagate, before = True, logging.getLogger(NOISY).propagate
        try:
            with quiet_loggers():
                logging.getLogger(NOISY).warning("a line of torch's")
                logging.getLogger("users.model").warning("a line of the user's")
            logging.getLogger(NOISY).warning("after")
        finally:
            logging.getLogger(NOISY).propagate = before
    assert [record.getMessage() for record in caplog.records] == ["a line of the user's", "after"]


@pytest.mark.parametrize("disabled", [False, True])
def test_loggers_are_restored_whatever_happens_inside(monkeypatch: pytest.MonkeyPatch, disabled: bool) -> None:
    monkeypatch.setattr(logging.getLogger(NOISY), "disabled", disabled)
    with pytest.raises(ZeroDivisionError), quiet_loggers(), quiet_loggers():
        assert logging.getLogger(NOISY).disabled
        raise ZeroDivisionError
    assert logging.getLogger(NOISY).disabled is disabled


def test_a_user_who_asks_for_the_trace_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_TRACE", "/nowhere")
    monkeypatch.setattr(logging.getLogger(NOISY), "disabled", False)
    with quiet_loggers():
        assert not logging.getLogger(NOISY).disabled


def test_file_descriptor_2_is_discarded_inside_alone(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before ")
    with silenced():
        os.write(2, b"inside ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


@pytest.mark.slow
@pytest.mark.parametrize("load", [
    "from pytest_qat.workflows import load_workflow; load_workflow('pt2e')",
    "from pytest_qat.workflows import load_workflow; load_workflow('torchao')",
    "from pathlib import Path; from pytest_qat.properties.targets import load_ops; load_ops('torch', root=Path())",
])
def test_the_first_import_of_torchao_prints_nothing(load: str) -> None:
    pytest.importorskip("torchao")
    assert printed(load) == ""
