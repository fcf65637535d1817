"""Saved examples: what is in the file, and what is said of files that are no such thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.mutants import MUTANTS
from pytest_qat.errors import DataError, StageError
from pytest_qat.properties.laws import get_law
from pytest_qat.properties.replay import read_saved, saved_files, write_saved
from pytest_qat.properties.runner import Failure, check_example, check_law


@pytest.fixture(scope="module")
def failure() -> Failure:
    mutant = next(mutant for mutant in MUTANTS if mutant.ops.name == "lane 37 off by one")
    found = check_law(get_law(mutant.killed_by), mutant.ops)
    assert found is not None
    return found


def test_a_failure_is_read_back_and_fails_again(failure: Failure, tmp_path: Path) -> None:
    saved = read_saved(write_saved(failure, tmp_path / "new" / "folder", reference="a:b", seed=3))
    assert (saved.reference, saved.ops, saved.law.name) == ("a:b", "lane 37 off by one", "P17_layout")
    assert saved.example == failure.example
    assert saved.lines == failure.lines
    broken = next(mutant.ops for mutant in MUTANTS if mutant.ops.name == saved.ops)
    assert check_example(saved.law, broken, saved.example) is not None


def test_the_file_holds_exact_numbers_and_versions(failure: Failure, tmp_path: Path) -> None:
    document = json.loads(write_saved(failure, tmp_path, reference="a:b", seed=3).read_text())
    assert document["schema_version"] == 1
    assert document["seed"] == 3
    assert document["example"]["qparams"]["scale"] == "0x1.0000000000000p+0"
    assert {"python", "torch", "hypothesis"} <= set(document["versions"])


def test_the_same_failure_has_one_file_and_another_one_its_own(failure: Failure, tmp_path: Path) -> None:
    first = write_saved(failure, tmp_path, reference="a:b", seed=0)
    assert write_saved(failure, tmp_path, reference="a:b", seed=0) == first
    other = write_saved(failure, tmp_path, reference="a:c", seed=0)
    assert saved_files(tmp_path) == sorted([first, other])


@pytest.mark.parametrize(("content", "said"), [
    ("", "not a saved example"), ("[]", "not a saved example"), ("{}", "not a saved example"),
    ('{"schema_version": 9}', "schema version 9"), ("\x00", "not a saved example")])
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_saved(tmp_path / "x.json")


@pytest.mark.parametrize(("key", "value", "said"), [
    ("law", "P99_nothing", "no law is named 'P99_nothing'"), ("example", {"values": []}, "AffineExample"),
    ("versions", 3, "not a saved example")])
def test_a_damaged_field_is_named(failure: Failure, tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = write_saved(failure, tmp_path, reference="a:b", seed=0)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match=said):
        read_saved(path)


def test_a_folder_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no saved examples"):
        saved_files(tmp_path)
    with pytest.raises(DataError, match="no saved examples"):
        saved_files(tmp_path / "missing")


def test_a_folder_that_cannot_be_written_is_said_so(failure: Failure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="cannot write"):
        write_saved(failure, tmp_path / "file", reference="a:b", seed=0)
