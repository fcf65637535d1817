"""Peak memory, in real processes; each pair of them costs seconds, so most tests end theirs before torch is loaded."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.errors import MeasurementError
from pytest_qat.finetune import calibrate
from pytest_qat.measure import memory
from pytest_qat.measure.memory import MemoryProbes
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes.torch import deploy_form
from pytest_qat.workflows import fx
from tests.small_net import Net

MB = 10**6
IMAGES = torch.randn(2, 3, 16, 16)


class Hungry(Net):
    """Fills 200 MB in each call and lets go of them again."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(50_000_000).mean()


def int8_of(model: nn.Module) -> nn.Module:
    recipe = get_recipe("fx-x86")
    with preserved_torch_state(), quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model, example_inputs=(IMAGES,)), recipe)
        calibrate(prepared.module, [(IMAGES,)])
        return fx.convert(prepared, recipe).module


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Programs of a float model, its int8 form, and one that takes 200 MB more."""
    folder = tmp_path_factory.mktemp("programs")
    made = {}
    for name, model in (("fp32", Net().eval()), ("int8", int8_of(Net().eval())), ("hungry", Hungry().eval())):
        made[name] = folder / f"{name}.program"
        deploy_form(model, folder / f"{name}.pt", engine="x86", channels_last=False).save_program(
            (IMAGES,), made[name])
    return made


@pytest.fixture
def probes() -> Iterator[MemoryProbes]:
    """Two processes, and the certainty that neither is left afterwards."""
    made = MemoryProbes("torch", threads=1)
    yield made
    made.close()
    assert all(is_gone(process) for process in made._processes.values())


def is_gone(process: subprocess.Popen[str]) -> bool:
    """Whether a process has ended and has been waited for."""
    return process.poll() is not None and not Path(f"/proc/{process.pid}").exists()


@pytest.fixture(scope="module")
def measured(programs: dict[str, Path]) -> memory.Memory:
    """What a float model and an int8 model take."""
    made = MemoryProbes("torch", threads=1)
    found = made.measure(programs)
    assert all(is_gone(process) for process in made._processes.values()), "measuring ends the processes"
    made.close()
    return found


def test_a_float_and_an_int8_model_take_more_than_a_process_that_has_imported_torch(measured: memory.Memory) -> None:
    assert set(measured.peak_bytes) == {"fp32", "int8"}
    assert 50 * MB < measured.idle_bytes < 4000 * MB
    for peak in measured.peak_bytes.values():
        assert 0 < peak - measured.idle_bytes < 150 * MB


@pytest.mark.slow
def test_a_model_that_fills_200_mb_shows_them_in_its_peak(programs: dict[str, Path], probes: MemoryProbes,
                                                          measured: memory.Memory) -> None:
    found = probes.measure({"fp32": programs["hungry"], "int8": programs["int8"]})
    assert 180 * MB < found.peak_bytes["fp32"] - measured.peak_bytes["fp32"] < 260 * MB
    assert abs(found.peak_bytes["int8"] - measured.peak_bytes["int8"]) < 50 * MB


def test_a_garbled_file_is_an_error_with_the_reason(programs: dict[str, Path], tmp_path: Path,
                                                    probes: MemoryProbes) -> None:
    garbled = tmp_path / "fp32.program"
    garbled.write_bytes(b"no program" * 100)
    garbled.with_suffix(".inputs").write_bytes(programs["fp32"].with_suffix(".inputs").read_bytes())
    with pytest.raises(MeasurementError, match="fp32") as caught:
        probes.measure({"fp32": garbled, "int8": programs["int8"]})
    assert "zip" in caught.value.message
    assert "hint" not in caught.value.message
    assert "Traceback" not in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_process_that_is_killed_is_an_error_that_names_the_side(programs: dict[str, Path],
                                                                  probes: MemoryProbes) -> None:
    os.kill(probes._processes["fp32"].pid, signal.SIGKILL)
    with pytest.raises(MeasurementError) as caught:
        probes.measure(programs)
    assert "fp32" in caught.value.message
    assert "exit status -9" in caught.value.message


def test_a_program_that_takes_too_long_is_ended(programs: dict[str, Path], probes: MemoryProbes) -> None:
    began = time.monotonic()
    with pytest.raises(MeasurementError, match=r"fp32 .*0\.05 s") as caught:
        probes.measure(programs, timeout_s=0.05)
    assert time.monotonic() - began < 5
    assert all(is_gone(process) for process in probes._processes.values())
    assert "--qat-memory" in caught.value.hint


def test_processes_that_are_not_wanted_after_all_end_at_once_however_often_one_asks() -> None:
    made = MemoryProbes("torch", threads=1)
    began = time.monotonic()
    made.close()
    made.close()
    assert time.monotonic() - began < 5
    assert all(is_gone(process) for process in made._processes.values())


# -- the other side of it, in this process --------------------------------------------------------------------------


@pytest.fixture
def as_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Run what the process runs, with a path on its standard input."""
    def run(line: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        memory._main("torch")

    with preserved_torch_state(), warnings.catch_warnings():
        yield run


def test_the_process_says_when_it_is_ready_and_tells_its_figures_as_one_line_of_json(programs: dict[str, Path],
                                                           as_the_process: Callable[[str], None],
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    as_the_process(f"{programs['int8']}\n")
    ready, line = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert ready == "ready"
    assert set(figures) == {"idle", "peak"}
    assert 0 < figures["idle"] <= figures["peak"]


def test_a_process_that_is_told_nothing_tells_no_figures(as_the_process: Callable[[str], None],
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    as_the_process("")
    assert capsys.readouterr().out == "ready\n"


def test_processes_that_are_ready_measure_as_ever(programs: dict[str, Path], probes: MemoryProbes) -> None:
    probes.wait_until_ready()
    found = probes.measure(programs)
    assert 0 < found.idle_bytes <= min(found.peak_bytes.values())


def test_a_process_that_never_gets_ready_is_ended_and_told(programs: dict[str, Path], probes: MemoryProbes) -> None:
    probes.wait_until_ready(timeout_s=0.01)
    with pytest.raises(MeasurementError, match="fp32"):
        probes.measure(programs)


def test_a_system_that_reports_no_peaks_is_told_so(programs: dict[str, Path], probes: MemoryProbes,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_memory_bytes", lambda: None)
    with pytest.raises(MeasurementError, match="does not report a process's peak memory"):
        probes.measure(programs)
