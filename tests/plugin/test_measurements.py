"""What is measured beside the verdicts reaches the record and the table, and names its causes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

BROKEN = '''
import copy
import torch.ao.quantization as tq
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

class AlwaysOne(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + torch.tensor([0.0, 1000.0, 0.0, 0.0])

def broken():
    made = case()
    prepared = prepare_fx(made.model, tq.get_default_qconfig_mapping("x86"), made.example_inputs)
    for images, _ in batches():
        prepared(images)
    return case(prepared=prepared, converted=AlwaysOne(convert_fx(copy.deepcopy(prepared))))
'''


def measured(project: Project, model: str, *arguments: str) -> tuple[dict[str, Any], str, pytest.RunResult]:
    result = project.run(f"--qat-model=models:{model}", "--qat-json=qat.json", "--qat-memory=off", *arguments)
    text = result.stdout.str()
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text
    (run,) = json.loads((project.path / "qat.json").read_text())["runs"]
    return run, text, result


def row(text: str, label: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"{label.rstrip()}  ")]  # a note has no columns
    return re.split(r" {2,}", line.strip())


def finding(run: dict[str, Any], code: str) -> dict[str, Any]:
    [found] = [found for found in run["findings"] if found["code"] == code]
    return dict(found)


def children() -> set[str]:
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


def test_a_healthy_model_is_measured_at_every_batch_size_and_in_memory(project: Project) -> None:
    run, text, result = measured(project, "good", "--qat-batches=4,256", "--qat-memory=on",
                                 "-k", "size or speedup")
    result.assert_outcomes(passed=2, deselected=6)
    metrics = run["metrics"]

    for side in ("fp32", "int8", "fp32_eager"):
        found = metrics["latency_percentiles_s"][side]
        assert 0 < found["p50"] <= found["p90"] <= found["p99"]
        assert found["p50"] == metrics["latency_s"][side]
    assert row(text, "  p99")[0] == "p99"

    assert [entry["batch"] for entry in metrics["batches"]] == [4, run["batch"], 256]
    assert run["batch"] == 16
    for entry in metrics["batches"]:
        assert entry["problem"] is None
        assert 0 <= entry["overhead"] <= 1
        assert entry["speedup"]["ci"][0] is not None
        assert row(text, f"  batch {entry['batch']}")[-2] == f"{entry['speedup']['estimate']:.2f}x"
    assert metrics["batches"][1]["speedup"] == {
        key: metrics["speedup"][key] for key in ("estimate", "ci", "pairs", "confidence", "elapsed_s")}
    assert metrics["batches"][0]["latency_s"]["int8"] < metrics["batches"][2]["latency_s"]["int8"]

    noise = metrics["speedup"]["noise"]
    assert noise["ci"][0] <= noise["estimate"]
    assert metrics["speedup"]["noise_floor"] == (
        max(noise["ci"][1] - 1, 1 - noise["ci"][0]) if noise["ci"][1] else None), "None if too few pairs fitted in"

    peak = metrics["peak_memory_bytes"]
    assert metrics["memory_note"] is None
    assert min(peak["fp32"], peak["int8"]) >= peak["idle"] > 10_000_000
    assert row(text, "peak memory")[1] == f"{peak['fp32'] / 1e6:.2f} MB"

    for side in ("fp32", "int8"):
        census = metrics["size_census"][side]
        assert sum(census["by_dtype"].values()) + census["container"] == metrics["size_bytes"][side]
        assert {tensor["name"].split(".")[0] for tensor in census["tensors"]} >= {"conv", "fc"}
    assert "qint8" in metrics["size_census"]["int8"]["by_dtype"]


@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="reads the list of processes from /proc")
def test_processes_for_memory_that_were_not_needed_end_with_the_session(project: Project) -> None:
    before = children()
    run, text, result = measured(project, "good", "--qat-memory=on", "-k", "convert")
    result.assert_outcomes(passed=1, deselected=7)
    assert run["metrics"]["peak_memory_bytes"] is None
    assert "peak memory" not in text
    assert children() == before


def test_a_model_for_one_batch_size_says_so_and_still_gets_its_verdicts(project: Project) -> None:
    project.add('''
        class Sixteen(Net):
            def forward(self, x):
                return super().forward(x).reshape(16, 4)

        def sixteen():
            return case(model=Sixteen().eval(), train_data=None, loss_fn=None, eval_data=None)
    ''')
    run, text, result = measured(project, "sixteen", "--qat-batches", "-k", "size or speedup")
    result.assert_outcomes(passed=2, deselected=6)
    metrics = run["metrics"]
    assert [entry["batch"] for entry in metrics["batches"]] == [1, 8, 16, 32]
    for entry in metrics["batches"]:
        if entry["batch"] == 16:
            assert entry["speedup"]["estimate"] == metrics["speedup"]["estimate"]
            assert entry["problem"] is entry["overhead"] is None
        else:
            assert entry["problem"].startswith("RuntimeError: shape '[16, 4]' is invalid for input of size")
            assert entry["speedup"] is entry["latency_s"] is entry["overhead"] is None
            assert row(text, f"batch {entry['batch']} ")[1].startswith("RuntimeError: shape")
    assert {"overhead-bound", "verdict-depends-on-batch"}.isdisjoint(found["code"] for found in run["findings"])

    assert metrics["peak_memory_bytes"] is None
    assert metrics["memory_note"] == "not measured: give --qat-memory=on"
    assert row(text, "peak memory") == ["peak memory", "not measured: give --qat-memory=on"]


def test_a_speedup_that_the_batch_size_decides_is_named(project: Project) -> None:
    # Float takes 0.1 ms a sample, int8 0.8 ms whatever the batch: slower at 1, faster at 16.
    project.add('''
        import time

        class Waits(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 4)

            def forward(self, x):
                time.sleep(1e-4 * len(x) if isinstance(self.fc, nn.Linear) else 8e-4)
                return self.fc(x)

        def waits():
            return QATCase(model=Waits().eval(), example_inputs=(torch.randn(16, 8),), recipes=("eager-x86",))
    ''')
    run, text, result = measured(project, "waits", "--qat-batches=1", "--qat-max-time=30", "-k", "speedup")
    result.assert_outcomes(passed=1, deselected=7)
    depends = finding(run, "verdict-depends-on-batch")
    assert depends["severity"] == "warning"
    assert re.search(r"batch 16 .*1\.\d\dx.* 0\.\d\dx at batch 1\.", depends["message"])
    assert finding(run, "overhead-bound")["evidence"].keys() == {"1", "16"}
    assert depends["message"] in " ".join(text.split())
    assert [entry["overhead"] > 0.5 for entry in run["metrics"]["batches"]] == [True, True]


def test_samples_that_changed_are_listed_and_a_loss_in_conversion_is_told_from_one_in_training(
        project: Project) -> None:
    project.add(BROKEN)
    run, text, result = measured(project, "broken", "-k", "accuracy")
    result.assert_outcomes(failed=1, deselected=7)
    accuracy = run["metrics"]["accuracy"]
    assert accuracy["fp32"] == accuracy["fine_tuned"] == 1.0
    assert (accuracy["int8"], accuracy["drop"], accuracy["relative_drop"]) == (0.25, 0.75, 0.75)
    assert accuracy["ptq"] is accuracy["ptq_p_value"] is None
    assert accuracy["is_fraction"] is True
    assert 0 < accuracy["provable_drop"] < 0.25
    assert accuracy["flipped"] == 48
    assert accuracy["flips"] == [{"index": index, "target": index % 4, "before": index % 4, "after": 1}
                                 for index in range(64) if index % 4 != 1]
    lost = finding(run, "lost-in-conversion")
    assert re.search(r"100\.00%.* 25\.00%", lost["message"])
    [named, dropped] = run["checks"]["accuracy"]["reasons"]
    assert re.search(r"class 1 .*64 samples", named)
    assert "48 changed" in dropped
    assert named in " ".join(text.split())


def test_training_that_ruins_the_model_is_told_from_quantization(project: Project) -> None:
    project.add('''
        def ruined():
            def train(model):
                for parameter in model.parameters():
                    parameter.data.zero_()
            return case(train=train)
    ''')
    run, text, result = measured(project, "ruined", "-k", "accuracy")
    result.assert_outcomes(failed=1, deselected=7)
    accuracy = run["metrics"]["accuracy"]
    assert accuracy["ptq"] > 0.9
    assert accuracy["int8"] == accuracy["fine_tuned"] == 0.25
    assert accuracy["ptq_p_value"] < 0.001
    below = finding(run, "qat-below-ptq")
    assert f"25.00% after it, {accuracy['ptq']:.2%} without" in below["message"]
    assert [found["code"] for found in run["findings"]] == ["qat-below-ptq"]
    assert f"warning {below['message']}" in " ".join(text.split())


def test_a_metric_of_the_users_own_is_scored_by_sample_and_held_to_min_accuracy(project: Project) -> None:
    project.add('''
        def lenient():
            def metric(output, target):
                assert output.shape == (16, 4) and target.shape == (16,)
                return 0.8 * (output.argmax(1) == target).double()
            return case(metric=metric)
    ''')
    run, text, result = measured(project, "lenient", "-k", "accuracy", "--qat-min-accuracy=90%")
    result.assert_outcomes(failed=1, deselected=7)
    assert run["metrics"]["accuracy"]["fp32"] == pytest.approx(0.8)
    assert row(text, "accuracy ")[1] == "80.00%"
    [reason] = run["checks"]["accuracy"]["reasons"]
    assert re.search(r"float model itself .*80\.00%.*min_accuracy 90\.00%", reason)
    assert reason in " ".join(text.split())


def test_a_metric_for_which_lower_is_better_works_and_is_not_shown_as_percent(project: Project) -> None:
    project.add('''
        def loss(output, target):
            return 100 * nn.functional.cross_entropy(output, target, reduction="none")

        def ruined():
            def train(model):
                for parameter in model.parameters():
                    parameter.data.zero_()
            return case(metric=loss, higher_is_better=False, train=train, eval_data=batches(20, seed=1))
    ''')
    run, text, result = measured(project, "ruined", "-k", "accuracy")
    result.assert_outcomes(failed=1, deselected=7)
    accuracy = run["metrics"]["accuracy"]
    assert accuracy["int8"] == pytest.approx(138.63, abs=0.01)
    assert accuracy["drop"] == pytest.approx(accuracy["int8"] - accuracy["fp32"])
    assert accuracy["drop_ci"][0] <= accuracy["drop"] <= accuracy["drop_ci"][1]
    assert accuracy["is_fraction"] is False
    assert accuracy["flips"][0].keys() == {"index", "target", "before", "after"}
    assert accuracy["flips"][0]["after"] == pytest.approx(138.63, abs=0.01)
    cells = row(text, "accuracy ")
    assert cells[-1] == "failed"
    assert cells[3:6] == ["138.6", f"{-accuracy['drop'] / accuracy['fp32']:+.2%}", ">= -1.00%"]
    assert "138.6 after it" in finding(run, "qat-below-ptq")["message"]
    assert not re.search(r"138\.\d+%", text)


PREPARED = """
def trained_by_the_user():
    import copy
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx
    made = case()
    prepared = prepare_qat_fx(copy.deepcopy(made.model), get_default_qat_qconfig_mapping("x86"), made.example_inputs)
    for images, _ in batches():
        prepared(images)
    return case(prepared=prepared)
"""


def test_a_prepared_model_is_converted_as_it_is(project: Project) -> None:
    project.add(PREPARED)
    result = project.run("--qat-model=models:trained_by_the_user", "-k", "convert or accuracy")
    result.assert_outcomes(passed=2, deselected=6)
    result.stdout.fnmatch_lines(["*its own prepared model*"])
    assert "fine-tuned for" not in result.stdout.str()
