"""The plugin costs nothing when unused, and an interrupt loses nothing that was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Project
from interruptible import INTERRUPTIBLE

HEAVY = ("torch", "torchvision", "torchao", "numpy", "scipy", "rich", "filelock")


def test_a_session_without_qat_options_loads_nothing_heavy(project: Project) -> None:
    path = project.pytester.makepyfile(f'''
        import sys

        def test_modules(request):
            assert request.config.pluginmanager.hasplugin("qat")
            assert [name for name in {HEAVY!r} if name in sys.modules] == []
    ''')
    # Plugins that other packages bring along may load what they like.
    others = [option for name in ("hypothesispytest", "jaxtyping", "typeguard", "anyio", "hydra_pytest", "kgb")
              for option in ("-p", f"no:{name}")]
    project.subprocess(str(path), *others).assert_outcomes(passed=1)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (f"import sys, pytest_qat, pytest_qat.plugin\n"
            f"assert not [name for name in {(*HEAVY, 'hypothesis')!r} if name in sys.modules]\n"
            f"assert 'QATCase' in dir(pytest_qat)\n"
            f"assert pytest_qat.QATCase.__name__ == 'QATCase'\n"
            f"assert 'torch' in sys.modules")
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True,
                          check=False, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_during_training_keeps_what_was_measured(project: Project) -> None:
    project.add('''
        import time

        def slow():
            def train(model):
                open("training", "w").close()
                time.sleep(600)
            return case(name="Slow", train=train)
    ''')
    with Path(project.path / "out.txt").open("w") as out:
        run = subprocess.Popen(
            [sys.executable, "-c", f"{INTERRUPTIBLE}import pytest; raise SystemExit(pytest.main())",
             "-p", "no:randomly", "--qat-model=models:good", "--qat-model=models:slow",
             "--qat-json=qat.json", "--qat-max-time=1", "-k", "prepare or convert or size"],
            cwd=project.path, stdout=out, stderr=subprocess.STDOUT)
        try:
            while not (project.path / "training").exists() and run.poll() is None:
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            code = run.wait(timeout=240)
        finally:
            run.kill()
    text = (project.path / "out.txt").read_text()
    assert code == pytest.ExitCode.INTERRUPTED, text
    assert "INTERNALERROR" not in text
    assert "Net [fx-x86]" in text
    assert "Slow [fx-x86]" in text
    good, slow = json.loads((project.path / "qat.json").read_text())["runs"]
    assert list(good["checks"]) == ["prepare", "convert", "size"]
    assert list(slow["checks"]) == ["prepare"]
    assert not list(project.path.glob(".qat.json*"))
