"""The record as a file: the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_qat.errors import InvalidOption
from pytest_qat.report.json import check_writable, write_json

OLD = '{"runs": ["old"]}\n'


def full_disk(*args: Any, **kwargs: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*args: Any, **kwargs: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "qat.json"
    path.write_text(OLD)
    return path


def test_the_file_holds_the_document_and_ends_with_a_newline(tmp_path: Path) -> None:
    document = {"runs": [{"model": "größer"}], "count": 1}
    write_json(document, tmp_path / "qat.json")
    text = (tmp_path / "qat.json").read_text(encoding="utf-8")
    assert json.loads(text) == document
    assert text.endswith("}\n")


def test_the_file_is_replaced_and_nothing_else_is_left(path: Path) -> None:
    write_json({"runs": []}, path)
    assert json.loads(path.read_text()) == {"runs": []}
    assert list(path.parent.iterdir()) == [path]


def test_a_path_without_a_folder_is_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json({}, Path("qat.json"))
    assert (tmp_path / "qat.json").exists()


def test_the_file_may_be_read_by_those_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json({}, tmp_path / "qat.json")
        assert os.umask(0o027) == 0o027, "writing leaves the umask alone"
    finally:
        os.umask(before)
    assert (tmp_path / "qat.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_a_document_that_is_no_json_leaves_the_old_file(path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json({"runs": value}, path)
    assert path.read_text() == OLD
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["replace", "chmod"])
@pytest.mark.parametrize(("trouble", "error"), [(full_disk, OSError), (interrupt, KeyboardInterrupt)])
def test_a_write_that_breaks_off_leaves_the_old_file_and_no_other(
        path: Path, monkeypatch: pytest.MonkeyPatch, step: str, trouble: Any, error: type[BaseException]) -> None:
    monkeypatch.setattr(Path, step, trouble)
    with pytest.raises(error):
        write_json({"runs": []}, path)
    assert path.read_text() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def fdopen(*args: Any, **kwargs: Any) -> Any:
        file = real(*args, **kwargs)
        file.write = full_disk
        return file

    monkeypatch.setattr(os, "fdopen", fdopen)
    with pytest.raises(OSError, match="No space left"):
        write_json({"runs": []}, path)
    assert path.read_text() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_path_that_can_be_written_is_accepted_and_not_touched(tmp_path: Path, path: Path) -> None:
    check_writable(tmp_path / "new.json", name="--qat-json")
    check_writable(path, name="--qat-json")
    assert path.read_text() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"^--qat-json is .*, which is a folder") as caught:
        check_writable(tmp_path, name="--qat-json")
    assert "/qat.json" in caught.value.hint


@pytest.mark.parametrize("place", ["missing/qat.json", "missing/deeper/qat.json", "qat.json/below.json"])
def test_a_folder_that_does_not_exist_is_refused_with_a_mend(path: Path, place: str) -> None:
    with pytest.raises(InvalidOption, match="there is no folder") as caught:
        check_writable(path.parent / place, name="--qat-json")
    assert "mkdir -p" in caught.value.hint


def test_a_folder_that_cannot_be_written_to_is_refused_with_the_reason(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    with pytest.raises(InvalidOption, match=r"cannot be written to \(No space left on device\)"):
        check_writable(tmp_path / "qat.json", name="--qat-json")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(InvalidOption, match="cannot be written to"):
        check_writable(folder / "qat.json", name="--qat-json")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    link = tmp_path / "latest.json"
    link.symlink_to(tmp_path / "runs" / "today.json")
    check_writable(link, name="--qat-json")
    write_json({"runs": []}, link)
    assert link.is_symlink()
    assert json.loads((tmp_path / "runs" / "today.json").read_text()) == {"runs": []}


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe, name="--qat-json")
        write_json({"runs": []}, pipe)
        assert json.loads(os.read(reader, 1000)) == {"runs": []}
    finally:
        os.close(reader)
    assert pipe.is_fifo()
