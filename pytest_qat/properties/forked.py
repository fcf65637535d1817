"""Test a law in a child process, so that a kernel that crashes or hangs fails its law but not the session.

The child writes each example before it tests it, so that the last one is known if the child dies, and it returns what
it found. If the check raises an exception in the child, it is repeated in this process, where the exception can be
reported. Laws about threads run in this process, because a forked process cannot use several threads.
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

__all__ = ["check_in_child"]

_MOST_SMALLER = 200
_SMALLER_S = 10.0


def check_in_child(check: Callable[[Law], list[Failure]], law: Law, ops: Any, *, timeout_s: float) -> list[Failure]:
    """Run a check of a law in a child process and return its failures.

    If the child hangs, that is a failure too. If it dies, that is a failure with the smallest example that kills it.

    Args:
        check: Tests the law that it is given, and returns the failures.
        law: The law.
        ops: The implementation.
        timeout_s: Most seconds that the child may take.
    """
    if law.threaded:
        return check(law)
    _warm_up()
    found, died, example = _in_child(check, law, timeout_s=timeout_s)
    if died is None:
        return check(law) if found is None else found
    if died.hung:
        forked = () if died.written.count(b"\n") > 1 else (
            "this was the first example; if it only hangs in a forked process, start no threads before the first call",)
        return [Failure(law=law.name, ops=ops.name, example=example, lines=(
            f"the implementation did not return within {timeout_s:g} s", *_example_lines(example), *forked))]
    example = _smallest(law, ops, example)
    return [Failure(law=law.name, ops=ops.name, example=example, lines=(
        f"the implementation killed the process with {died.by.name} ({died.by.meaning})", *_example_lines(example)))]


@cache
def _warm_up() -> None:
    """Let Hypothesis load its modules here, so that each child does not have to load them with its first example."""
    @hypothesis.settings(max_examples=1, database=None, phases=(hypothesis.Phase.generate,))
    @hypothesis.seed(0)
    @hypothesis.given(st.tuples(st.floats(width=32), st.sampled_from((0, 1)), st.lists(st.integers())))
    def nothing(drawn: Any) -> None:
        del drawn

    nothing()


def _example_lines(example: Any) -> tuple[str, ...]:
    return () if example is None else (f"on {example}",)


def _in_child(check: Callable[[Law], list[Failure]], law: Law, *,
              timeout_s: float) -> tuple[list[Failure] | None, ChildDeath | None, Any]:
    """Return what the check found (None if it raised), how the child died, if it did, and the last example tested."""
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
            return pickle.load(results), None, None  # noqa: S301 - this module has just written it
        except (EOFError, pickle.UnpicklingError):
            return None, None, None


def _last_example(law: Law, written: bytes) -> Any:
    """Return the last example that the child wrote; None if there is none, or if it was too long to be written."""
    try:
        return decode(law.example, json.loads(written.split(b"\n")[-2]))
    except (IndexError, ValueError):
        return None


def _smallest(law: Law, ops: Any, example: Any) -> Any:
    """Return the smallest example that still kills the child."""
    if example is None:
        return None

    def kills(smaller: Any) -> bool:
        def tried(law: Law) -> list[Failure]:
            law(ops, smaller)
            return []

        _, died, _ = _in_child(tried, law, timeout_s=_SMALLER_S)
        return died is not None and not died.hung

    left = _MOST_SMALLER
    while left > 0:
        tried = list(itertools.islice(simpler(example), left))
        left -= len(tried)
        smaller = next(filter(kills, tried), None)
        if smaller is None:
            return example
        example = smaller
    return example
