"""Advice about the command line: options, markers, references, files, and functions of the user that are tested."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pytest_qat.core.parsing import parse_fraction, parse_ratio, parse_shapes
from pytest_qat.plugin import settings
from pytest_qat.recipe import get_recipe
from pytest_qat.references import load_case
from pytest_qat.report.json import check_writable
from pytest_qat.tolerances import Tolerances
from tests.plugin.inner_runs import OPS
from tests.remedies.rows_case import done
from tests.remedies.walk import PLAIN, Row, World

DROP = "--qat-accuracy-drop"


def fraction(text: str) -> Any:
    return done(lambda: parse_fraction(text, name=DROP))


def ratio(text: str) -> Any:
    return done(lambda: parse_ratio(text, name="--qat-min-speedup"))


def option(kind: str, value: str) -> Any:
    return done(lambda: settings._PARSERS[kind](value, name="--qat-option"))


PARSING = "core/parsing.py"
OPTION_ROWS = [
    Row(path=PARSING, text="Write {}=1x3x224x224", calls=done(lambda: parse_shapes("1x0", name="--qat-inputs")),
        follow=done(lambda: parse_shapes("1x3x224x224", name="--qat-inputs"))),
    Row(path=PARSING, text="Give {} as 0.01 or 1%.", calls=fraction("-1%"), follow=fraction("1%"), sites=3),
    Row(path=PARSING, text="Write 1% or 100%.", calls=fraction("1"), follow=fraction("1%")),
    Row(path=PARSING, text="If you meant {} percent", calls=fraction("5"), follow=fraction("5%")),
    Row(path=PARSING, text="Give {} as a ratio such as 1.5.", calls=ratio("-1"), follow=ratio("1.5")),
    Row(path=PARSING, text="Give it as {}.", calls=ratio("fast"), follow=ratio("1.5"), sites=2),
    Row(path="tolerances.py", text="Remove {}.",
        calls=done(lambda: Tolerances(min_speedup=None)),  # type: ignore[arg-type]
        follow=done(Tolerances)),
    Row(path="recipe.py", text="Did you mean {}?", calls=done(lambda: get_recipe("fx-x68")),
        follow=done(lambda: get_recipe("fx-x86"))),
    Row(path="recipe.py", text="Choose one of them, or all.", calls=done(lambda: get_recipe("quickest")),
        follow=done(lambda: get_recipe("eager-x86"))),
    Row(path="plugin/settings.py", text="Write {}={}.", calls=option("count", "0"), follow=option("count", "1")),
    Row(path="plugin/settings.py", text="Write {}=1,8,32.",
        calls=option("counts", "a"), follow=option("counts", "1,8,32")),
    Row(path="plugin/settings.py", text="Write {}=20.", calls=option("seconds", "nan"), follow=option("seconds", "20")),
    Row(path="plugin/settings.py", text="Give {} a value, or leave it out.", calls=option("text", " "),
        follow=option("text", "cpu")),
    Row(path="plugin/settings.py", text="Write {}=on.", calls=option("switch", "much"), follow=option("switch", "on")),
    Row(path="plugin/settings.py", text="Write {}=auto.", calls=option("diagnose", "much"),
        follow=option("diagnose", "auto")),
    Row(path="plugin/settings.py", text="Add --qat-ops=", calls=lambda world: world.project.run("--qat-fuzz=1"),
        follow=lambda world: ops(world, "good", "--qat-fuzz=1", "-k", "P17_layout")),
]


def ops(world: World, name: str, *arguments: str) -> pytest.RunResult:
    (world.project.path / "kernels.py").write_text(OPS)
    return world.project.run(f"--qat-ops=kernels:{name}", *arguments)


def file(name: str) -> Any:
    def work(world: World) -> None:
        (world.path / "taken").mkdir(exist_ok=True)
        check_writable(world.path / name, name="--qat-json")
    return work


def folder_made(world: World) -> None:
    (world.path / "new").mkdir()
    check_writable(world.path / "new" / "qat.json", name="--qat-json")


FILE_ROWS = [
    Row(path="report/json.py", text="Write {}={}/qat.json.", calls=file("taken"), follow=file("taken/qat.json")),
    Row(path="report/json.py", text="Run `mkdir -p {}` first.", calls=file("new/qat.json"), follow=folder_made),
]


def marked(marker: str, *, fixture: str = "") -> Any:
    def work(world: World) -> pytest.RunResult:
        world.project.add(PLAIN)
        (world.project.path / "test_marked.py").write_text(
            f"import pytest\n\n{marker}\ndef test_model({fixture}):\n    pass\n")
        return world.project.run("test_marked.py")
    return work


GOOD = '@pytest.mark.qat(model="models:plain", min_size_reduction=0.1)'
MARKER_ROWS = [
    Row(path="plugin/marked.py", text="Name it: @pytest.mark.qat(model=",
        calls=marked('@pytest.mark.qat("models:plain")'),
        follow=marked(GOOD)),
    Row(path="plugin/marked.py", text="Did you mean {}?",
        calls=marked('@pytest.mark.qat(model="models:plain", min_size_reducton=0.1)'), follow=marked(GOOD)),
    Row(path="plugin/marked.py", text="Remove it.",
        calls=marked('@pytest.mark.qat(model="models:plain", min_size_reduction=0.1, zzz=3)'), follow=marked(GOOD)),
    Row(path="plugin/marked.py", text='Add model="package.module:function".',
        calls=marked("@pytest.mark.qat(min_size_reduction=0.1)"), follow=marked(GOOD)),
    Row(path="plugin/marked.py", text='Add @pytest.mark.qat(model="package.module:function").',
        calls=marked("", fixture="qat_case"), follow=marked(GOOD, fixture="qat_case")),
]

ZOO = """
from torch import nn
import torch

def build():
    return nn.Linear(4, 2), (torch.randn(2, 4),)

def needs(size):
    return build()

def bare():
    return nn.Linear(4, 2)

def kind():
    return dict

def words():
    return "a model"

def made():
    return dict(a=1)
"""


def load(reference: str, *, shapes: str | None = None, **files: str) -> Any:
    def work(world: World) -> None:
        number = len(list(world.path.glob("root*")))
        root = world.path / f"root{number}"
        root.mkdir()
        names = {"zoo": ZOO, **files}
        for name, code in names.items():
            (root / f"{name}.py").write_text(code)
        world.patch.setattr(sys, "path", [entry for entry in sys.path if not entry.startswith(str(world.path))])
        for name in names:
            world.patch.delitem(sys.modules, name, raising=False)
        load_case(reference, root=root, shapes=shapes)
    return work


REFERENCES = "references.py"
REFERENCE_ROWS = [
    Row(path=REFERENCES, text="Write it as package.module:function", calls=load("zoo"), follow=load("zoo:build")),
    Row(path=REFERENCES, text="Did you mean {}?", calls=load("zoo:buidl"), follow=load("zoo:build"), sites=2),
    Row(path=REFERENCES, text="Did you mean {}? {}", calls=load("zooo:build"), follow=load("zoo:build")),
    Row(path=REFERENCES, text="Define {} there, or name another function.", calls=load("zoo:qqqq"),
        follow=load("zoo:qqqq", zoo=ZOO + "\nqqqq = build\n")),
    Row(path=REFERENCES, text="Return an instance: {}(...).",
        calls=load("zoo:kind"), follow=load("zoo:bare", shapes="2x4")),
    Row(path=REFERENCES, text="Return one of these from the function.",
        calls=load("zoo:made"), follow=load("zoo:build")),
    Row(path=REFERENCES, text="Give --qat-inputs=1x3x224x224", calls=load("zoo:bare"),
        follow=load("zoo:bare", shapes="2x4")),
    Row(path=REFERENCES, text="Make the function run without arguments", calls=load("zoo:needs"),
        follow=load("zoo:needs", zoo=ZOO.replace("needs(size)", "needs(size=4)"))),
    Row(path=REFERENCES, text="Install {}, or drop the import.",
        calls=load("lost:build", lost="import nowhere_to_be\n" + ZOO),
        follow=load("lost:build", lost=ZOO)),
    Row(path="core/libraries.py", text="Write it as in hf:BertConfig", calls=load("torchvision:squeezenet1_1(7)"),
        follow=load("torchvision:squeezenet1_1(num_classes=7)")),
    Row(path="core/libraries.py", text="Did you mean {}?", calls=load("torchvision:resnet81"),
        follow=load("torchvision:resnet18", shapes="1x3x64x64")),
    Row(path="core/libraries.py", text="Choose one of {}.", calls=load("torchvision:qqqqqqq"),
        follow=load("torchvision:resnet18", shapes="1x3x64x64")),
]

