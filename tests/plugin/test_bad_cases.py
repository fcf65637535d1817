"""Bad cases: one clear sentence each, the right exit code, never an INTERNALERROR."""

from __future__ import annotations

import errno
import re
import time
from typing import Any

import pytest
from conftest import Project

from pytest_qat.measure.speed import Speed, measure_speed
from tests.plugin.inner_runs import everything, recorded

FAILED = pytest.ExitCode.TESTS_FAILED


BAD_CASES = '''
        import itertools

        def wrong_inputs():
            return case(example_inputs=(torch.randn(2, 5, 8, 8),))

        def nan_output():
            model = trained()
            model.conv.weight.data[:] = float("nan")
            return case(model=model)

        def double():
            return case(model=trained().double())

        def no_eval_batches():
            return case(eval_data=[])

        def no_targets():
            return case(eval_data=[images for images, _ in batches()])

        def no_train_batches():
            return case(train_data=iter(()))

        def train_raises():
            def train(model):
                raise ValueError("no data")
            return case(train=train)

        def loss_explodes():
            return case(loss_fn=lambda output, target: output.sum() * float("nan"))

        def loss_vector():
            return case(loss_fn=lambda output, target: nn.functional.cross_entropy(output, target, reduction="none"))

        def metric_nan():
            return case(metric=lambda output, target: torch.full((16,), float("nan")))

        def metric_scalar():
            return case(metric=lambda output, target: (output.argmax(1) == target).float().mean())

        def set_metric_raises():
            return case(set_metric=lambda outputs, targets: {}["auc"])

        SCORED_SETS = []

        def late(outputs, targets):
            SCORED_SETS.append(len(targets))
            return float("nan") if len(SCORED_SETS) == 3 else 0.5

        def later_set_metric():
            return case(set_metric=late)

        class Shuffled:
            counter = itertools.count(1)

            def __iter__(self):
                turn = next(self.counter)
                return iter([(images.roll(turn, 0), target.roll(turn)) for images, target in batches()])

        def shuffled():
            return case(eval_data=Shuffled())

        class InPlace(Net):
            def forward(self, x):
                return super().forward(x.sub_(0.5).div_(2.0))

        def in_place():
            return case(model=InPlace().eval())

        def nan_in_calibration():
            bad = [images.clone() for images, _ in batches(4)]
            bad[2][3, 0, 0, 0] = float("nan")
            return case(calibration_data=bad)

        class Endless:
            def __iter__(self):
                return itertools.cycle(batches())

        def endless():
            return case(train_data=Endless())
'''


@pytest.mark.parametrize(("function", "check", "expected"), [
    ("wrong_inputs", "prepare", "Net raised RuntimeError on example_inputs of shape [(2, 5, 8, 8)]"),
    ("nan_output", "prepare", "Net returns NaN or infinity in 64 of 64 output values"),
    ("double", "prepare", "Net has parameters of torch.float64, expected torch.float32"),
    ("no_eval_batches", "prepare", "eval_data is empty, expected at least one (inputs, target) batch"),
    ("no_targets", "prepare", "batch 0 of eval_data is a tensor of shape (16, 3, 8, 8), expected a pair"),
    ("no_train_batches", "prepare", "train_data is empty"),
    ("train_raises", "convert", "the case's train raised ValueError: no data (models.py:"),
    ("loss_explodes", "convert", "the loss is nan at step 1, expected a finite number"),
    ("loss_vector", "convert", "loss_fn gave a tensor of shape (16,), expected a scalar tensor"),
    ("metric_nan", "prepare", "gave NaN or infinity on batch 0"),
    ("metric_scalar", "prepare", "gave a result of shape () on a batch of 16 samples, expected (16,)"),
    ("metric_scalar", "prepare", "set_metric=… instead of metric=…"),
    ("set_metric_raises", "prepare", "set_metric raised KeyError on the 64 samples of the float model"),
    ("later_set_metric", "accuracy", "gave nan on the 64 samples of the int8 model"),
    ("in_place", "prepare", "Net changes its inputs in place"),
    ("nan_in_calibration", "convert", "batch 2 of the calibration data makes values from nan to nan at "),
    ("endless", "convert", "train_data has not ended after 100,000 batches"),
    ("shuffled", "accuracy", "two passes over eval_data gave different samples or another order"),
])
def test_a_bad_case_fails_the_check_of_its_stage_and_blocks_the_rest(
        project: Project, function: str, check: str, expected: str) -> None:
    project.add(BAD_CASES)
    result = project.run(f"--qat-model=models:{function}", "-v")
    assert result.ret == FAILED
    text = everything(result)
    assert expected in text
    assert "Traceback" not in text
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    result.stdout.fnmatch_lines([f"*::{check} FAILED*"])
    order = ["prepare", "convert", "coverage", "parity", "accuracy", "size", "speedup", "roundtrip"]
    if check != "accuracy":
        assert outcomes["skipped"] == 7 - order.index(check)
        assert f"blocked: {check} failed" in text


def test_odd_scores_and_data_that_change_between_models_end_in_one_sentence_each(project: Project) -> None:
    project.add('''
        class Shrinking:
            left = 9

            def __iter__(self):
                self.left -= 1
                return iter(batches(self.left, seed=1))

        SCORED = []

        def late_nan(output, target):
            SCORED.append(len(target))
            return torch.full((16,), float("nan") if len(SCORED) == 8 else 1.0)

        def shrinking():
            return case(eval_data=Shrinking())

        def nan_later():
            return case(metric=late_nan)

        def beyond():
            return case(metric=lambda output, target: 50.0 * (output.argmax(1) == target).double() - 20)
    ''')
    names = ("shrinking", "nan_later", "beyond")
    result = project.run(*(f"--qat-model=models:{name}" for name in names), "-k", "accuracy", "--qat-json=qat.json",
                         "--qat-memory=off")
    result.assert_outcomes(failed=2, passed=1, deselected=21)
    text = everything(result)
    assert "Traceback" not in text
    assert "two passes over eval_data gave " in text
    assert "Give data that can be iterated again and do not depend on the model." in text
    assert "gave NaN or infinity on batch 2 of eval_data, expected finite scores." in text
    beyond = recorded(project, "beyond")["metrics"]["accuracy"]
    assert (beyond["fp32"], beyond["is_fraction"]) == (30.0, False)
    assert "accuracy 30 30 30 +0.00% >= -1.00% passed" in text


def test_a_model_far_slower_than_the_budget_ends_soon_and_says_what_to_raise(
        project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    took = []

    def watched(**arguments: Any) -> Speed:
        (project.path / "timing").touch()
        started = time.monotonic()
        try:
            return measure_speed(**arguments)
        finally:
            took.append(time.monotonic() - started)

    monkeypatch.setattr("pytest_qat.pipeline.run.measure_speed", watched)
    project.add('''
        import pathlib, time

        class Slow(nn.Sequential):
            def forward(self, x):
                if pathlib.Path("timing").exists():
                    with open("calls", "a") as file:
                        file.write("x")
                    time.sleep(1.2)
                return super().forward(x)

        def slow():
            return QATCase(model=Slow(nn.Linear(8, 4)).eval(), example_inputs=(torch.randn(2, 8),))
    ''')
    result = project.run("--qat-model=models:slow", "--qat-recipe=eager-x86", "-k", "speedup", "--qat-max-time=1",
                         "--qat-batches", "--qat-json=qat.json", "--qat-memory=off", "-v")
    result.assert_outcomes(skipped=1, deselected=7)
    text = everything(result)
    assert "speedup inconclusive" in text
    assert "from 0 pairs" in text
    assert "raise --qat-max-time to about" in text
    assert (project.path / "calls").read_text() == "xx", "each side once"
    assert took[0] < 2 * 1.2 + 2
    run = recorded(project, "slow")
    assert run["metrics"]["speedup"]["ci"] == [0.0, None]
    assert min(run["metrics"]["latency_s"][side] for side in ("fp32", "int8")) >= 1.2
    for name in ("latency_s", "latency_percentiles_s", "throughput_per_s"):
        assert run["metrics"][name]["fp32_eager"] is None
    assert run["metrics"]["speedup_over_eager"] is run["metrics"]["batches"] is run["metrics"]["speedup"]["noise"]
    assert "--qat-max-time" in run["metrics"]["energy_note"]


def test_a_model_that_raises_while_it_is_timed_fails_its_speedup_by_name(project: Project) -> None:
    project.add('''
        CALLS = []

        class Worn(nn.Sequential):
            def forward(self, x):
                CALLS.append(len(x))
                if len(CALLS) > 100:
                    raise RuntimeError("worn out")
                return super().forward(x)

        def worn():
            return QATCase(model=Worn(nn.Linear(8, 4)).eval(), example_inputs=(torch.randn(2, 8),),
                           tolerances=Tolerances(min_size_reduction=0.1))
    ''')
    result = project.run("--qat-model=models:worn", "--qat-recipe=eager-x86", "--qat-json=qat.json",
                         "--qat-memory=off", "-v")
    result.assert_outcomes(failed=1, passed=7)
    run = recorded(project, "worn")
    [reason] = run["checks"]["speedup"]["reasons"]  # both sides call it, and either may be the one to wear out
    assert re.fullmatch(r"the (float|int8) model raised RuntimeError while it was timed: worn out\.", reason)
    assert f"speedup failed: {reason}" in everything(result)
    result.stdout.fnmatch_lines(["*::speedup FAILED*"])
    assert run["metrics"]["latency_s"] is run["metrics"]["speedup"] is None


def test_a_model_that_does_next_to_nothing_is_measured_too(project: Project) -> None:
    project.add('''
        import torch.ao.quantization as tq
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        def nothing():
            x = torch.randn(1, 2)
            model = nn.Sequential(nn.Linear(2, 2)).eval()
            prepared = prepare_fx(model, tq.get_default_qconfig_mapping("x86"), (x,))
            prepared(x)
            return QATCase(model=model, example_inputs=(x,), converted=convert_fx(prepared),
                           tolerances=Tolerances(accuracy_drop="100%", min_size_reduction=0.1, min_speedup=0.01))
    ''')
    result = project.run("--qat-model=models:nothing", "-k", "accuracy or speedup", "--qat-batches=1",
                         "--qat-json=qat.json", "--qat-memory=off")
    result.assert_outcomes(passed=2, deselected=6)
    everything(result)
    metrics = recorded(project, "nothing")["metrics"]
    assert all(0 < metrics["latency_s"][side] < 1e-2 for side in ("fp32", "int8", "fp32_eager"))
    assert metrics["speedup"]["ci"][0] > 0
    assert [entry["batch"] for entry in metrics["batches"]] == [1]


def test_evaluation_data_with_one_class_are_inconclusive(project: Project) -> None:
    project.add('''
        def one_class():
            return case(eval_data=[(images[target == 2], target[target == 2]) for images, target in batches()])
    ''')
    result = project.run("--qat-model=models:one_class", "-k", "accuracy", "-v")
    result.assert_outcomes(skipped=1, deselected=7)
    assert re.search(r"accuracy inconclusive: .*only one class", everything(result))
    strict = project.run("--qat-model=models:one_class", "-k", "accuracy", "--qat-strict")
    strict.assert_outcomes(failed=1, deselected=7)


def test_a_failure_is_not_lost_when_its_own_check_is_deselected(project: Project) -> None:
    project.add("def broken():\n    return case(example_inputs=(torch.randn(2, 5, 8, 8),))\n")
    result = project.run("--qat-model=models:broken", "-k", "size or speedup")
    result.assert_outcomes(failed=2, deselected=6)


def test_an_engine_that_the_machine_lacks_fails_by_name(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._C._supported_qengines", lambda: [2, 0])  # qnnpack, none
    result = project.run("--qat-model=models:good", "--qat-recipe=fx-fbgemm", "-v")
    result.assert_outcomes(failed=1, skipped=7)
    text = everything(result)
    assert "needs torch's quantized engine fbgemm, but this machine supports qnnpack" in text


def test_a_device_that_is_not_there_fails_with_a_remedy(project: Project) -> None:
    result = project.run("--qat-model=models:good", "--qat-device=cuda:7", "-k", "prepare or convert")
    result.assert_outcomes(passed=1, failed=1, deselected=6)
    assert "Use --qat-device=cpu" in everything(result)


def test_an_unforeseen_error_keeps_its_traceback(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("something new")

    monkeypatch.setattr("pytest_qat.pipeline.stages.calibrate", broken)
    result = project.run("--qat-model=models:good", "-v")
    result.assert_outcomes(passed=1, failed=1, skipped=6)
    assert "something new" in everything(result)
    result.stdout.fnmatch_lines(["*KeyError: 'something new'*"])


def test_targets_that_json_cannot_say_are_left_out_of_the_list_of_flips(project: Project) -> None:
    project.add('''
        def metric(output, target):
            return -(output[:, 0] - torch.nan_to_num(target)).abs()

        def missing_labels():
            data = [(images, torch.where(target == 3, float("nan"), target.float())) for images, target in batches()]
            return case(train_data=None, loss_fn=None, eval_data=data, metric=metric)
    ''')
    text = everything(project.run("--qat-model=models:missing_labels", "-k", "accuracy", "--qat-json=qat.json",
                                  "--qat-accuracy-drop=100%"))
    flips = recorded(project, "missing_labels")["metrics"]["accuracy"]["flips"]
    assert {flip["target"] for flip in flips} == {0.0, 1.0, 2.0, None}, text


def test_a_model_with_an_output_that_has_no_samples_is_compared_by_the_others(project: Project) -> None:
    project.add('''
        class Two(Net):
            def forward(self, x):
                found = super().forward(x)
                return found, found.mean()

        def two():
            model = Two()
            model.load_state_dict(trained().state_dict())
            return case(model=model.eval(), train_data=None, loss_fn=None, eval_data=None)
    ''')
    project.run("--qat-model=models:two", "-k", "accuracy or parity").assert_outcomes(passed=2, deselected=6)


def test_a_data_loader_over_a_stream_trains(project: Project) -> None:
    project.add('''
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(batches())

        def stream():
            return case(train_data=torch.utils.data.DataLoader(Stream(), batch_size=None))
    ''')
    text = everything(project.run("--qat-model=models:stream", "-k", "convert"))
    assert "fine-tuned for 3 steps" in text


def test_a_record_that_cannot_be_written_loses_neither_session_nor_table(project: Project,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pytest_qat.plugin.summary.write_json", full_disk)
    result = project.run("--qat-model=models:good", "-k", "prepare", "--qat-json=qat.json")
    result.assert_outcomes(passed=1, deselected=7)
    assert "the record could not be written to" in everything(result)
    assert "Net [fx-x86]" in everything(result)
