"""Find every piece of advice that the package can print, by reading its code.

Advice is what is passed as `remedy=` or `hint=`, whichever way it gets there (a name, a branch, a table's entry, the
strings that a helper returns), and any other string with an imperative sentence in it, such as a verdict's "raise
--qat-max-time". Text that is passed on from another error is found where it was written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pytest_qat"
_ADVICE = re.compile(
    r"(?:^|[.:;,] |\bor )(?:please )?(?:add|calibrate|call|change|check|choose|convert|divide|evaluate|freeze|give|"
    r"increase|install|leave|load|look|lower|make|merge|move|pad|pass|put|quantize|raise|reduce|remove|replace|return|"
    r"run|see|set|ship|shorten|shrink|switch|train|try|use|write) ", re.IGNORECASE)
_KEYWORDS = ("remedy", "hint")


@dataclass(frozen=True, slots=True)
class Site:
    """One piece of advice in the code: file, function around it, and text with `{}` for what is filled in."""

    path: str
    function: str
    text: str
    line: int


def sites() -> list[Site]:
    """Return all advice of the package, in the order of the files."""
    return [site for path in sorted(PACKAGE.rglob("*.py")) for site in sites_in(
        path.read_text(encoding="utf-8"), path=path.relative_to(PACKAGE).as_posix())]


def sites_in(code: str, *, path: str) -> list[Site]:
    """Return the advice in a module."""
    return _Module(ast.parse(code), path).sites()


class _Module:
    def __init__(self, tree: ast.Module, path: str) -> None:
        self.tree, self.path = tree, path
        self.functions: dict[str, ast.FunctionDef] = {}
        self.around: dict[int, tuple[ast.FunctionDef, ...]] = {}
        self.taken: set[int] = set()
        self._walk(tree, ())

    def _walk(self, node: ast.AST, functions: tuple[ast.FunctionDef, ...]) -> None:
        if isinstance(node, ast.FunctionDef):
            self.functions[node.name] = node
            functions = (*functions, node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            self.taken.add(id(node.value))  # a docstring
        self.around[id(node)] = functions
        for child in ast.iter_child_nodes(node):
            self._walk(child, functions)

    def sites(self) -> list[Site]:
        found: list[Site] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                if _name(node.func) in ("Option", "add_argument", "ArgumentParser"):
                    self.taken |= {id(part) for part in ast.walk(node)}
                found += [site for keyword in node.keywords if keyword.arg in _KEYWORDS
                          for site in self._of(keyword.value, node)]
        for node in ast.walk(self.tree):
            if id(node) not in self.taken and (text := _text(node)) and _ADVICE.search(text):
                found.append(self._site(node, text))
            if id(node) not in self.taken and isinstance(node, ast.JoinedStr):
                self.taken |= {id(part) for part in ast.walk(node)}
        return sorted(set(found), key=lambda site: (site.line, site.text))

    def _site(self, node: ast.AST, text: str) -> Site:
        names = [function.name for function in self.around.get(id(node), ())]
        return Site(self.path, names[-1] if names else "", " ".join(text.split()), getattr(node, "lineno", 0))

    def _of(self, node: ast.expr, at: ast.AST) -> Iterator[Site]:
        """Yield the advice that an expression can stand for."""
        if id(node) in self.taken:
            return
        if (text := _text(node)) is not None:
            yield from self._written(node, text, at)
        elif isinstance(node, (ast.IfExp, ast.BoolOp)):
            branches = node.values if isinstance(node, ast.BoolOp) else (node.body, node.orelse)
            yield from (site for branch in branches for site in self._of(branch, at))
        elif isinstance(node, ast.BinOp):  # text put together from parts: one piece of advice
            parts = [_text(part) for part in ast.walk(node) if isinstance(part, (ast.Constant, ast.JoinedStr))]
            self.taken |= {id(part) for part in ast.walk(node)}
            yield self._site(node, next((part for part in parts if part), ""))
        elif isinstance(node, ast.Call):
            helper = self.functions.get(_name(node.func))
            if helper is not None:
                yield from (site for each in ast.walk(helper) if isinstance(each, ast.Return) and each.value
                            for site in self._of(each.value, at))
        elif isinstance(node, ast.Name):
            yield from self._named(node.id, at)

    def _written(self, node: ast.expr, text: str, at: ast.AST) -> Iterator[Site]:
        """Yield a text, or what is filled in where it is nothing but that."""
        self.taken |= {id(part) for part in ast.walk(node)}
        if re.search(r"[a-z]{2}", text):
            yield self._site(node, text)
            return
        for part in ast.walk(node):
            if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
                yield from self._named(part.value.id, at)

    def _named(self, name: str, at: ast.AST) -> Iterator[Site]:
        """Yield the advice that is assigned to a name, in the functions around or in the module."""
        for scope in (*self.around.get(id(at), ()), self.tree):
            for node in ast.walk(scope):
                if isinstance(node, ast.Assign):
                    for target in node.targets:
                        yield from self._assigned(target, node.value, name, at)

    def _assigned(self, target: ast.expr, value: ast.expr, name: str, at: ast.AST) -> Iterator[Site]:
        if isinstance(target, ast.Name) and target.id == name:
            yield from self._of(value, at)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, given in zip(target.elts, value.elts, strict=False):
                yield from self._assigned(part, given, name, at)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _text(node: ast.AST) -> str | None:
    """Return a string as it is written, with `{}` for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None
