"""`Law`: a named statement about implementations, the examples that it is tested on, and how it reports a failure."""

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
        what: What was observed, one sentence.
        expected: What the law requires.
        actual: What the implementation gave instead.
    """

    def __init__(self, what: str, *, expected: object = None, actual: object = None) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.actual = actual

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentence, and a second line with the expected and the actual value if there are any."""
        compared = () if self.expected is None else (f"expected {self.expected}, got {self.actual}",)
        return (self.what, *compared)


class Raised(LawBroken):
    """A function of the implementation raised an exception, which some laws allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A statement that correct implementations satisfy.

    Attributes:
        name: Name of the law, such as `P1_round_trip`.
        statement: Function of `(ops, example)` that raises `LawBroken` if the law does not hold.
        kind: The type of ops that the law applies to, such as `QuantOps`.
        example: The type of its examples; saved examples are read back as this type.
        examples: Returns the strategy of examples for given ops.
        sweep: Returns the examples for given ops that every run tests, in addition to those that Hypothesis draws.
        needs: Fields of ops that must not be None.
        when: Whether the law applies to given ops.
        share: Returns the fraction of the usual number of examples that Hypothesis draws; slow laws get fewer.
        threaded: Whether the law needs several threads, which a forked process cannot use.
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
        """Test the law on one example.

        Raises:
            LawBroken: the law does not hold.
        """
        self.statement(ops, example)

    def applies(self, ops: Any) -> bool:
        """Whether the law applies to these ops."""
        return isinstance(ops, self.kind) and all(getattr(ops, need) is not None for need in self.needs) and (
            self.when(ops))

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring, on one line."""
        return (inspect.getdoc(self.statement) or self.name).split("\n\n", maxsplit=1)[0].replace("\n", " ")


def law(*, kind: type, example: type, examples: Callable[[Any], SearchStrategy[Any]],
        sweep: Callable[[Any], Iterable[Any]] = lambda _: (), needs: tuple[str, ...] = (),
        when: Callable[[Any], bool] = lambda _: True,
        share: float | Callable[[Any], float] = 1.0,
        threaded: bool = False) -> Callable[[Callable[..., None]], Law]:
    """Return a decorator that turns a function of `(ops, example)` into a law; see `Law` for the arguments."""
    def make(statement: Callable[..., None]) -> Law:
        return Law(name=statement.__name__, statement=statement, kind=kind, example=example, examples=examples,
                   sweep=sweep, needs=needs, when=when, share=share if callable(share) else lambda _: share,
                   threaded=threaded)
    return make
