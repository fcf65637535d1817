"""Shared by all tests: a user's folder with models, and inner runs that keep what is installed imported.

Nothing heavy is imported here: `pytest --qat-model=...` in this repository loads this file, too.
"""

from __future__ import annotations

import getpass
import importlib
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _pytest.pytester
import pytest

pytest_plugins = ["pytester"]
_LONG = ("test_cases.py", "test_pages.py", "test_lowered_runtimes.py", "test_inductor_runtime.py",
         "test_pt2e_training.py", "test_circles.py", "test_roads.py", "test_fixture_models.py")
"""Files of slow tests that take longest, in the order in which they begin, so that none of them is left for the end."""
_TOGETHER = ("test_lowered_runtimes.py", "test_inductor_runtime.py", "test_pt2e_training.py", "test_packaging.py")
"""Files whose slow tests share what takes long to make, so that one worker runs all of them."""
_QUICK = ("-p", "no:randomly", "--qat-max-time=1", "--qat-memory=off", "--qat-diagnose=off")

MODELS = '''
import torch
from torch import nn
from pytest_qat import QATCase, Tolerances

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).mean((2, 3)))

def batches(count=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        target = torch.arange(size) % 4
        images = torch.randn(size, 3, 8, 8, generator=generator) * 0.3
        images[:, 0] += (target % 2)[:, None, None] * 2.0
        images[:, 1] += (target // 2)[:, None, None] * 2.0
        made.append((images, target))
    return made

def trained():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(25):
        for images, target in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), target).backward()
            optimizer.step()
    return model.eval()

def case(**changes):
    settings = dict(
        model=trained(), example_inputs=(batches()[0][0],), name="Net", train_data=batches(),
        loss_fn=nn.functional.cross_entropy, eval_data=batches(4, seed=1),
        tolerances=Tolerances(min_speedup=0.0, min_size_reduction=0.5))
    return QATCase(**{**settings, **changes})

def good():
    return case()
'''


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest of the slow tests begin, in whichever order the others are."""
    rank = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)) if item.get_closest_marker("slow") else len(rank))


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send slow tests to workers one by one, but those together that share what takes long to make."""
    if config.getoption("markexpr") != "slow" or config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    xdist = importlib.import_module("xdist.scheduler")

    class Together(xdist.LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(_TOGETHER) else nodeid

    return Together(config, log)


class Project:
    """A user's folder with models.py, and pytest runs in it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.add("")

    def add(self, code: str) -> None:
        """Write models.py: the common models and some code of the test's own."""
        (self.path / "models.py").write_text(MODELS + textwrap.dedent(code))

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process, in a fixed order, with a small time budget and no processes for memory."""
        return self.pytester.runpytest_inprocess(*_QUICK, *arguments)

    def subprocess(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a process of its own."""
        return self.pytester.runpytest_subprocess(*_QUICK, *arguments)


class _ForgetsUserModules(_pytest.pytester.SysModulesSnapshot):
    """What an inner run puts back: what is installed stays imported, the user's folder is forgotten.

    Forgetting all that an inner run imported, as pytester does, would import torch twice, which fails.
    """

    base = Path()

    def __init__(self, preserve: Callable[[str], bool] | None = None) -> None:
        super().__init__(preserve=lambda name: not _is_in(self.base, sys.modules[name]))


def _is_in(folder: Path, module: object) -> bool:
    file = getattr(module, "__file__", None)
    places = [file] if file else list(getattr(module, "__path__", ()))
    return any(Path(place).is_relative_to(folder) for place in places)


@pytest.fixture(scope="session", autouse=True)
def _installed_modules_stay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    _ForgetsUserModules.base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pytest.pytester, "SysModulesSnapshot", _ForgetsUserModules)
        yield


@pytest.fixture(autouse=True)
def _user_modules_are_forgotten() -> Iterator[None]:
    """A module that a test has loaded from its own folder is not there for the next one, whose own has its name."""
    known, path = set(sys.modules), list(sys.path)
    yield
    users = [name for name in set(sys.modules) - known if _is_in(_ForgetsUserModules.base, sys.modules[name])]
    for name in users:  # found before any is gone: the path of a namespace package is made from its parent's
        del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="session", autouse=True)
def _share_of_the_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Under xdist each worker and what it starts take their part of the cores, and times as if it were alone.

    More threads than cores slow training down tenfold. The lock of the machine lies in the temporary folder; with one
    for all, each worker would wait while another one times something, and no test needs quiet figures.
    """
    workers = getattr(request.config, "workerinput", {}).get("workercount", 1)
    torch = importlib.import_module("torch")
    share = max(1, torch.get_num_threads() // workers)
    torch.set_num_threads(share)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if workers > 1:
            compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"  # torch's own, for all
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled)))
            patch.setenv("OMP_NUM_THREADS", str(share))
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    importlib.import_module("torch").manual_seed(0)


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)
