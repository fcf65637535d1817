"""What each finding's code stands for, read from where the package makes its findings; nothing of it is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CodeNotes", "finding_codes"]

PACKAGE = Path(__file__).parents[1]
_FILLED_IN = "…"
_SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeNotes:
    """What the package says of a code, in the order of the sources; `…` is for what differs from model to model.

    Attributes:
        code: Name of the kind of finding.
        severities: Severities that it is given.
        messages: What was observed.
        remedies: What helps.
        evidence: Names of the numbers and texts that come with it.
        modules: Where it is made, as paths in the package without suffix.
    """

    code: str
    severities: Sequence[str]
    messages: Sequence[str]
    remedies: Sequence[str]
    evidence: Sequence[str]
    modules: Sequence[str]


@dataclass(slots=True)
class _Found:
    severities: dict[str, None] = field(default_factory=dict)
    messages: dict[str, None] = field(default_factory=dict)
    remedies: dict[str, None] = field(default_factory=dict)
    evidence: dict[str, None] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)


def finding_codes(package: Path = PACKAGE) -> Mapping[str, CodeNotes]:
    """Return the notes on every code that is written as text in the package's sources, by code in order.

    Args:
        package: Folder of the sources.
    """
    trees = {path.relative_to(package).with_suffix("").as_posix().removesuffix("/__init__"): ast.parse(
        path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    of_tables = _evidence_of_tables(trees.values())
    found: dict[str, _Found] = {}
    for name, tree in trees.items():
        constants = {target.id: each.value for each in tree.body if isinstance(each, ast.Assign)
                     for target in each.targets if isinstance(target, ast.Name)}
        for call, given in _calls_with_code(tree):
            code = given["code"]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                entry = found.setdefault(code.value, _Found())
                table = call.func.id if isinstance(call.func, ast.Name) else ""
                severity = ast.walk(given["severity"]) if "severity" in given else ()
                named = [str(each.value) for each in severity if isinstance(each, ast.Constant)]
                entry.severities.update(dict.fromkeys(each for each in named if each in _SEVERITIES))
                said = given.get("message", given.get("reason"))  # a probe's reason is the message of its code
                entry.messages.update(dict.fromkeys(_texts(said, constants)))
                entry.remedies.update(dict.fromkeys(
                    text for text in _texts(given.get("remedy"), constants) if text != _FILLED_IN))
                entry.evidence.update(dict.fromkeys(list(_keys(given.get("evidence"), tree)) or of_tables.get(table,
                                                                                                              ())))
                entry.modules[name] = None
    return {code: CodeNotes(
        code=code, severities=tuple(entry.severities) or ("error",), messages=tuple(entry.messages),
        remedies=tuple(entry.remedies), evidence=tuple(entry.evidence), modules=tuple(entry.modules))
        for code, entry in sorted(found.items())}


def _calls_with_code(tree: ast.AST) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if "code" in given:
                yield node, given


def _evidence_of_tables(trees: Iterable[ast.Module]) -> Mapping[str, Sequence[str]]:
    """Return the evidence of findings that are made from a table's entries, by the class of the entries."""
    found: dict[str, Sequence[str]] = {}
    for tree in trees:
        keys = [key for _, given in _calls_with_code(tree) if isinstance(given["code"], ast.Attribute)
                for key in _keys(given.get("evidence"), tree)]
        found.update({node.name: keys for node in tree.body if isinstance(node, ast.ClassDef) and keys})
    return found


def _texts(node: ast.expr | None, constants: Mapping[str, ast.expr]) -> Iterator[str]:
    """Yield the texts that an expression can stand for, as they are written, with a sign for what is filled in."""
    if isinstance(node, ast.Name) and isinstance(constants.get(node.id), ast.Constant):
        node = constants[node.id]
    text = ""
    if isinstance(node, ast.Constant):
        text = re.sub(r"(?<!\{)\{\w+\}", _FILLED_IN, str(node.value)).replace("{{", "{").replace("}}", "}")
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else _FILLED_IN for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body, constants), *_texts(node.orelse, constants))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = "".join(next(_texts(part, constants), "") for part in (node.left, node.right))
    elif node is not None:
        text = _FILLED_IN
    if text:
        yield re.sub(f"{_FILLED_IN}{{2,}}", _FILLED_IN, text)


def _keys(node: ast.expr | None, tree: ast.Module) -> Iterator[str]:
    """Yield the keys of a dict that is written where it is passed, or assigned to the name that is passed."""
    if isinstance(node, ast.Name):
        assigned = [each.value for each in ast.walk(tree) if isinstance(each, ast.Assign)
                    and any(isinstance(target, ast.Name) and target.id == node.id for target in each.targets)]
        for value in assigned:
            yield from () if isinstance(value, ast.Name) else _keys(value, tree)
    for part in ast.walk(node) if isinstance(node, ast.Dict) else ():
        if isinstance(part, ast.Dict):
            yield from (key.value for key in part.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
