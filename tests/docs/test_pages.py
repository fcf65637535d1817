"""What the README and the documentation show is true: blocks run, what they name exists, links lead somewhere."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.blocks import REPOSITORY, Block, Ran, all_pages, apply_diff, blocks_of, cut, run_page
from docs.check_install import problem
from docs.generate import PAGES, REFERENCE
from pytest_qat.plugin.options import OPTIONS
from pytest_qat.properties.known_issues import KNOWN
from pytest_qat.record.schema import CHECKS

READERS_PAGES = all_pages()
RUNNABLE = ("bash", "python", "diff")
DATA = ("yaml", "ini", "text", "mermaid")
BLOCKS = [pytest.param(block, id=block.place) for page in READERS_PAGES for block in blocks_of(page)]


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


# -- every block is run, or says why not ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in READERS_PAGES if any(
    block.language in RUNNABLE for block in blocks_of(page))], ids=name_of)
def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    for ran in run_page(page, tmp_path, "--qat-max-time=5"):  # a quarter of the default, since no speed is asserted
        as_said = ran.status == ran.expected_status or (ran.expected_status == 0 and ran.only_too_slow)
        assert as_said, f"{ran.block.place}\n{ran.text}"


@pytest.mark.parametrize(("output", "too_slow"), [
    ("FAILED qat-model:net[fx-x86]::speedup - net speedup FAILED", True),
    ("FAILED test_ships.py::test_it - CheckFailed: int8 is 0.97x as fast as float, 95% interval", True),
    ("FAILED qat-model:net[fx-x86]::speedup - x\nFAILED qat-model:net[fx-x86]::size - y", False),
    ("nothing failed", False),
])
def test_a_run_that_failed_for_its_speed_alone_is_told_apart(output: str, too_slow: bool) -> None:
    block = Block(page=Path("page.md"), line=1, language="bash", text="pytest", comments={})
    assert Ran(block=block, status=1, output=output).only_too_slow is too_slow
    assert not Ran(block=block, status=2, output=output).only_too_slow


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_code_that_runs_or_says_what_it_is(block: Block) -> None:
    assert block.language in (*RUNNABLE, *DATA), "a block without a known language is neither run nor checked"
    if block.language == "text":
        assert {"output", "form"} & set(block.comments), "a text is the output of a command, or says what form it is"
    if "not run" in block.comments or "form" in block.comments:
        assert block.comments.get("not run") or block.comments.get("form"), "the reason is missing"


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.values[0].language in RUNNABLE])
def test_a_block_that_is_not_run_at_least_parses(block: Block) -> None:
    if block.language == "python":
        assert compile(block.text, block.place, "exec")
    elif block.language == "bash":
        assert subprocess.run(["bash", "-n", "-c", block.text], check=False, timeout=20).returncode == 0
    else:
        assert block.text.startswith("--- a/")


@pytest.mark.parametrize("block", [each for each in BLOCKS if "pip install" in each.values[0].text])
def test_an_installation_is_marked_and_names_extras_that_exist(block: Block) -> None:
    assert block.language == "yaml" or {"checked", "tests", "not run"} & set(block.comments)
    commands = [shlex.split(command) for command in re.findall(r"pip (install [^&|\n]+)", block.text)]
    assert [problem(command) for command in commands] == [None] * len(commands)


def test_an_extra_that_does_not_exist_is_refused() -> None:
    assert problem(["install", "pytest-qat[gpu]"]) is not None
    assert problem(["install", "pytest-quat"]) is not None
    assert problem(["uninstall", "pytest-qat"]) is not None


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.values[0].language == "ini"])
def test_an_ini_block_parses(block: Block) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(block.text)
    assert parser.sections()


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.values[0].language == "text"])
def test_an_output_is_there_and_names_no_place_on_the_machine_that_made_it(block: Block) -> None:
    assert block.text.strip(), f"{block.place} is empty: python -m docs.make_picture {name_of(block.page)}"
    assert not re.search(r"(?<![\w~.])/(?:home|work|tmp|root|usr)/", block.text)


# -- what the pages name exists -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", READERS_PAGES, ids=name_of)
def test_options_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"--(qat-[a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert named - {option.name for option in OPTIONS} == set()


@pytest.mark.parametrize("page", READERS_PAGES, ids=name_of)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:fixtures|tests|docs|pytest_qat)/[\w./-]*\w)/?`", text))
    assert {name for name in files if not (REPOSITORY / name).exists()} == set()
    modules = set(re.findall(r"`(?:python -m )?((?:fixtures|tests\.benchmarks|docs)\.\w+)[:`\s]", text)) - {
        "tests.benchmarks.NAME", "fixtures.seed_000", "fixtures.seed_001"}  # a form, and what the changelog says was
    assert {name for name in modules if not (REPOSITORY / f"{name.replace('.', '/')}.py").exists()} == set()


@pytest.mark.parametrize("page", READERS_PAGES, ids=name_of)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert {target for target in targets if not (page.parent / target).exists()} == set()


def test_references_of_commands_can_be_loaded() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in READERS_PAGES)
    references = sorted(set(re.findall(r"(fixtures\.\w+):(\w+)", text)))
    assert references
    program = (f"import importlib\nfor module, name in {references!r}:\n"
               "    assert callable(getattr(importlib.import_module(module), name)), (module, name)")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=REPOSITORY, timeout=120)


def test_the_bugs_that_the_readme_lists_are_expected_failures_of_the_laws() -> None:
    listed = set(re.findall(r"\[(?:pytorch|ao)#(\d+)\]", (REPOSITORY / "README.md").read_text(encoding="utf-8")))
    assert listed
    assert listed <= {issue.issue.partition("#")[2] for issue in KNOWN}


@pytest.mark.parametrize("page", ["README.md", "docs/reference/checks.md"])
def test_the_tables_of_checks_have_all_of_them_in_their_order(page: str) -> None:
    text, _, _ = (REPOSITORY / page).read_text(encoding="utf-8").partition("A stage that fails")
    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) == list(CHECKS)


def test_modules_that_the_architecture_page_walks_through_exist() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.stem for path in (REPOSITORY / "pytest_qat").iterdir() if path.stem.isidentifier()}
    drawn = {name for box in re.findall(r'\["([\w ·]+)<br/>', text) for name in box.split(" · ")}
    assert drawn == {room for room in rooms if not room.startswith("__")} - {"py"}
    named = set(re.findall(r"`([a-z_]+/?[a-z_0-9]*\.py)`", text))
    folders = [REPOSITORY / name for name in ("pytest_qat", "fixtures", "tests")]
    known = {path.as_posix() for folder in folders for path in folder.rglob("*.py")}
    assert {name for name in named if not any(path.endswith(f"/{name}") for path in known)} == set()


# -- what is made from the code -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name](), "run python -m docs.generate"


def test_the_readme_is_a_door() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
                   check=True, cwd=REPOSITORY, timeout=120)
    assert (tmp_path / "reference" / "options" / "index.html").exists()
    assert not (tmp_path / "generate.py").exists()


# -- the tools that the tests above stand on ------------------------------------------------------------------------


def test_a_page_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- file: given.py -->\n```python\nVALUE = 1\n```\n\n```python\nimport given\n"
                    "assert given.VALUE == 2\n```\n\n<!-- exit: 3 -->\n```bash\nexit 3\n```\n")
    folder = tmp_path / "project"
    folder.mkdir()
    assert [(ran.status, ran.expected_status) for ran in run_page(page, folder)] == [(0, 0), (1, 0), (3, 3)]


def test_a_diff_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one = 1\ntwo = 2\n")
    change = "--- a/a.py\n+++ b/a.py\n@@\n-{}\n+two = 3\n"
    with pytest.raises(ValueError, match="0 times"):
        apply_diff(change.format("two = 22"), tmp_path)
    apply_diff(change.format("two = 2"), tmp_path)
    assert (tmp_path / "a.py").read_text() == "one = 1\ntwo = 3\n"


def test_a_cut_takes_the_lines_between_two_patterns() -> None:
    assert cut("a\nb\nc\nd", "^b ... ^d") == "b\nc"
    assert cut("a\nb", "") == "a\nb"
    with pytest.raises(ValueError, match="no line matches 'x'"):
        cut("a", "x ...")
