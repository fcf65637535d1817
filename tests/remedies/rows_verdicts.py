"""Advice in verdicts: more samples, other tolerances, more time; followed on scripted scores and a scripted clock."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import torch
from torch import Tensor

from pytest_qat.diagnosis.costs import causes_of_speed
from pytest_qat.measure.accuracy import Accuracy, compare_scores
from pytest_qat.measure.flat_outputs import FlatOutput
from pytest_qat.measure.outputs import agreement_of
from pytest_qat.measure.scoring import evaluate
from pytest_qat.measure.set_scores import compare_sets, gather
from pytest_qat.measure.speed import BatchSpeed, Speed
from pytest_qat.tolerances import Tolerances
from pytest_qat.verdict import judge_accuracy, judge_speedup
from tests.measure.scripted_clock import MS, Script, uniform
from tests.remedies.walk import Row, World


def right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


def scored(samples: int, *, fp32: int = 0, int8: int | None = None, classes: int = 4, metric: Any = None) -> Accuracy:
    """Return what evaluation finds where each model is wrong on the first of every so many samples (0: on none)."""
    targets = torch.arange(samples) % classes

    def run(each: int) -> Any:
        def predict(indices: Tensor) -> Tensor:
            wrong = (indices % each == 0).long() if each else torch.zeros_like(indices)
            return torch.nn.functional.one_hot((targets[indices] + wrong) % 4, 4).float()
        return predict

    data = [(torch.arange(samples), targets)]
    before, after = (evaluate(run(each), data, metric) for each in (fp32, fp32 if int8 is None else int8))
    return compare_scores(before, after, None, higher_is_better=True)


def accuracy(found: Any, *, higher_is_better: bool = True, **tolerances: Any) -> Any:
    def work(world: World) -> object:
        return judge_accuracy(found() if callable(found) else found, Tolerances(**tolerances),
                              higher_is_better=higher_is_better)
    return work


def untrained(samples: int = 400) -> Accuracy:
    return scored(samples, fp32=1)


LABELS = (torch.arange(600) % 2).float()
NOISE = torch.randn(600, generator=torch.Generator().manual_seed(0))


def separation(outputs: Tensor, targets: Tensor) -> Tensor:
    """The area under the ROC curve, which is not a number where a class is missing."""
    good, bad = outputs[targets < 0.5], outputs[targets > 0.5]
    return (bad.unsqueeze(1) > good).float().mean()


def slowly(outputs: Tensor, targets: Tensor) -> Tensor:
    time.sleep(0.012)
    return separation(outputs, targets)


def whole_set(samples: int = 300, *, skill: float = 2.0, rare: int = 0, metric: Any = separation,
              budget_s: float = math.inf) -> Accuracy:
    """Compare a model with itself by one score of the whole set; of a rare class there are so many samples."""
    labels = LABELS[:samples] if not rare else (torch.arange(samples) < rare).float()
    side = gather([(torch.zeros(samples, 3), skill * labels + NOISE[:samples], labels)])
    return compare_sets(metric, {"fp32": side, "int8": side}, higher_is_better=True, budget_s=budget_s)


def given_time(world: World) -> object:
    """Give a slow score of a set the time that its verdict asks for."""
    verdict = judge_accuracy(whole_set(metric=slowly, budget_s=0.0), Tolerances())
    asked = re.search(r"Raise --qat-max-time to ([\d,]+)", verdict.reasons[0])
    assert asked is not None
    found = whole_set(metric=slowly, budget_s=float(asked[1].replace(",", "")))
    return judge_accuracy(found, Tolerances())


CLASS = torch.arange(8 * 16 * 16).reshape(8, 16, 16) % 3


def maps(*, target: Tensor | None = None) -> Accuracy:
    """Compare maps in which int8 names other classes where the scores lie close together, at an eighth of them."""
    before = 4 * torch.nn.functional.one_hot(CLASS, 3).movedim(-1, 1).float()
    before[:, :, :2] /= 40
    after = before.clone()
    after[:, :, :2] = before[:, :, :2].flip(1)
    found = agreement_of([before], [after], samples=[8], target=target)
    float_itself = agreement_of([before], [before], samples=[8], target=target)
    compared = compare_scores(float_itself.scores, found.scores, None, higher_is_better=True, kind="agreement")
    return dataclasses.replace(compared, same_class=found.same_class)


RAGGED = ("output ['boxes'] is (5, 4) in float and (3, 4) in int8 (batch 0)",)
_MOST_TIMES = 3
FAINT = FlatOutput(output="", columns=(0,), of=1, spread=0.1, left=0.0, values=1, relative=0.01)
VERDICT = "verdict.py"
ACCURACY_ROWS = [
    Row(path=VERDICT, text="agreement says little here",
        calls=accuracy(lambda: dataclasses.replace(scored(400), kind="agreement", flat=(FAINT,))),
        follow=accuracy(lambda: scored(4000))),
    Row(path=VERDICT, text="{}. The difference is not significant",
        calls=accuracy(lambda: scored(60, int8=30)), follow=accuracy(lambda: scored(6000, int8=30)),
        then="accuracy drops by 3.33%"),
    Row(path=VERDICT, text="{}. These samples are too few to show anything",
        calls=accuracy(lambda: scored(1, metric=right)), follow=accuracy(lambda: scored(2000, metric=right))),
    Row(path=VERDICT, text="eval_data has samples of only one class", calls=accuracy(lambda: scored(400, classes=1)),
        follow=accuracy(lambda: scored(400))),
    Row(path=VERDICT, text="{}, and {} samples are too few to distinguish", calls=accuracy(lambda: scored(6, fp32=3)),
        follow=accuracy(lambda: scored(6000, fp32=3))),
    Row(path=VERDICT, text="{}, no better than always predicting the most frequent class", calls=accuracy(untrained),
        follow=accuracy(lambda: scored(400))),
    Row(path=VERDICT, text="min_accuracy {} cannot be checked without eval_data",
        calls=accuracy(lambda: dataclasses.replace(scored(400), kind="agreement"), min_accuracy=0.5),
        follow=accuracy(lambda: scored(400), min_accuracy=0.5)),
    Row(path=VERDICT, text="min_accuracy {} is a lower bound, but for this metric",
        calls=accuracy(lambda: scored(400), min_accuracy=0.5, higher_is_better=False),
        follow=accuracy(lambda: scored(400), higher_is_better=False)),
    Row(path=VERDICT, text="the float model itself scores {}", calls=accuracy(untrained, min_accuracy=0.9),
        follow=accuracy(lambda: scored(400), min_accuracy=0.9)),
]


SET_VERDICT_ROWS = [
    Row(path=VERDICT, text="the maps that the model returns are classes or values", calls=accuracy(maps),
        follow=lambda world: [accuracy(lambda: maps(target=torch.randn(8, 3, 16, 16)))(world),
                              accuracy(lambda: maps(target=CLASS), accuracy_drop=0.5)(world),
                              accuracy(lambda: scored(400))(world)]),
    Row(path=VERDICT, text="float and int8 outputs differ in shape where no metric looks",
        calls=accuracy(lambda: dataclasses.replace(scored(400), ragged=RAGGED)),
        follow=accuracy(lambda: scored(400, metric=right))),
    Row(path=VERDICT, text="A score of the whole set of only {} samples shows nothing",
        calls=accuracy(lambda: whole_set(12)), follow=accuracy(whole_set)),
    Row(path=VERDICT, text="The score hangs on very few samples", calls=accuracy(lambda: whole_set(rare=3)),
        follow=accuracy(lambda: whole_set(rare=30))),
    Row(path=VERDICT, text="set_metric is too slow to show which drops are chance",
        calls=accuracy(lambda: whole_set(metric=slowly, budget_s=0.0)), follow=given_time, slow=True),
    Row(path=VERDICT, text="the float model scores {}, no better than with shuffled targets",
        calls=accuracy(lambda: whole_set(40, skill=0.3)),
        follow=lambda world: [accuracy(lambda: whole_set(40))(world),
                              accuracy(lambda: whole_set(600, skill=0.3))(world)]),
]


def speed(*, budget_s: float, floor: float = 1.0, fp32: tuple[float, float] = (2, 4),
          int8: tuple[float, float] = (1.9, 3.9)) -> Any:
    """Judge sides whose calls take between so many milliseconds, within a budget."""
    def work(world: World) -> object:
        found = Script().compare(uniform(*fp32, seed=1), uniform(*int8, seed=2), floor=floor, max_time_s=budget_s)
        return judge_speedup(found, Tolerances(min_speedup=floor))
    return work


def as_told(first: Any, again: Any) -> Any:
    """Give the number of seconds that a verdict asks for, which grows from one to the next, and is the last at most."""
    def work(world: World) -> object:
        verdict, before = first(world), 0.0
        for _ in range(_MOST_TIMES):
            asked = re.search(r"--qat-max-time to about ([\d,]+) s", " ".join(verdict.reasons))
            if asked is None:
                break
            seconds = float(asked[1].replace(",", ""))
            assert seconds > before
            verdict, before = again(seconds)(world), seconds
        return verdict
    return work


def unsteady(low: float, high: float) -> Any:
    def work(world: World) -> object:
        def compared(slow: float, fast: float) -> Any:
            return Script().compare(uniform(slow, slow * 1.01), uniform(fast, fast * 1.01, seed=2), floor=1.0)

        return judge_speedup(compared(1.1, 1.0), Tolerances(), noise=compared(low, high))
    return work


def at_batch(samples: int) -> Any:
    """A model that is slower in int8 at batch 1 and faster at 32, judged at one of them."""
    def compared(slow: int, fast: int) -> Any:
        return Script().compare(slow * MS, fast * MS, floor=1.0)

    def work(world: World) -> object:
        sides = {1: compared(1, 3), 32: compared(20, 5)}
        batches = tuple(BatchSpeed(batch=size, speedup=found, overhead=None) for size, found in sides.items())
        return causes_of_speed(Speed(
            like_for_like=sides[samples], over_eager=None, noise=None, samples=samples, batches=batches, energy=None,
            layouts={}, energy_note=""), 1.0)
    return work


SHORT = speed(budget_s=0.3)
CROWDED = speed(budget_s=1.0, fp32=(400, 440), int8=(300, 330))
SPEED_ROWS = [
    Row(path=VERDICT, text="The interval includes the requirement: raise --qat-max-time", calls=SHORT,
        follow=as_told(SHORT, lambda seconds: speed(budget_s=seconds))),
    Row(path=VERDICT, text="Calls are so slow that only {} pairs fit into the budget", calls=CROWDED,
        follow=as_told(CROWDED, lambda seconds: speed(budget_s=seconds, fp32=(400, 440), int8=(300, 330)))),
    Row(path=VERDICT, text="The interval includes the requirement, and the speedup is too close",
        calls=speed(budget_s=20.0, int8=(2, 4)), follow=speed(budget_s=20.0, int8=(2, 4), floor=0.95)),
    Row(path=VERDICT, text="But float against itself is off by {}x", calls=unsteady(1.3, 1.0),
        follow=unsteady(1.0, 1.0)),
    Row(path="diagnosis/costs.py", text="if it ships at such a batch size, put that into example_inputs.",
        calls=at_batch(1), follow=at_batch(32), then="0.33x at batch 1"),
]
