"""What a law is: a named statement, the examples it is tried on, and how it says that it is broken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

__all__ = ["Law", "LawBroken", "Raised", "law"]


class LawBroken(AssertionError):
    """A law does not hold for an example.

    Args:
        what: What was seen, one sentence.
        expected: What the law demands.
        actual: What came instead.
    """

    def __init__(self, what: str, *, expected: object = None, actual: object = None) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.actual = actual

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentence, and below it what was expected and what came."""
        compared = () if self.expected is None else (f"expected {self.expected}, got {self.actual}",)
        return (self.what, *compared)


class Raised(LawBroken):
    """A function of the implementation raised; some laws allow that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A statement about implementations.

    Attributes:
        name: Such as `P1_round_trip`.
        statement: `(ops, example)`; raises `LawBroken`.
        kind: The record of functions that it is about.
        example: The type of its examples, which a saved one is read back as.
        examples: From ops to the strategy of examples.
        sweep: From ops to examples that are tried in every run, besides those that Hypothesis draws.
        needs: Fields of ops that must be given.
        when: Whether it speaks about these ops at all.
        share: From ops to which part of the usual number of examples it is worth: some are dear.
        threaded: Whether it takes several threads, which a forked process cannot have.
    """

    name: str
    statement: Callable[[Any, Any], None]
    kind: type
    example: type
    examples: Callable[[Any], SearchStrategy[Any]]
    sweep: Callable[[Any], Iterable[Any]]
    needs: tuple[str, ...] = ()
    when: Callable[[Any], bool] = lambda _: True
    share: Callable[[Any], float] = lambda _: 1.0
    threaded: bool = False

    def __call__(self, ops: Any, example: Any) -> None:
        """State the law about one example.

        Raises:
            LawBroken: it does not hold.
        """
        self.statement(ops, example)

    def applies(self, ops: Any) -> bool:
        """Whether the law speaks about these ops."""
        return isinstance(ops, self.kind) and all(getattr(ops, need) is not None for need in self.needs) and (
            self.when(ops))

    @property
    def summary(self) -> str:
        """First sentence of its description."""
        return (inspect.getdoc(self.statement) or self.name).split("\n\n", maxsplit=1)[0].replace("\n", " ")


def law(*, kind: type, example: type, examples: Callable[[Any], SearchStrategy[Any]],
        sweep: Callable[[Any], Iterable[Any]] = lambda _: (), needs: tuple[str, ...] = (),
        when: Callable[[Any], bool] = lambda _: True,
        share: float | Callable[[Any], float] = 1.0,
        threaded: bool = False) -> Callable[[Callable[..., None]], Law]:
    """Make a law of a function `(ops, example)`."""
    def make(statement: Callable[..., None]) -> Law:
        return Law(name=statement.__name__, statement=statement, kind=kind, example=example, examples=examples,
                   sweep=sweep, needs=needs, when=when, share=share if callable(share) else lambda _: share,
                   threaded=threaded)
    return make
