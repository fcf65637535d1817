"""Test an implementation against a law: on a fixed, repeatable number of examples (CI), or for a given time (fuzz)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import Phase
from hypothesis.errors import Flaky, Unsatisfiable

from pytest_qat.core.torch_state import preserved_torch_state, threads
from pytest_qat.properties.examples import encode, simpler
from pytest_qat.properties.law import Law, LawBroken

__all__ = ["EXAMPLES", "Failure", "check_example", "check_law", "fuzz_law"]

EXAMPLES = 20
"""Number of examples drawn for a law in CI mode, in addition to its sweep."""
_FEWEST = 1
_FUZZ_EXAMPLES = 50
_MOST_FAILURES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A law that does not hold.

    Attributes:
        law: Name of the law.
        ops: Name of the implementation.
        lines: What was observed, and what was expected.
        example: The smallest example that was found.
    """

    law: str
    ops: str
    lines: tuple[str, ...]
    example: Any


def check_example(law: Law, ops: Any, example: Any) -> Failure | None:
    """Test a law on one example; return None if it holds."""
    with preserved_torch_state(), threads(1):
        return _check_one(law, ops, example)


def check_law(law: Law, ops: Any, *, seed: int = 0, examples: int = EXAMPLES,
              shrink: bool = True) -> Failure | None:
    """Test a law on drawn examples and on its sweep; the same seed draws the same examples.

    Args:
        law: A law that applies to the ops.
        ops: The implementation.
        seed: Seed of Hypothesis.
        examples: Number of examples to draw; a law with a `share` gets that part of it.
        shrink: Whether to look for the smallest example that fails, which takes most of the time of a failure.
    """
    with preserved_torch_state(), threads(1):  # for small tensors, a thread pool costs more than the work
        count = max(_FEWEST, round(examples * law.share(ops)))
        return _check_drawn(law, ops, seed=_seed(law, seed), examples=count, shrink=shrink) or _check_sweep(
            law, ops, shrink=shrink)


def fuzz_law(law: Law, ops: Any, *, seconds: float, seed: int = 0,
             clock: Callable[[], float] = time.monotonic) -> list[Failure]:
    """Test a law on new examples until the time is over, and continue after a failure.

    The law's sweep is not run; CI mode does that.

    Args:
        law: A law that applies to the ops.
        ops: The implementation.
        seconds: How long to draw examples; the last example may take longer.
        seed: Seed of Hypothesis.
        clock: Returns seconds.
    """
    found: dict[str, Failure] = {}
    ends, number = clock() + seconds, 0
    with preserved_torch_state(), threads(1):
        while clock() < ends and len(found) < _MOST_FAILURES:
            failure = _check_drawn(law, ops, seed=_seed(law, seed) + number, examples=_FUZZ_EXAMPLES,
                             over=lambda: clock() >= ends)
            if failure is not None:
                found.setdefault(str(encode(failure.example)), failure)
            number += 1
    return list(found.values())


def _seed(law: Law, seed: int) -> int:
    """Return a seed that differs between laws; only the laws of networks have the same one, to share built networks."""
    return seed * 2**32 + (zlib.crc32(law.name.encode()) if law.name[0] != "M" else 0)


def _check_drawn(law: Law, ops: Any, *, seed: int, examples: int, shrink: bool = True,
                 over: Callable[[], bool] = lambda: False) -> Failure | None:
    seen: list[Failure | None] = []  # None stands for an exception other than a broken law

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=False, print_blob=False,
                         phases=(Phase.generate, *((Phase.shrink,) if shrink else ())),
                         suppress_health_check=(), report_multiple_bugs=False,
                         verbosity=hypothesis.Verbosity.quiet, backend="hypothesis")
    @hypothesis.seed(seed)
    @hypothesis.given(law.examples(ops))
    def holds(example: Any) -> None:
        if over() and not seen:
            return
        try:
            law(ops, example)
        except LawBroken as broken:
            seen.append(Failure(law=law.name, ops=ops.name, lines=broken.lines, example=example))
            raise
        except Exception:
            seen.append(None)
            raise

    try:
        holds()
    except LawBroken:
        return seen[-1]  # Hypothesis runs the smallest example last
    except Flaky:
        last = next(filter(None, reversed(seen)), None)
        if last is None:
            raise
        return Failure(law=law.name, ops=ops.name, example=last.example, lines=(
            *last.lines, "the same example gave a different result when it was tested again"))
    except Unsatisfiable:
        return None
    return None


def _check_sweep(law: Law, ops: Any, *, shrink: bool = True) -> Failure | None:
    for example in law.sweep(ops):
        failure = _check_one(law, ops, example)
        if failure is not None:
            return _smallest(law, ops, failure) if shrink else failure
    return None


def _check_one(law: Law, ops: Any, example: Any) -> Failure | None:
    try:
        law(ops, example)
    except LawBroken as broken:
        return Failure(law=law.name, ops=ops.name, lines=broken.lines, example=example)
    return None


def _smallest(law: Law, ops: Any, failure: Failure) -> Failure:
    """Shrink a failing example of a sweep by dropping values as long as the law stays broken."""
    while True:
        smaller = next(filter(None, (_check_one(law, ops, example) for example in simpler(failure.example))), None)
        if smaller is None:
            return failure
        failure = smaller
