"""One kind of error that is known: how it is recognized, what it means and what helps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pytest_qat.findings import Finding
from pytest_qat.workflows.known_errors.raised import Raised

__all__ = ["Known", "finding_of"]

_LONGEST = 200


def _always(raised: Raised) -> bool:
    return True


def _nothing(raised: Raised) -> Mapping[str, str]:
    return {}


def _located(raised: Raised) -> str | None:
    return raised.module


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One mechanism. The first that fits is the explanation.

    Texts have `{names}` to fill in: `{where}`, the module or "the model"; `{at}`, " at file:line" if that is known;
    the groups of the pattern, and what `facts` adds.

    Attributes:
        code: The finding's.
        pattern: Regular expression that is searched for in the error's text.
        message: What happened and why.
        remedy: What helps.
        when: Whether the error came about where the mechanism is; tells apart what has the same text.
        facts: More to fill in.
        module: The module to name.
    """

    code: str
    pattern: str
    message: str
    remedy: str
    when: Callable[[Raised], bool] = _always
    facts: Callable[[Raised], Mapping[str, str]] = _nothing
    module: Callable[[Raised], str | None] = _located


def finding_of(known: Known, raised: Raised) -> Finding | None:
    """Return what an error means if it is of this kind, else None."""
    match = re.search(known.pattern, raised.text)
    if match is None or not known.when(raised):
        return None
    module = known.module(raised)
    filled = {"where": module or "the model", "at": f" at {raised.line}" if raised.line else "",
              **{name: text or "" for name, text in match.groupdict().items()}, **known.facts(raised)}
    lines = [line.strip() for line in raised.text.splitlines() if line.strip()]
    evidence = {"stage": raised.stage, "error": lines[0][:_LONGEST] if lines else "",
                **({"line": raised.line} if raised.line else {})}
    return Finding(code=known.code, severity="error", module=module, message=known.message.format(**filled),
                   remedy=known.remedy.format(**filled), evidence=evidence)
