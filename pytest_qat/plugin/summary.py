"""What a session says of itself: the line at its head, the record's file, and the tables at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_qat.core.system import lost_here
from pytest_qat.report.json import write_json

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from pytest_qat.plugin.session import QATSession

__all__ = ["header", "print_summary", "write_record"]


def header(session: QATSession) -> list[str]:
    """Return the lines that say what the results depend on, and what this system cannot do."""
    if not session.models and not session.ops:
        return []
    lost = lost_here()
    return [f"qat: {_asked(session)}", *([f"qat: on this system, {'; '.join(lost)}"] if lost else [])]


def _asked(session: QATSession) -> str:
    options = session.options
    if not session.models:
        mode = "" if options.fuzz_s is None else f", fuzzing for {options.fuzz_s:g} s"
        return f"laws of {', '.join(session.ops)}, seed {options.seed}{mode}"
    recipes = ", ".join(options.recipes) or f"each model's own, else {', '.join(options.default_recipes)}"
    return (f"{_counted(len(session.models), 'model')}; recipes: {recipes}; {_counted(options.threads, 'thread')}; "
            f"seed {options.seed}{'; strict' if options.strict else ''}")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def write_record(session: QATSession) -> None:
    """Write the record to the file of `--qat-json`, if there is one; a later call tries again what failed."""
    if session.record_path is None:
        return
    try:
        write_json(session.store.document(), session.record_path)
    except OSError as error:  # a full disk must not end the session
        session.unwritten = error.strerror or str(error)
    else:
        session.unwritten = None


def print_summary(session: QATSession, reporter: TerminalReporter) -> None:
    """Print what became of saved examples, and one table per model and recipe."""
    if session.replayed:
        counts = " and ".join(f"{count} {outcome}" for outcome, count in sorted(session.replayed.items()))
        reporter.write_line(f"saved examples: {counts}")
    if not session.store.runs and not session.store.probes:
        return
    from pytest_qat.report.terminal import render

    writer = reporter._tw  # noqa: SLF001 - width and color have no public name
    reporter.section("quantized models")
    reporter.write(render(session.store.runs, width=writer.fullwidth, color=writer.hasmarkup,
                          rankings=session.store.rankings, probes=session.store.probes))
    if session.unwritten is not None:
        reporter.write_line(f"the record could not be written to {session.record_path}: {session.unwritten}", red=True)
    elif session.record_path is not None:
        reporter.write_line(f"record written to {session.record_path}")
