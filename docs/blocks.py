"""Find the code blocks of a markdown page and run them as a reader would, in order and in one folder.

A block is described by HTML comments directly above its fence, one a line, which a code host does not show:

`<!-- file: NAME -->`: the block is this file of the reader's project; it is written there before the next block runs.
`<!-- exit: N -->`: the command ends with this status; 0 without the comment.
`<!-- output -->`, `<!-- output: FROM ... TO -->`: the text was printed by the last command above it; with two regular
expressions, the part from the line that matches the first up to the line before one that matches the second.
`<!-- form: WHAT -->`: the text is no output but a form, such as that of a comment or of a table.
`<!-- checked: WHY -->`: `pip install` in this block is not run but held against pyproject.toml.
`<!-- not run: WHY -->`: the block is only compiled or parsed.

A block of the language `diff` changes files. CONTRIBUTING.md is run in a copy of this repository, every other page in a
copy of `docs/examples`, with this repository on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["REPOSITORY", "Block", "Ran", "all_pages", "apply_diff", "blocks_of", "cut", "run_page"]

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = REPOSITORY / "docs" / "examples"
WIDTH = 96
_COMMENT = re.compile(r"<!-- (?P<name>[a-z ]+?)(?:: (?P<value>.*))? -->")
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)$")
_MACHINE = re.compile(r"(platform|rootdir|configfile|testpaths|plugins|cachedir|hypothesis profile)\b|"
                      r"qat: .+, \d+ (s|min|h)\b")
_UNNEEDED = shutil.ignore_patterns(".*_cache", ".git", ".hypothesis", ".venv", "__pycache__", "site", "dist", "build")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
# `pip install` would change the environment that the tests run in.
_PIP = f'pip() {{ "{sys.executable}" -m docs.check_install "$@"; }}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block.

    Attributes:
        page: The file it is in.
        line: Line of its opening fence, from 1.
        language: Word behind the fence; empty without one.
        text: What is between the fences.
        comments: The comments above it, by name.
    """

    page: Path
    line: int
    language: str
    text: str
    comments: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A block that was run.

    Attributes:
        block: The block.
        status: Exit status.
        output: What it printed, with ANSI colors; what depends on the machine alone is left out.
    """

    block: Block
    status: int
    output: str

    @property
    def text(self) -> str:
        """The output without colors."""
        return _COLORS.sub("", self.output)

    @property
    def expected_status(self) -> int:
        """The status that the page announces."""
        return int(self.block.comments.get("exit", "0"))

    @property
    def only_too_slow(self) -> bool:
        """Whether a pytest run failed for its measured speed alone, which is the machine's, not the page's."""
        failed = [line for line in self.text.splitlines() if line.startswith("FAILED ")]
        return self.status == 1 and bool(failed) and all(
            "::speedup" in line or "as fast as float" in line for line in failed)


def all_pages() -> list[Path]:
    """Return every markdown page for readers: those in the root and those in docs."""
    return [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order.

    Raises:
        ValueError: a fence is not closed.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    comments: dict[str, str] = {}
    numbered = iter(enumerate(lines, start=1))
    for number, line in numbered:
        comment, fence = _COMMENT.fullmatch(line.strip()), _FENCE.fullmatch(line)
        if comment:
            comments[comment["name"]] = comment["value"] or ""
        elif fence:
            text = "\n".join(_until_fence(numbered, fence["indent"], place=f"{page}:{number}"))
            found.append(Block(page=page, line=number, language=fence["language"], text=text, comments=comments))
            comments = {}
        else:
            comments = {}
    return found


def _until_fence(numbered: Iterator[tuple[int, str]], indent: str, *, place: str) -> Iterator[str]:
    for _, line in numbered:
        if line == f"{indent}```":
            return
        yield line.removeprefix(indent)
    raise ValueError(f"{place}: the block is not closed.")


def run_page(page: Path, folder: Path, *options: str) -> Iterator[Ran]:
    """Run the blocks of a page in a folder, and yield what each did as soon as it has ended.

    Args:
        page: The markdown file.
        folder: An empty folder; it becomes the reader's project.
        options: Options of pytest that a block's own come after.

    Raises:
        subprocess.TimeoutExpired: a block takes over half an hour.
        ValueError: a diff does not fit the files.
    """
    of_developers = page.name == "CONTRIBUTING.md"
    shutil.copytree(REPOSITORY if of_developers else EXAMPLES, folder, dirs_exist_ok=True, ignore=_UNNEEDED)
    yield from (ran for block in blocks_of(page) if (ran := _run(block, folder, options)) is not None)


def _run(block: Block, folder: Path, options: tuple[str, ...]) -> Ran | None:
    """Write or run one block; None where there is nothing to run."""
    if "not run" in block.comments or "tests" in block.comments:
        return None
    name = block.comments.get("file")
    if name is not None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{block.text}\n", encoding="utf-8")
    if block.language == "diff":
        apply_diff(block.text, folder)
    if block.language == "bash":
        return _call(block, ["bash", "-euo", "pipefail", "-c", _PIP + block.text], folder, options)
    if block.language == "python":
        return _call(block, [sys.executable, *([name] if name else ["-c", block.text])], folder, options)
    return None


def _call(block: Block, command: list[str], folder: Path, options: tuple[str, ...]) -> Ran:
    # No order by chance, no line breaks by the reader's terminal, no warnings from plugins that happen to be installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(REPOSITORY))), "COLUMNS": str(WIDTH),
                   "PYTEST_ADDOPTS": " ".join(("-p no:randomly -p no:anyio --color=yes", *options)),
                   "PYTHONDONTWRITEBYTECODE": "1",
                   "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, check=False, timeout=1800)
    places = {str(folder): "~/project", str(folder.resolve()): "~/project", str(REPOSITORY): "~/pytest-qat"}
    output = result.stdout
    for path, shown in places.items():
        output = output.replace(path, shown)
    lines = [line.rstrip() for line in output.splitlines() if not _MACHINE.match(_COLORS.sub("", line))]
    return Ran(block=block, status=result.returncode, output="\n".join(lines).strip("\n"))


def apply_diff(text: str, folder: Path) -> None:
    """Change files as a diff says; hunks are found by their text, so that line numbers are not needed.

    Raises:
        ValueError: what a hunk replaces is not in the file exactly once.
    """
    for part in re.split(r"^--- ", text, flags=re.MULTILINE)[1:]:
        head, *hunks = re.split(r"^@@.*\n", f"{part}\n", flags=re.MULTILINE)
        path = folder / head.splitlines()[1].removeprefix("+++ b/")
        content = path.read_text(encoding="utf-8")
        for hunk in hunks:
            lines = [line for line in hunk.splitlines() if line]
            old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in signs) for signs in (" -", " +"))
            if content.count(old) != 1:
                raise ValueError(f"{path.name} has this {content.count(old)} times, not once:\n{old}")
            content = content.replace(old, new)
        path.write_text(content, encoding="utf-8")


def cut(text: str, bounds: str) -> str:
    """Return the lines of a text from one that matches the first bound up to before one that matches the second.

    Args:
        text: What was printed.
        bounds: `FROM ... TO`, two regular expressions, either of which may be empty; empty: all of the text.

    Raises:
        ValueError: no line matches a bound.
    """
    first, _, last = (part.strip() for part in bounds.partition("..."))
    lines = text.splitlines()
    start = _index(lines, first, 0) if first else 0
    end = _index(lines, last, start + 1) if last else len(lines)
    return "\n".join(lines[start:end]).strip("\n")


def _index(lines: list[str], pattern: str, start: int) -> int:
    for index in range(start, len(lines)):
        if re.search(pattern, lines[index]):
            return index
    raise ValueError(f"no line matches {pattern!r} in:\n" + "\n".join(lines))
