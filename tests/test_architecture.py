"""The house rules: imports point down, pytest in plugin/ alone, a cheap start, small modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path

import pytest

import pytest_qat

PACKAGE = Path(pytest_qat.__file__).parent
LAYERS = (
    ("__main__", "plugin"),
    ("strategies",),
    ("properties",),
    ("report",),
    ("baseline",),
    ("auto",),
    ("diagnosis",),
    ("checks",),
    ("verdict",),
    ("record",),
    ("pipeline",),
    ("measure",),
    ("runtimes",),
    ("finetune",),
    ("workflows",),
    ("exported",),
    ("case", "tolerances", "recipe", "references", "findings"),
    ("core",),
    ("errors",),
)
"""The house from top to bottom, one row a story. A part may import what is below it, and its neighbors in the row."""
DEPTH = {part: depth for depth, layer in enumerate(LAYERS) for part in layer}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
HEAVY = ("torch", "torchao", "torchvision", "hypothesis", "numpy", "scipy", "rich", "filelock")
ONLY_IN = {"executorch": "runtimes.executorch", "ai_edge_litert": "runtimes.litert", "litert_torch": "runtimes.litert",
           "onnx": "runtimes.onnxruntime", "onnxruntime": "runtimes.onnxruntime", "zeus": "measure.energy"}
"""The one module that may import an optional package."""
RECORD = ("record", "report", "checks", "verdict", "auto", "baseline")
"""Parts that handle the record, whose fields have types."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
NAMES = list(SOURCES)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, *, for_types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports anywhere in a module, also inside functions; those for type checkers only if asked for."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
        return
    hidden = isinstance(node, ast.If) and is_type_checking(node) and not for_types
    for child in (node.orelse if isinstance(node, ast.If) and hidden else ast.iter_child_nodes(node)):
        yield from import_nodes(child, for_types=for_types)


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


@cache
def imported(name: str, *, for_types: bool = False) -> frozenset[str]:
    """Full names of the modules that a module imports; a name taken from a package is its module if there is one."""
    return frozenset(imports_in(tree_of(name), name, for_types=for_types))


def imports_of(source: str, name: str, *, for_types: bool) -> set[str]:
    return imports_in(ast.parse(source), name, for_types=for_types)


def imports_in(tree: ast.Module, name: str, *, for_types: bool) -> set[str]:
    found: set[str] = set()
    for node in import_nodes(tree, for_types=for_types):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            continue
        assert node.level == 0, f"{name}, line {node.lineno}: imports are absolute here"
        assert node.module is not None, "unreachable because the import is absolute"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            found.add(full if full in SOURCES else node.module)
    return found


def own(names: AbstractSet[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] == "pytest_qat"}


def part(name: str) -> str:
    """The part of the package that a module belongs to: its first folder or file; '' for the package itself."""
    return name.partition(".")[2].partition(".")[0]


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach each other, by repeated reachability: the graph is small."""
    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        frontier = [start]
        while frontier:
            new = graph.get(frontier.pop(), set()) - seen
            seen |= new
            frontier.extend(new)
        return seen

    reached = {name: reach(name) for name in graph}
    groups = [{other for other in graph if name in reached[other] and other in reached[name]} for name in graph]
    return [group for group in groups if group]


# -- layers ---------------------------------------------------------------------------------------------------------


def test_every_part_of_the_package_has_its_layer() -> None:
    assert {part(name) for name in NAMES} - {""} <= set(DEPTH), "a new part needs a place in LAYERS"


@pytest.mark.parametrize("name", [name for name in NAMES if part(name) in DEPTH])
def test_imports_point_down(name: str) -> None:
    depth = DEPTH[part(name)]
    assert {other for other in own(imported(name)) if DEPTH.get(part(other), depth) < depth} == set()


def test_the_root_imports_nothing_of_its_own() -> None:
    assert own(imported("pytest_qat")) == set()


@pytest.mark.parametrize("name", [name for name in NAMES if part(name)])
def test_no_module_imports_the_public_api_that_is_made_of_it(name: str) -> None:
    assert "pytest_qat" not in imported(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_imported_module_of_the_package_exists(name: str) -> None:
    assert own(imported(name)) <= set(SOURCES)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Counting imports inside functions and those for type checkers: a circle is one however it is hidden."""
    graph = {name: own(imported(name, for_types=True)) for name in NAMES}
    assert strongly_connected(graph) == []


def test_a_circle_would_be_found() -> None:
    assert strongly_connected({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})[0] == {"a", "b", "c"}


def test_imports_inside_functions_and_for_type_checkers_are_seen() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from pytest_qat.plugin.session import QATSession
else:
    import json
def late() -> None:
    from pytest_qat.plugin import hooks
"""
    seen = imports_of(source, "example", for_types=False)
    assert seen == {"typing", "json", "pytest_qat.plugin.hooks"}
    assert imports_of(source, "example", for_types=True) - seen == {"pytest_qat.plugin.session"}


# -- who may import what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if part(name) != "plugin"])
def test_pytest_is_imported_in_the_plugin_alone(name: str) -> None:
    tree = tree_of(name)
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {each.partition(".")[0] for each in named} & {"pytest", "_pytest", "pluggy", "xdist"} == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_s_own_package_is_imported_in_that_runtime_alone(name: str) -> None:
    packages = {each.partition(".")[0] for each in imported(name)} & set(ONLY_IN)
    assert {package for package in packages if name != (own := f"pytest_qat.{ONLY_IN[package]}")
            and not name.startswith(f"{own}.")} == set()


@pytest.mark.parametrize("name", ["verdict", "report.json", "record.store", "record.keys", "record.metrics",
                                  "report.tables", "report.terminal", "measure.statistics",
                                  "measure.latency", "errors", "findings", "tolerances", "recipe", "record.schema",
                                  "core.parsing"])
def test_pure_modules_know_no_torch(name: str) -> None:
    reached: set[str] = set()
    frontier = [f"pytest_qat.{name}"]
    while frontier:
        found = imported(frontier.pop())
        frontier.extend(own(found) - reached)
        reached |= found
    assert {each for each in reached if each.partition(".")[0] in ("torch", "torchao", "torchvision")} == set()


def names_in(tree: ast.AST) -> set[str]:
    return {node.id if isinstance(node, ast.Name) else node.name for node in ast.walk(tree)
            if isinstance(node, (ast.Name, ast.alias))}


@pytest.mark.parametrize("name", [name for name in NAMES if part(name) in ("core", "errors")])
def test_the_ground_knows_no_case(name: str) -> None:
    assert "QATCase" not in names_in(tree_of(name))


def test_a_case_would_be_seen() -> None:
    assert "QATCase" in names_in(ast.parse("def run(case: 'int | None', other: QATCase) -> None: ..."))


def untyped_dicts(tree: ast.AST) -> int:
    return sum(ast.unparse(node) == "dict[str, Any]" for node in ast.walk(tree)
               if isinstance(node, ast.Subscript))


@pytest.mark.parametrize("name", [name for name in NAMES if part(name) in RECORD and name != "pytest_qat.record.store"])
def test_the_record_has_types(name: str) -> None:
    """The store merges JSON of any shape, which other versions may have written."""
    assert untyped_dicts(tree_of(name)) == 0


def test_an_untyped_dict_would_be_seen() -> None:
    assert untyped_dicts(ast.parse("def row(run: dict[str, Any]) -> list[dict[str, Any]]: ...")) == 2


# -- starting up ----------------------------------------------------------------------------------------------------


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running some code."""
    program = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    # -I keeps the environment and the current folder out; the package is found as it is found here.
    path = f"import sys; sys.path[:0] = {[str(PACKAGE.parent)]!r}"
    result = subprocess.run([sys.executable, "-I", "-c", f"{path}\n{program}"], capture_output=True, text=True,
                            check=True, timeout=60)
    return {name.partition(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize("module", ["pytest_qat", "pytest_qat.plugin", "pytest_qat.plugin.hooks",
                                    "pytest_qat.tolerances", "pytest_qat.recipe", "pytest_qat.core.system"])
def test_loading_the_plugin_loads_nothing_heavy(module: str) -> None:
    before, after = loaded_after(""), loaded_after(f"import {module}")
    assert "pytest_qat" in after
    assert (after - before) & set(HEAVY) == set()


def test_the_tolerances_of_the_public_api_need_no_torch() -> None:
    assert "torch" not in loaded_after("import pytest_qat; pytest_qat.Tolerances(accuracy_drop='1%')")


def test_heavy_modules_would_be_seen() -> None:
    assert "numpy" in loaded_after("import pytest_qat.measure.statistics")


def test_every_public_name_is_there_and_is_listed() -> None:
    assert all(getattr(pytest_qat, name) is not None for name in pytest_qat.__all__)
    assert set(pytest_qat.__all__) <= set(dir(pytest_qat))
    assert sorted(pytest_qat._HOMES) == sorted(pytest_qat.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        pytest_qat.quantise  # noqa: B018


# -- tests ----------------------------------------------------------------------------------------------------------


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """pytest imports them by their names, so a run of the whole suite would refuse the second one."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_module_is_too_long(name: str) -> None:
    assert len(SOURCES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", NAMES)
def test_no_function_is_too_long(name: str) -> None:
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in ast.walk(tree_of(name))
               if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert {function: length for function, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_module_opens_by_saying_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(tree_of(name))
