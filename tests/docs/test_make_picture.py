"""Outputs and the picture are put where they belong, and nothing else of a page changes."""

from __future__ import annotations

import re
from pathlib import Path

from docs.blocks import REPOSITORY, run_page
from docs.make_picture import PICTURE, TITLE, picture, with_outputs

PAGE = """# A page

```bash
echo first; echo second; echo third
```

Some prose.

<!-- output: second ... third -->
```text
old
lines
```

<!-- form: none of a command's -->
```text
kept
```
"""


def test_an_output_replaces_the_one_before_and_leaves_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    folder = tmp_path / "project"
    folder.mkdir()
    assert with_outputs(page, list(run_page(page, folder))) == PAGE.replace("old\nlines", "second")


def test_the_picture_has_the_command_and_the_colors_and_fetches_nothing() -> None:
    drawn = picture("\x1b[32mpassed\x1b[0m and more")
    assert "passed" in drawn
    assert drawn.count("fill:") > 1
    assert not re.search(r"(?:src|href)\s*[:=]\s*\W*(?:url\W+)?https?:|@font-face|@import", drawn)


def test_the_picture_of_the_readme_is_one_of_its_first_command() -> None:
    shown = PICTURE.read_text(encoding="utf-8").replace("&#160;", " ")
    assert TITLE in shown
    assert TITLE in (REPOSITORY / "README.md").read_text(encoding="utf-8")
