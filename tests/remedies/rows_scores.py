"""Advice about scores and outputs: what targets and metrics give, scores of a whole set, and outputs that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.errors import DataError
from pytest_qat.measure import set_scores
from pytest_qat.measure.outputs import agreement_of
from pytest_qat.measure.paired_outputs import pair_outputs
from pytest_qat.measure.parity import compare_parity
from pytest_qat.measure.scoring import evaluate
from pytest_qat.measure.set_scores import gather, set_score
from pytest_qat.pipeline.preflight import checked_model
from pytest_qat.pipeline.scoring_trial import try_scoring
from tests.remedies.rows_case import PAIRS, ROWS, case, done, evaluated, paired
from tests.remedies.walk import Row, World, each_told

CLASSES = PAIRS[0][1]


def stays(x: Tensor) -> Tensor:
    return x


def one_row(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


def mean_of_all(output: Tensor, target: Tensor) -> Tensor:
    return one_row(output, target).mean()


def one_score_a_class(output: Tensor, target: Tensor) -> Tensor:
    return (nn.functional.one_hot(target, 2) - output).abs()


def tried(model: Any = None, **changes: Any) -> Any:
    """Try a metric on the float model, as the first stage does."""
    def work(world: World) -> None:
        used = model or nn.Linear(4, 2)
        try_scoring(QATCase(**{"model": used, "example_inputs": (ROWS,), "eval_data": PAIRS, **changes}), used)
    return work


class Picky(nn.Linear):
    """A model that takes small values only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 50:
            raise IndexError("index out of range")
        return super().forward(x)


MASK = {"mask": torch.randn(6, 2, 2)}
YES_OR_NO = torch.eye(2).expand(6, 2, 2)


def masked(*, mended: bool) -> Any:
    """Targets of yes and no without a metric, and with the one that is shown, pasted as it is printed."""
    def work(world: World) -> None:
        data, metric = [(MASK, YES_OR_NO)], None
        if mended:
            try:
                evaluate(lambda inputs: MASK, data, None)
            except DataError as error:
                metric = eval(error.hint.removeprefix("Write metric=").partition(", which is")[0])
        evaluate(lambda inputs: MASK, data, metric)
    return work


ONE_HOT = nn.functional.one_hot(CLASSES, 2)
VALUES = torch.randn(6, 2)
SCORING, DEFAULT = "measure/scoring.py", "measure/default_metric.py"
SCORE_ROWS = [
    Row(path=DEFAULT, text="Give class indices (target.argmax(1)", sites=2,
        calls=each_told(evaluated([(ROWS, ONE_HOT)]), evaluated([(ROWS, ONE_HOT.float())])),
        follow=evaluated([(ROWS, ONE_HOT.argmax(1))])),
    Row(path=DEFAULT, text="Write metric=lambda output, target:", calls=masked(mended=False),
        follow=masked(mended=True)),
    Row(path=SCORING, text="Make eval_data yield what forward takes",
        calls=evaluated([(torch.randn(6, 5), CLASSES)]), follow=evaluated(PAIRS)),
    Row(path=SCORING, text="Make eval_data yield batches, or leave it out", calls=evaluated([]),
        follow=done(lambda: checked_model(case()))),
    Row(path=SCORING, text="metric(output, target) gets what the model returned",
        calls=evaluated(PAIRS, lambda output, target: output["logits"]), follow=evaluated(PAIRS, one_row)),
    Row(path=SCORING, text="Write set_metric={} instead of metric={} if it is one score of all",
        calls=tried(metric=mean_of_all), follow=tried(set_metric=mean_of_all)),
    Row(path=SCORING, text="Average over everything but the samples: .flatten(1).mean(1).",
        calls=evaluated(PAIRS, one_score_a_class),
        follow=evaluated(PAIRS, lambda output, target: one_score_a_class(output, target).flatten(1).mean(1))),
    Row(path=SCORING, text="Return one score per sample, without averaging.",
        calls=evaluated(PAIRS, lambda output, target: one_score_a_class(output, target).mean(0)),
        follow=evaluated(PAIRS, one_row)),
    Row(path=SCORING, text="Check the model's output and the target of that batch.",
        calls=evaluated([(ROWS, torch.zeros(6))], lambda output, target: output[:, 0] / target),
        follow=evaluated([(ROWS, torch.ones(6))], lambda output, target: output[:, 0] / target)),
    Row(path=SCORING, text="Give metric=, or one form of target.", calls=evaluated([*PAIRS, (ROWS, VALUES)]),
        follow=evaluated([*PAIRS, *PAIRS])),
    Row(path="pipeline/scoring_trial.py", text="Call the model on that batch in a shell",
        calls=tried(Picky(4, 2), eval_data=[(ROWS * 1e3, CLASSES)]), follow=tried(Picky(4, 2))),
    Row(path="measure/accuracy.py", text="Give data that can be iterated again", calls=paired(other=True),
        follow=paired()),
    Row(path="measure/accuracy.py", text="Use shuffle=False and no random augmentation", calls=paired(order=True),
        follow=paired()),
]


def set_scored(metric: Any, *, targets: Tensor = CLASSES) -> Any:
    return done(lambda: set_score(metric, gather([(ROWS, VALUES, targets)]), of="the model"))


def of_positives(outputs: Tensor, targets: Tensor) -> float:
    """The recall, which is not a number where no sample is positive."""
    return float((one_row(outputs, targets) * targets).sum() / targets.sum())


def held(samples: int, *, most: int) -> Any:
    """Keep the outputs of so many samples where only so many bytes may be kept."""
    def work(world: World) -> None:
        world.patch.setattr(set_scores, "MOST_BYTES", most)
        gather([(ROWS[:samples], VALUES[:samples], CLASSES[:samples])])
    return work


SET = "measure/set_scores.py"
SET_ROWS = [
    Row(path=SET, text="Evaluate fewer samples, or give metric=", calls=held(6, most=60),
        follow=lambda world: [held(3, most=60)(world), evaluated(PAIRS, one_row)(world)]),
    Row(path=SET, text="Make eval_data yield batches.", calls=done(lambda: gather([])),
        follow=set_scored(mean_of_all)),
    Row(path=SET, text="set_metric(outputs, targets) gets those of all batches",
        calls=set_scored(lambda outputs, targets: outputs["logits"]), follow=set_scored(mean_of_all)),
    Row(path=SET, text="Check that the set has samples of every class",
        calls=set_scored(of_positives, targets=torch.zeros_like(CLASSES)), follow=set_scored(of_positives)),
    Row(path=SET, text="Write metric={} instead of set_metric={}", calls=tried(set_metric=one_row),
        follow=tried(metric=one_row)),
    Row(path=SET, text="Return one of its entries, such as result[{}].",
        calls=set_scored(lambda outputs, targets: {"accuracy": mean_of_all(outputs, targets)}),
        follow=set_scored(lambda outputs, targets: {"accuracy": mean_of_all(outputs, targets)}["accuracy"])),
    Row(path=SET, text="End set_metric with `return` and the score.", calls=set_scored(lambda outputs, targets: None),
        follow=set_scored(mean_of_all)),
    Row(path=SET, text="Return the score as a float.", calls=set_scored(lambda outputs, targets: "0.5"),
        follow=set_scored(lambda outputs, targets: float("0.5"))),
]


def agreement(outputs: Any) -> Any:
    return done(lambda: agreement_of([outputs], [outputs], samples=[6]))


def selected(x: Tensor) -> Tensor:
    return x[x > 0]


def through(work: Any, *, noise: float = 0.0) -> Any:
    return lambda x: work(x + noise)


OUTPUT_ROWS = [
    Row(path="measure/outputs.py", text="Give eval_data and metric.", calls=agreement(torch.tensor(1.0)),
        follow=evaluated(PAIRS, one_row)),
    Row(path="measure/paired_outputs.py", text="Give eval_data and metric, which scores each side by itself.",
        calls=done(lambda: pair_outputs([ROWS], [ROWS.reshape(4, 6)])), follow=evaluated(PAIRS, one_row)),
    Row(path="measure/parity.py", text="Return what comes before the selection",
        calls=done(lambda: compare_parity(selected, selected, through(selected, noise=1.0), [ROWS])),
        follow=done(lambda: compare_parity(stays, stays, through(stays, noise=1.0), [ROWS]))),
    Row(path="measure/parity.py", text="Return the logits as a tensor",
        calls=done(lambda: compare_parity(*(lambda x: x.argmax(1),) * 3, [ROWS])),
        follow=done(lambda: compare_parity(stays, stays, stays, [ROWS]))),
]
