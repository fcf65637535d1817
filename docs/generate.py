"""Write the reference pages that follow from the code: options, fixtures and marker, record, recipes, laws, findings.

Run from the repository root: `python -m docs.generate`. A test compares the pages with what this module makes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

from docs.blocks import REPOSITORY
from pytest_qat import plugin
from pytest_qat.core.finding_codes import finding_codes
from pytest_qat.plugin.options import OPTIONS
from pytest_qat.properties.known_issues import KNOWN
from pytest_qat.properties.laws import LAWS
from pytest_qat.recipe import DEFAULT_RECIPE, RECIPES, Recipe
from pytest_qat.record import schema
from pytest_qat.tolerances import Tolerances

__all__ = ["PAGES", "main"]

REFERENCE = REPOSITORY / "docs" / "reference"
PACKAGE = REPOSITORY / "pytest_qat"
_NAMES: Mapping[object, str] = types.MappingProxyType({
    type(None): "null", str: "string", float: "number", int: "integer", bool: "boolean", dict: "object",
    Mapping: "object", list: "list", object: "any", typing.Any: "any"})
MADE = "<!-- Made by `python -m docs.generate` from the code; do not edit. -->"


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
        sys.stdout.write(f"docs/reference/{name}\n")


def page(title: str, *parts: str) -> str:
    """Return a page of a title and parts, a blank line between them."""
    return "\n\n".join((f"# {title}", MADE, *(part.strip("\n") for part in parts))) + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a markdown table; bars in cells are escaped."""
    lines = [list(header), ["---"] * len(list(header)), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def attributes(kind: object) -> dict[str, str]:
    """Return the lines of the `Attributes` or `Args` section of a docstring, by name."""
    found: dict[str, str] = {}
    inside, name = False, ""
    for line in (inspect.getdoc(kind) or "").splitlines():
        if line in ("Attributes:", "Args:"):
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and line.startswith("    ") and line[4:5] != " " and ":" in line:
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif inside and line.strip() and name:
            found[name] += f" {line.strip()}"
    return found


def options() -> str:
    """Return the page of options and ini keys."""
    rows = []
    for option in OPTIONS:
        value = f" {option.metavar}" if option.metavar else ""
        repeat = " Repeatable." if option.repeat else ""
        rows.append((f"`--{option.name}{value}`", f"`{option.key}`" if option.ini else "", option.help + repeat))
    return page("Options",
                "A tolerance comes from the marker or assertion, else the command line, else the case, else the ini "
                "file, else the default; so does a recipe. A bad value exits with 4 before anything is loaded.",
                table(("option", "ini key", "what it does"), rows))


def fixtures() -> str:
    """Return the page of fixtures and of the marker."""
    names = [name for name in plugin.__all__ if name.startswith("qat_")]
    rows = [(f"`{name}`", _first_paragraph(inspect.unwrap(getattr(plugin, name)))) for name in names]
    notes = attributes(Tolerances)
    arguments = [("`model`", "a reference such as `package.module:function`, or the object itself"),
                 ("`recipe`", f"name of a [recipe](recipes.md); the model's own, else `{DEFAULT_RECIPE}`, if left out"),
                 *((f"`{name}`", notes[name]) for name in Tolerances.__dataclass_fields__)]
    methods = [(f"`{name}{_signature(member)}`" if callable(member) else f"`{name}`", _first_paragraph(member))
               for name, member in vars(_class_of_the_plugin("QATRun")).items()
               if name in ("case", "metrics", "diagnose") or name.startswith("assert_")]
    return page("Fixtures and marker", "## Fixtures", table(("fixture", "gives"), rows),
                "## `qat_run`", table(("member", "what it does"), methods),
                "## `@pytest.mark.qat(...)`", "Every argument is given by name; unknown ones are errors.",
                table(("argument", "meaning"), arguments))


def _class_of_the_plugin(name: str) -> type:
    """Import the module of the plugin that has this class; the plugin itself does so only when it needs it."""
    (path,) = (path for path in (PACKAGE / "plugin").glob("*.py")
               if f"class {name}" in path.read_text(encoding="utf-8"))
    found: type = getattr(importlib.import_module(f"pytest_qat.plugin.{path.stem}"), name)
    return found


def recipes() -> str:
    """Return the page of recipes."""
    def needs(recipe: Recipe) -> str:
        parts = [f"extra `{recipe.extra}`" if recipe.extra else ""]
        parts.append("a C++ compiler" if recipe.runtime == "inductor" else "")
        return ", ".join(filter(None, parts))

    rows = [(f"`{recipe.name}`{' (default)' if recipe.name == DEFAULT_RECIPE else ''}", recipe.workflow,
             recipe.engine or recipe.quantizer or "", recipe.runtime, needs(recipe)) for recipe in RECIPES.values()]
    folders = [(f"{folder}s" if folder == "workflow" else "runtimes", name) for folder in ("workflow", "runtime")
               for name in dict.fromkeys(getattr(recipe, folder) for recipe in RECIPES.values())]
    texts = [(name, kind.removesuffix("s"), _module_line(f"pytest_qat/{kind}/{name}")) for kind, name in folders]
    unlowered = ", ".join(f"`{name}`" for name, recipe in RECIPES.items() if not recipe.lowered)
    return page("Recipes", "`--qat-recipe=NAME`; `all` stands for every recipe that runs on int8 kernels, and `auto` "
                           "ranks them.",
                table(("recipe", "workflow", "engine or quantizer", "runtime", "needs"), rows),
                f"{unlowered} is the reference form, not lowered: it shows what that costs, and is in neither `all` "
                "nor `auto`.",
                "## Workflows and runtimes", table(("name", "kind", "what it is"), texts))


def laws() -> str:
    """Return the page of laws and of what they find in released torch and torchao."""
    rows = [(f"`{law.name}`", law.summary, law.kind.__name__) for law in LAWS]
    issues = [(f"`{issue.law}`", ", ".join(f"`{name}`" for name in issue.ops), issue.reason, _upstream(issue.issue))
              for issue in KNOWN]
    return page("Laws", f"{len(LAWS)} laws. `--qat-ops` collects those that speak about the functions that you give.",
                table(("law", "what it states", "about"), rows), "## Known issues",
                "`pytest --qat-ops=torch` holds PyTorch and torchao to the laws. What breaks in a release is an "
                "expected failure tied to its versions, and fails as soon as upstream has fixed it.",
                table(("law", "where", "what happens", "upstream"), issues))


def _upstream(issue: str) -> str:
    repository, _, number = issue.partition("#")
    return f"[{issue}](https://github.com/{repository}/issues/{number})" if number else issue or "none that we know of"


def findings() -> str:
    """Return the page of finding codes, read from where the code makes them."""
    rows = [(f"`{code}`", ", ".join(sorted(notes.severities)), " / ".join(sorted(notes.messages)),
             ", ".join(f"`{name}`" for name in notes.modules)) for code, notes in finding_codes().items()]
    return page("Findings", "A finding is one observation about a model. Its code is stable; its message is written "
                            "for people, with `…` below for what differs from model to model.",
                table(("code", "severity", "message", "made in"), rows))


def record() -> str:
    """Return the page of the JSON record: one section a type, each before the types that it holds."""
    parts: list[str] = []
    for kind in _reached(schema.Document):
        rows = [(f"`{name}`{'' if name in kind.__required_keys__ else ' (may be absent)'}", _type(hint))
                for name, hint in typing.get_type_hints(kind).items()]
        parts += [f"## {kind.__name__}", _first_paragraph(kind), table(("key", "type"), rows)]
    return page("The JSON record", "`--qat-json=PATH` writes the record after every check, in one step, so that an "
                                   "interrupted session keeps what it measured. What was not measured is null.",
                f"Checks, in order: {', '.join(f'`{name}`' for name in schema.CHECKS)}.", *parts)


def _reached(root: typing.Any) -> list[typing.Any]:
    """Return a TypedDict and those that it holds, breadth first."""
    found, waiting = [root], [root]
    while waiting:
        hints: list[object] = list(typing.get_type_hints(waiting.pop(0)).values())
        while hints:
            hint = hints.pop(0)
            hints[:0] = typing.get_args(hint)
            if typing.is_typeddict(hint) and hint not in found:
                found.append(hint)
                waiting.append(hint)
    return found


def _type(hint: object) -> str:
    """Return a type as JSON readers say it, linked where it has a section."""
    arguments = typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    if typing.is_typeddict(hint):
        name = typing.cast("type", hint).__name__
        shown = f"[{name}](#{name.lower()})"
    elif kind in (typing.Union, types.UnionType):
        shown = " or ".join(_type(each) for each in arguments)
    elif kind is typing.Literal:
        shown = " or ".join(f"`{each!r}`" for each in arguments)
    elif kind in (dict, Mapping) and arguments:
        shown = f"object of {_type(arguments[1])}"
    elif kind in (list, tuple, Sequence) and arguments:
        shown = f"list of {' and '.join(dict.fromkeys(_type(each) for each in arguments if each is not ...))}"
    elif arguments:  # NotRequired, Annotated and the like
        shown = _type(arguments[0])
    else:
        shown = _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
    return shown


def _first_paragraph(described: object) -> str:
    return (inspect.getdoc(described) or "").split("\n\n", maxsplit=1)[0].replace("\n", " ")


def _module_line(stem: str) -> str:
    path = next(path for path in (REPOSITORY / f"{stem}.py", REPOSITORY / stem / "__init__.py") if path.exists())
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n", maxsplit=1)[0].replace("\n", " ")


def _signature(member: Callable[..., object]) -> str:
    names = [name for name in inspect.signature(member).parameters if name != "self"]
    return f"({', '.join(names)})"


PAGES: Mapping[str, Callable[[], str]] = types.MappingProxyType({
    "options.md": options, "fixtures.md": fixtures, "recipes.md": recipes, "laws.md": laws, "findings.md": findings,
    "json.md": record})

if __name__ == "__main__":
    main()
