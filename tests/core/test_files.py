"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_qat.core.files import save_whole, write_whole
from pytest_qat.errors import StageError
from pytest_qat.runtimes.torch import deploy_form
from tests.small_net import Net


def test_a_file_is_written_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    for content in (b"a longer one", b"short"):
        write_whole(content, tmp_path / "a.pte")
        assert (tmp_path / "a.pte").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.pte"]


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(b"old", tmp_path / "a.pte")

    def refuse(path: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StageError, match=r"cannot write a\.pte \(3 bytes\): Read-only file system"):
        write_whole(b"new", tmp_path / "a.pte")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pte"]
    assert (tmp_path / "a.pte").read_bytes() == b"old"


def test_a_value_is_saved_as_torch_saves_it(tmp_path: Path) -> None:
    save_whole({"a": torch.arange(3)}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_full_disk_ends_in_an_error_and_not_in_the_end_of_the_process(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StageError, match=r"cannot write net\.pt \([\d,]+ bytes\): No space left"):
        deploy_form(Net(), tmp_path / "net.pt", engine=None, channels_last=False)
    assert list(tmp_path.iterdir()) == []
