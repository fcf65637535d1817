"""Run the commands of the pages again and put what they print into the pages, and a picture of it beside them.

Run from the repository root: `python -m docs.make_picture [PAGE ...]`; without pages, all that show output. The figures
are those of the machine it runs on, so it should have nothing else to do meanwhile.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from docs.blocks import REPOSITORY, WIDTH, Block, Ran, all_pages, blocks_of, cut, run_page

__all__ = ["main", "picture", "with_outputs"]

PICTURE_PAGE = REPOSITORY / "README.md"
PICTURE = REPOSITORY / "docs" / "pictures" / "run.svg"
TITLE = "pytest --qat-model=fixtures.edge_model:digits"


def main() -> None:
    """Make the outputs and the picture again.

    Raises:
        SystemExit: a command did not end as its page says.
    """
    chosen = [REPOSITORY / name for name in sys.argv[1:]] or [page for page in all_pages() if shows_output(page)]
    for page in chosen:
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for ran in run_page(page, Path(folder)):
                if ran.status != ran.expected_status:
                    sys.exit(f"{ran.block.place} ended with {ran.status}, not {ran.expected_status}:\n{ran.text}")
                runs.append(ran)
        page.write_text(with_outputs(page, runs), encoding="utf-8")
        if page == PICTURE_PAGE:
            PICTURE.write_text(picture(next(ran for ran in runs if TITLE in ran.block.text).output), encoding="utf-8")
        sys.stdout.write(f"{page.relative_to(REPOSITORY)}: {len(runs)} blocks run\n")


def shows_output(page: Path) -> bool:
    """Whether a page holds what a command printed."""
    return any("output" in block.comments for block in blocks_of(page))


def with_outputs(page: Path, runs: list[Ran]) -> str:
    """Return the text of a page with its outputs replaced by those of these runs."""
    by_line = {ran.block.line: ran for ran in runs}
    lines = page.read_text(encoding="utf-8").splitlines()
    changes: list[tuple[Block, str]] = []
    last: Ran | None = None
    for block in blocks_of(page):
        last = by_line.get(block.line, last)
        if "output" in block.comments and last is not None:
            changes.append((block, cut(last.text, block.comments["output"])))
    for block, text in reversed(changes):
        length = len(block.text.splitlines())
        lines[block.line:block.line + length] = text.splitlines()
    return "\n".join(lines) + "\n"


def picture(output: str) -> str:
    """Return an SVG of a terminal that shows the command and this output, ANSI colors and all.

    The fonts are the reader's own: rich's template would fetch one from elsewhere, which code hosts refuse.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), TITLE))
    console.print(Text.from_ansi(output))
    drawn = console.export_svg(title="", theme=MONOKAI, unique_id="run")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


if __name__ == "__main__":
    main()
