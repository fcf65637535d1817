"""Hold an implementation to a law: once in a bounded, repeatable way (CI), or for as long as asked (fuzz)."""

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

__all__ = ["EXAMPLES", "Failure", "check_law", "fuzz_law", "hold"]

EXAMPLES = 20
"""Examples drawn for a law in CI mode, besides its sweep."""
_FEWEST = 1
_FUZZ_EXAMPLES = 50
_MOST_FAILURES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A law that does not hold.

    Attributes:
        law: Its name.
        ops: Name of the implementation.
        lines: What was seen, and what was expected.
        example: The smallest example that was found.
    """

    law: str
    ops: str
    lines: tuple[str, ...]
    example: Any


def hold(law: Law, ops: Any, example: Any) -> Failure | None:
    """Try a law on one example."""
    with preserved_torch_state(), threads(1):
        return _tried(law, ops, example)


def check_law(law: Law, ops: Any, *, seed: int = 0, examples: int = EXAMPLES) -> Failure | None:
    """Try a law on drawn examples and on its sweep; the same seed tries the same.

    Args:
        law: One that applies to the ops.
        ops: The implementation.
        seed: Of what Hypothesis draws.
        examples: How many it draws for a law of the usual price.
    """
    with preserved_torch_state(), threads(1):  # small tensors: handing them to a thread pool costs more than the work
        return _drawn(law, ops, seed=_seed(law, seed), examples=max(_FEWEST, round(examples * law.share(ops)))) or (
            _swept(law, ops))


def fuzz_law(law: Law, ops: Any, *, seconds: float, seed: int = 0,
             clock: Callable[[], float] = time.monotonic) -> list[Failure]:
    """Try a law on new examples until the time is over, and go on after a failure.

    What CI mode sweeps is left to CI mode.

    Args:
        law: One that applies to the ops.
        ops: The implementation.
        seconds: For how long; the last example may take longer.
        seed: Of what Hypothesis draws.
        clock: Seconds that pass.
    """
    found: dict[str, Failure] = {}
    ends, number = clock() + seconds, 0
    with preserved_torch_state(), threads(1):
        while clock() < ends and len(found) < _MOST_FAILURES:
            failure = _drawn(law, ops, seed=_seed(law, seed) + number, examples=_FUZZ_EXAMPLES,
                             over=lambda: clock() >= ends)
            if failure is not None:
                found.setdefault(str(encode(failure.example)), failure)
            number += 1
    return list(found.values())


def _seed(law: Law, seed: int) -> int:
    """Return a seed that differs between laws, but not between the laws of networks, which share what they build."""
    return seed * 2**32 + (zlib.crc32(law.name.encode()) if law.name[0] != "M" else 0)


def _drawn(law: Law, ops: Any, *, seed: int, examples: int,
           over: Callable[[], bool] = lambda: False) -> Failure | None:
    seen: list[Failure | None] = []  # None: an exception that is no broken law

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=False, print_blob=False,
                         phases=(Phase.generate, Phase.shrink), suppress_health_check=(), report_multiple_bugs=False,
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
        return seen[-1]  # Hypothesis ends on the smallest example
    except Flaky:
        last = next(filter(None, reversed(seen)), None)
        if last is None:
            raise
        return Failure(law=law.name, ops=ops.name, example=last.example, lines=(
            *last.lines, "the same example gave another result when it was tried again"))
    except Unsatisfiable:
        return None
    return None


def _swept(law: Law, ops: Any) -> Failure | None:
    for example in law.sweep(ops):
        failure = _tried(law, ops, example)
        if failure is not None:
            return _smallest(law, ops, failure)
    return None


def _tried(law: Law, ops: Any, example: Any) -> Failure | None:
    try:
        law(ops, example)
    except LawBroken as broken:
        return Failure(law=law.name, ops=ops.name, lines=broken.lines, example=example)
    return None


def _smallest(law: Law, ops: Any, failure: Failure) -> Failure:
    """Shrink a failing example of a sweep: drop values while the law stays broken."""
    while True:
        smaller = next(filter(None, (_tried(law, ops, example) for example in simpler(failure.example))), None)
        if smaller is None:
            return failure
        failure = smaller
