"""`--qat-ops`, `--qat-fuzz` and `--qat-replay`, as users run them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Project
from inner_runs import OPS, everything
from packaging.version import Version


@pytest.fixture
def kernels(project: Project) -> Project:
    (project.path / "kernels.py").write_text(OPS)
    return project


def saved(project: Project) -> list[Path]:
    return sorted((project.path / ".pytest_cache" / "d" / "qat-laws").glob("*.json"))


def test_each_law_is_an_item_under_the_reference(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:good", "--collect-only", "-q")
    assert "qat-ops:kernels:good::P1_round_trip" in result.outlines
    assert not any("::F1_" in line or "::C1_" in line for line in result.outlines)


def test_a_kernel_that_crashes_fails_its_laws_and_the_session_goes_on(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:crashing")
    assert sum(result.parseoutcomes().values()) == 21
    assert result.parseoutcomes()["failed"] >= 3
    result.stdout.fnmatch_lines(["*SIGSEGV*", "*pytest --qat-replay=*"])
    again = kernels.run(f"--qat-replay={saved(kernels)[0].relative_to(kernels.path)}")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["*the law still does not hold.*"])


def test_a_correct_kernel_passes_without_a_test_file(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:good")
    result.assert_outcomes(passed=21)
    result.stdout.fnmatch_lines(["qat: laws of kernels:good, seed 0"])
    assert saved(kernels) == []


def test_a_bug_in_one_lane_is_shown_small_and_saved(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:bad", "-k", "P17_layout")
    result.assert_outcomes(failed=1)
    [file] = saved(kernels)
    text = everything(result)
    assert "0.0 (0x0.0p+0) at element 37 of 38, contiguous, scale 1.0" in text
    assert "expected 0, as on its own, got 1" in text
    assert f"pytest --qat-replay=.pytest_cache/d/qat-laws/{file.name}" in text
    assert "Traceback" not in text
    assert json.loads(file.read_text())["law"] == "P17_layout"


def test_a_saved_example_still_fails_until_the_kernel_is_mended(kernels: Project) -> None:
    kernels.run("--qat-ops=kernels:bad", "-k", "P17_layout or P20_cross")
    failing = kernels.run("--qat-replay=.pytest_cache/d/qat-laws", "-v")
    failing.assert_outcomes(failed=2)
    failing.stdout.fnmatch_lines(["*P17_layout-bad-*STILL FAILING*", "saved examples: 2 still failing"])
    assert "first seen with python" in everything(failing)
    (kernels.path / "kernels.py").write_text(OPS.replace("+= 1", "+= 0"))
    mended = kernels.run(f"--qat-replay={saved(kernels)[0]}", "-v")
    mended.assert_outcomes(passed=1)
    mended.stdout.fnmatch_lines(["*P17_layout-bad-*FIXED*", "saved examples: 1 fixed"])


@pytest.mark.slow
def test_the_guide_s_kernel_keeps_the_laws(project: Project) -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/quantization-ops.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL) if "QuantOps(" in block)
    (project.path / "my_kernels.py").write_text(block)
    project.run("--qat-ops=my_kernels:ops").assert_outcomes(passed=21)


def test_several_implementations_are_told_apart(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:both", "-k", "P17_layout", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["qat-ops:kernels:both[[]good[]]::P17_layout PASSED*",
                                 "qat-ops:kernels:both[[]bad[]]::P17_layout FAILED*"])


def test_fuzzing_finds_saves_and_goes_on(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:bad", "--qat-fuzz=2", "-k", "P17_layout or P20_cross or P4_zero")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["qat: laws of kernels:bad, seed 0, fuzzing for 2 s"])
    assert {json.loads(file.read_text())["law"] for file in saved(kernels)} == {
        "P17_layout", "P20_cross_implementation", "P4_zero_exact"}


@pytest.mark.slow
def test_fuzzing_a_correct_kernel_finds_nothing(kernels: Project) -> None:
    kernels.run("--qat-ops=kernels:good", "--qat-fuzz=3").assert_outcomes(passed=21)


@pytest.mark.slow
def test_workers_share_the_laws(kernels: Project) -> None:
    alone = kernels.run("--qat-ops=kernels:bad", "-k", "P8 or P14 or P17 or P19", "-v")
    shared = kernels.subprocess("--qat-ops=kernels:bad", "-k", "P8 or P14 or P17 or P19", "-n", "2", "-v")
    both = [{word: result.parseoutcomes()[word] for word in ("failed", "passed")} for result in (alone, shared)]
    assert both[0] == both[1]
    assert {line.split("]")[0] for line in shared.outlines if line.startswith("[gw")} == {"[gw0", "[gw1"}


@pytest.mark.slow
def test_workers_share_the_time_of_fuzzing(kernels: Project) -> None:
    result = kernels.subprocess("--qat-ops=kernels:bad", "--qat-fuzz=30", "-k", "P17_layout or P20_cross", "-n", "2")
    result.assert_outcomes(failed=2)


def test_without_a_cache_the_command_is_printed(kernels: Project) -> None:
    result = kernels.run("--qat-ops=kernels:bad", "-k", "P17_layout", "-p", "no:cacheprovider")
    assert "to run it again: pytest --qat-ops=kernels:bad -k P17_layout" in everything(result)


def test_laws_stand_beside_tests_of_one_s_own(kernels: Project) -> None:
    (kernels.path / "test_mine.py").write_text("def test_mine(): pass\n")
    kernels.run("test_mine.py", "--qat-ops=kernels:good", "-k", "mine or P19").assert_outcomes(passed=2)
    kernels.run("--qat-ops=kernels:good", "-k", "mine or P19").assert_outcomes(passed=1)


@pytest.mark.skipif(Version(torch.__version__) < Version("2.14"), reason="known issues are those of newer releases")
def test_a_known_issue_of_pytorch_s_is_an_expected_failure(kernels: Project) -> None:
    result = kernels.run("--qat-ops=torch", "-k", "qint8 and (P14 or P8)", "-rx")
    result.assert_outcomes(passed=1, xfailed=1)
    assert "pytorch/pytorch#111471" in everything(result)


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (("--qat-ops=kernels:nothing",), 2, "kernels has no attribute 'nothing'"),
    (("--qat-ops=nowhere:ops",), 2, "no module is named 'nowhere'"),
    (("--qat-ops=kernels:quantize",), 2, "kernels:quantize raised TypeError"),
    (("--qat-ops=",), 4, "--qat-ops is empty"),
    (("--qat-ops=kernels:good", "--qat-fuzz=0"), 4, "--qat-fuzz is 0, expected a number of seconds above 0"),
    (("--qat-ops=kernels:good", "--qat-fuzz=nan"), 4, "--qat-fuzz is nan"),
    (("--qat-fuzz=5",), 4, "--qat-fuzz is given without --qat-ops"),
    (("--qat-replay=missing",), 2, "there are no saved examples at"),
    (("--qat-replay=kernels.py",), 1, "kernels.py is not a saved example")])
def test_bad_input_is_one_sentence(kernels: Project, arguments: tuple[str, ...], status: int, said: str) -> None:
    result = kernels.run(*arguments)
    assert result.ret == status
    assert said in everything(result)


def test_a_saved_example_of_an_implementation_that_is_gone_is_said_so(kernels: Project) -> None:
    kernels.run("--qat-ops=kernels:both", "-k", "P17_layout")
    (kernels.path / "kernels.py").write_text(OPS.replace("[good(), bad()]", "[good()]"))
    result = kernels.run("--qat-replay=.pytest_cache/d/qat-laws")
    assert "is about the implementation 'bad', but kernels:both gives only good" in everything(result)


def test_the_option_costs_nothing_where_it_is_not_given(kernels: Project) -> None:
    (kernels.path / "test_mine.py").write_text(
        "import sys\ndef test_mine():\n    assert not any('properties' in name for name in sys.modules)\n")
    kernels.subprocess("test_mine.py").assert_outcomes(passed=1)
