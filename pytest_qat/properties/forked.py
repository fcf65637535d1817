"""Hold an implementation to a law in a child process: a kernel that crashes or hangs fails its law, and no more.

The child tells each example before it tries it, so that the last one is known when it dies, and hands what it found
back. What Python can catch is not contained: the law is tried again in this process, where it raises as it would. Nor
are laws about threads, which a forked process cannot have.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import hypothesis
from hypothesis import strategies as st

from pytest_qat.core.forked import ChildDeath, death_of
from pytest_qat.properties.examples import decode, encode, simpler
from pytest_qat.properties.law import Law
from pytest_qat.properties.runner import Failure

__all__ = ["contained"]

_MOST_SMALLER = 200
_SMALLER_S = 10.0


def contained(check: Callable[[Law], list[Failure]], law: Law, ops: Any, *, timeout_s: float) -> list[Failure]:
    """Return what a check of a law finds; a child that dies or hangs is a failure, too, made smaller where it died.

    Args:
        check: Tries the law that it is given, and returns failures.
        law: The law.
        ops: The implementation.
        timeout_s: Most seconds.
    """
    if law.threaded:
        return check(law)
    _warm_up()
    found, died, example = _in_child(check, law, timeout_s=timeout_s)
    if died is None:
        return check(law) if found is None else found
    if died.hung:
        forked = () if died.written.count(b"\n") > 1 else (
            "it was the first example: if it hangs in a forked process alone, start no threads before the first call",)
        return [Failure(law=law.name, ops=ops.name, example=example, lines=(
            f"the implementation does not return: it was ended after {timeout_s:g} s", *_told(example), *forked))]
    example = _smallest(law, ops, example)
    return [Failure(law=law.name, ops=ops.name, example=example, lines=(
        f"the implementation ends the process with {died.by.name} ({died.by.meaning})", *_told(example)))]


@cache
def _warm_up() -> None:
    """Let Hypothesis load here what it loads with its first example, which each child would do anew."""
    @hypothesis.settings(max_examples=1, database=None, phases=(hypothesis.Phase.generate,))
    @hypothesis.seed(0)
    @hypothesis.given(st.tuples(st.floats(width=32), st.sampled_from((0, 1)), st.lists(st.integers())))
    def nothing(drawn: Any) -> None:
        del drawn

    nothing()


def _told(example: Any) -> tuple[str, ...]:
    return () if example is None else (f"on {example}",)


def _in_child(check: Callable[[Law], list[Failure]], law: Law, *,
              timeout_s: float) -> tuple[list[Failure] | None, ChildDeath | None, Any]:
    """Return what the check found (None: it raised), how the child died, and the last example that it tried."""
    with tempfile.TemporaryFile() as results:
        def work(writer: int) -> None:
            def statement(ops: Any, example: Any) -> None:
                os.write(writer, json.dumps(encode(example)).encode() + b"\n")
                law.statement(ops, example)

            pickle.dump(check(dataclasses.replace(law, statement=statement)), results)
            results.flush()

        died = death_of(work, timeout_s=timeout_s, quiet=False)
        if died is not None:
            return None, died, _last_example(law, died.written)
        results.seek(0)
        try:
            return pickle.load(results), None, None  # noqa: S301 - written by this module a moment ago
        except (EOFError, pickle.UnpicklingError):
            return None, None, None


def _last_example(law: Law, said: bytes) -> Any:
    """Return the last example that was told; None if it is too long to be told, or none was."""
    try:
        return decode(law.example, json.loads(said.split(b"\n")[-2]))
    except (IndexError, ValueError):
        return None


def _smallest(law: Law, ops: Any, example: Any) -> Any:
    """Return a smaller example that is as deadly, or the same."""
    if example is None:
        return None

    def deadly(smaller: Any) -> bool:
        def tried(law: Law) -> list[Failure]:
            law(ops, smaller)
            return []

        _, died, _ = _in_child(tried, law, timeout_s=_SMALLER_S)
        return died is not None and not died.hung

    left = _MOST_SMALLER
    while left > 0:
        tried = list(itertools.islice(simpler(example), left))
        left -= len(tried)
        smaller = next(filter(deadly, tried), None)
        if smaller is None:
            return example
        example = smaller
    return example
