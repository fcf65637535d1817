"""What is being done just now, told to whoever listens: by default nobody.

Whatever takes more than a moment opens a `step`, and steps nest. A listener, such as the plugin's display, hears of
each change. It is set for the current context, so other threads, and processes that are forked, tell nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Listener", "Step", "current_work", "known_length", "listen", "listener", "step", "tick"]


@dataclass(eq=False, slots=True, kw_only=True)
class Step:
    """A piece of work under way. It equals only itself.

    Attributes:
        name: What is done, such as `fine-tuning`; empty where the steps around it say so.
        subject: What it is done to, such as a model and a recipe; empty: that of the step around it.
        total: How much there is to do, where that is known.
        done: How much of it is done.
        unit: What is counted, such as `batches`.
        budget_s: Seconds that are meant to be used up.
        limit_s: Most seconds that it may take.
        still: Whether nothing may run beside it but itself: a timing, or the wait for one.
        detail: Something else to show.
    """

    name: str
    subject: str = ""
    total: int | None = None
    done: int = 0
    unit: str = ""
    budget_s: float | None = None
    limit_s: float | None = None
    still: bool = False
    detail: str = ""

    def advance(self, by: int = 1, *, detail: str | None = None) -> None:
        """Tell that so much more is done, and what else there is to show."""
        self.done += by
        self.detail = self.detail if detail is None else detail
        tick()


Listener = Callable[[tuple[Step, ...]], None]
"""Told of the open steps, the outermost first, at each change and whenever one of them is known to go on."""


def _nobody(steps: tuple[Step, ...]) -> None:
    del steps


_LISTENER: ContextVar[Listener] = ContextVar("listener", default=_nobody)
_OPEN: ContextVar[tuple[Step, ...]] = ContextVar("open steps", default=())


@contextlib.contextmanager
def step(name: str, *, subject: str = "", total: int | None = None, unit: str = "", budget_s: float | None = None,
         limit_s: float | None = None, still: bool = False) -> Iterator[Step]:
    """Do what is inside as a step; the arguments are a step's attributes."""
    before = _OPEN.get()
    opened = Step(name=name, subject=subject, total=total, unit=unit, budget_s=budget_s, limit_s=limit_s, still=still)
    try:
        _OPEN.set((*before, opened))
        tick()
        yield opened
    finally:
        _OPEN.set(before)
        tick()


def tick() -> None:
    """Tell the listener that work goes on; this costs a microsecond where nothing is due to be shown."""
    _LISTENER.get()(_OPEN.get())


def listener() -> Listener:
    """Return who listens in this context."""
    return _LISTENER.get()


def listen(to: Listener | None) -> None:
    """Let another listener hear of the steps of this context from now on; None: nobody."""
    _LISTENER.set(to or _nobody)


def current_work() -> str:
    """Return what is under way, such as `Net [fx-x86] speed`; empty if nothing is."""
    steps = _OPEN.get()
    subject = next((each.subject for each in reversed(steps) if each.subject), "")
    name = next((each.name for each in steps if each.subject == subject and each.name), "") if subject else ""
    return f"{subject} {name}".strip()


def known_length(data: object) -> int | None:
    """Return the length of data, or None where it is not known: a DataLoader raises if its data set has none."""
    if not isinstance(data, Sized):
        return None
    try:
        return len(data)
    except Exception:  # whatever a user's data set raises, it can still be read
        return None
