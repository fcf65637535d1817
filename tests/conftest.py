"""Shared by all tests: a user's folder with models, and torch loaded once.

Nothing heavy is imported here: `pytest --qat-model=...` in this repository loads this file, too.
"""

from __future__ import annotations

import contextlib
import importlib
import textwrap
import warnings

import pytest

# pytester's inner runs forget what they import, and torch cannot be imported twice.
PRELOADED = ("torch._dynamo", "torch._inductor.utils", "torch.ao.quantization.quantize_fx", "torch.utils.flop_counter",
             "torch._inductor.codecache", "torch._functorch.aot_autograd", "torch.export._trace",
             "pytest_qat.assessment", "pytest_qat.plugin.registry", "pytest_qat.refs",
             "pytest_qat.report.environment", "pytest_qat.report.terminal", "pytest_qat.workflows.eager",
             "pytest_qat.workflows.fx", "pytest_qat.ranking", "pytest_qat.runtimes.torchscript")
PRELOADED_IF_THERE = ("pytest_qat.workflows.pt2e", "pytest_qat.workflows.torchao")

pytest_plugins = ["pytester"]
_QUICK = ("-p", "no:randomly", "--qat-max-time=1", "--qat-memory=off")

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


@pytest.fixture(scope="session", autouse=True)
def _preloaded() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for name in PRELOADED_IF_THERE:
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    importlib.import_module("torch").manual_seed(0)


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)
