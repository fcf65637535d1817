"""The search for advice finds it however it is passed, and leaves other text alone."""

from __future__ import annotations

import pytest

from tests.remedies.sites import sites_in

FOUND = {
    "a keyword": ('raise E("bad", hint="Write it.")', ["Write it."]),
    "a template": ('raise E("bad", hint=f"Write {name}.")', ["Write {}."]),
    "branches": ('Finding(remedy="do a" if x else f"do {b}")', ["do a", "do {}"]),
    "or": ('raise E(hint=note.hint or "Do it.")', ["Do it."]),
    "parts": ('Finding(remedy="do it" + (f" at {line}" if line else "."))', ["do it"]),
    "a local name": ('def f():\n    remedy = "do it"\n    remedy = "do that"\n    Finding(remedy=remedy)',
                     ["do it", "do that"]),
    "a tuple": ('def f():\n    cause, remedy = "why", "do it"\n    Finding(remedy=remedy)', ["do it"]),
    "a constant": ('_FORMS = "as this"\nraise E(hint=_FORMS)', ["as this"]),
    "a helper": ('def h(x):\n    return "do it"\nraise E(hint=h(x))', ["do it"]),
    "a verdict": ('reason = f"{a} is short: raise --qat-max-time to {b} s."',
                  ["{} is short: raise --qat-max-time to {} s."]),
    "a name in a template": ('def f():\n    why, remedy = "why", "do it"\n    Finding(remedy=f"{remedy}{at}.")',
                             ["do it"]),
    "passed on": ("Note(hint=error.hint)", []),
    "a docstring": ('def f():\n    """Write a file."""', []),
    "a message": ('raise E("the file cannot be written")', []),
    "empty": ('Finding(remedy="")', []),
}


@pytest.mark.parametrize("kind", FOUND)
def test_advice_is_found_in_every_form(kind: str) -> None:
    code, expected = FOUND[kind]
    assert [site.text for site in sites_in(code, path="x.py")] == expected


def test_the_function_around_it_is_told() -> None:
    [site] = sites_in('class A:\n    def f(self):\n        raise E(hint="Do it.")', path="x.py")
    assert (site.path, site.function, site.line) == ("x.py", "f", 3)
