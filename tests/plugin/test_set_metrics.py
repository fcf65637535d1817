"""One score of a whole set, dense outputs and outputs of another form, through the command line and the marker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project

from tests.plugin.inner_runs import everything, recorded

SCORED = '''
        def macro_f1(outputs, targets):
            named, scores = outputs.argmax(1), []
            for label in targets.unique():
                hit = ((named == label) & (targets == label)).sum()
                scores.append(2 * hit / ((named == label).sum() + (targets == label).sum()))
            return 0.95 * torch.stack(scores).mean()

        def scored():
            return case(set_metric=macro_f1)
'''


def test_a_score_of_the_set_is_measured_judged_and_shown_by_its_name(project: Project) -> None:
    project.add(SCORED)
    result = project.run("--qat-model=models:scored", "-k", "accuracy", "--qat-json=qat.json")
    result.assert_outcomes(passed=1, deselected=7)
    run = recorded(project, "scored")
    accuracy = run["metrics"]["accuracy"]
    assert (accuracy["kind"], accuracy["metric"], accuracy["samples"]) == ("set_metric", "macro_f1", 64)
    assert accuracy["is_fraction"]
    assert accuracy["resamples"] + accuracy["undefined_resamples"] >= 50
    assert accuracy["drop_ci"][0] <= accuracy["drop"] <= accuracy["drop_ci"][1]
    assert accuracy["ptq"] is not None
    assert run["checks"]["accuracy"]["reasons"][0].startswith("macro_f1 ")
    result.stdout.fnmatch_lines(["macro_f1 *%*%*"])


def test_a_marked_test_holds_the_score_of_the_set(project: Project) -> None:
    project.add(SCORED)
    project.pytester.makepyfile(test_user='''
import pytest
pytestmark = pytest.mark.qat(model="models:scored")

def test_drop(qat_run):
    qat_run.assert_accuracy(drop="20%")
    assert qat_run.metrics["accuracy"]["kind"] == "set_metric"

@pytest.mark.qat(min_accuracy=0.99)
def test_floor(qat_run):
    qat_run.assert_accuracy()
''')
    result = project.run("-v", "--qat-json=qat.json")
    result.assert_outcomes(passed=1, failed=1)
    assert "the float model itself scores" in everything(result)
    (run,) = json.loads((project.path / "qat.json").read_text())["runs"]
    assert run["metrics"]["accuracy"]["metric"] == "macro_f1"


DENSE = '''
        class Dense(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, channels, 1))

            def forward(self, x):
                return self.body(x)

        def dense(channels, targets, **changes):
            torch.manual_seed(0)
            model = Dense(channels).eval()
            images = [images for images, _ in batches(4)]
            with torch.no_grad():
                data = [(x, targets(model(x))) for x in images]
            return QATCase(model=model, example_inputs=(images[0],), calibration_data=images, eval_data=data, **changes)

        def segmented():
            return dense(5, lambda made: made.argmax(1))

        def restored():
            return dense(3, lambda made: made + 0.1 * torch.randn_like(made))
'''


@pytest.mark.parametrize(("function", "metric", "higher"), [
    ("segmented", "pixel accuracy", True), ("restored", "relative error", False)])
def test_dense_targets_have_a_metric_of_their_own(project: Project, function: str, metric: str, higher: bool) -> None:
    project.add(DENSE)
    result = project.run(f"--qat-model=models:{function}", "-k", "accuracy", "--qat-json=qat.json")
    accuracy: dict[str, Any] = recorded(project, function)["metrics"]["accuracy"]
    assert (accuracy["metric"], accuracy["kind"], accuracy["higher_is_better"]) == (metric, "metric", higher)
    assert accuracy["samples"] == 64
    assert 0 < accuracy["int8"] <= 1
    assert accuracy["drop"] > 0
    assert metric in everything(result)


def test_boxes_of_which_int8_finds_another_number_are_inconclusive_with_a_remedy(project: Project) -> None:
    project.add('''
        class Detector(Net):
            """Keeps what lies above thresholds that are float's own values: int8 rounds some of them down."""

            def __init__(self, levels=()):
                super().__init__()
                self.levels = levels

            def forward(self, x):
                logits = super().forward(x)
                return [logits[logits[:, 0] >= level] for level in self.levels]

        def detector():
            model = Detector()
            model.load_state_dict(trained().state_dict())
            images = [images for images, _ in batches(2)]
            with torch.no_grad():
                model.levels = tuple((Net.forward(model.eval(), images[0])[:12, 0] - 1e-6).tolist())
            return QATCase(model=model, example_inputs=(images[0],), calibration_data=images)
    ''')
    result = project.run("--qat-model=models:detector", "-k", "parity or accuracy", "--qat-json=qat.json")
    text = everything(result)
    checks = recorded(project, "detector")["checks"]
    assert checks["accuracy"]["outcome"] == "inconclusive"
    assert "differ in shape" in checks["accuracy"]["reasons"][0]
    assert "Give eval_data and metric" in checks["accuracy"]["reasons"][0]
    assert "Traceback" not in text
    assert result.parseoutcomes().get("failed", 0) == 0
