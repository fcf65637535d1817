"""One score of a whole evaluation set: what is gathered, what a metric may give, and the comparison that follows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pytest_qat.errors import DataError
from pytest_qat.measure import set_scores
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.scoring import Batch
from pytest_qat.measure.set_scores import GatheredSet, UndefinedScore, compare_sets, gather, set_score

DRAW = torch.Generator().manual_seed(0)
LABELS = (torch.arange(300) % 2 == 0).float()
SCORES = LABELS + torch.randn(300, generator=DRAW)


def auc(outputs: Tensor, targets: Tensor) -> Tensor:
    good, bad = outputs[targets < 0.5], outputs[targets > 0.5]
    return (bad.unsqueeze(1) > good).float().mean()


def mse(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).square().mean())


def batches(outputs: Tensor, targets: Any = LABELS, *, size: int = 64) -> Iterator[Batch]:
    for output, target in zip(outputs.split(size), targets.split(size), strict=True):
        yield torch.zeros(len(output), 3), output, target


def gathered(outputs: Tensor, targets: Any = LABELS) -> GatheredSet:
    return gather(batches(outputs, targets))


def compared(int8: Tensor, *, metric: Any = auc, higher_is_better: bool = True, **sides: Tensor) -> Accuracy:
    made = {"fp32": gathered(SCORES), "int8": gathered(int8), **{name: gathered(one) for name, one in sides.items()}}
    return compare_sets(metric, made, higher_is_better=higher_is_better, budget_s=math.inf)


# -- what is gathered -----------------------------------------------------------------------------------------------


def test_all_batches_are_scored_as_one() -> None:
    found = gathered(SCORES)
    assert found.samples == 300
    assert set_score(auc, found, of="the model") == pytest.approx(float(auc(SCORES, LABELS)))


def test_the_metric_gets_the_forms_that_the_batches_have() -> None:
    seen: list[Any] = []

    def metric(outputs: Any, targets: Any) -> float:
        seen.append((outputs, targets))
        return 0.5

    made = [(torch.zeros(2, 3), {"logits": torch.ones(2, 5), "loss": torch.tensor(0.1)}, (torch.ones(2), ["a", "b"])),
            (torch.zeros(1, 3), {"logits": torch.ones(1, 5), "loss": torch.tensor(0.2)}, (torch.ones(1), ["c"]))]
    set_score(metric, gather(made), of="the model")
    outputs, (values, names) = seen[0]
    assert outputs["logits"].shape == (3, 5)
    assert len(outputs["loss"]) == 2
    assert values.tolist() == [1, 1, 1]
    assert names == ["a", "b", "c"]


@pytest.mark.parametrize(("inputs", "target", "samples"), [
    (torch.zeros(4, 2), torch.zeros(4), 4),
    (torch.zeros(9, 4, 2), torch.zeros(4), 4),          # time first
    (torch.zeros(9, 4, 2), (torch.zeros(4), torch.zeros(4)), 4),
    (torch.zeros(9, 4, 2), ["a", "b", "c"], 3),
    (([torch.zeros(3, 8, 8)] * 2,), [{"boxes": torch.zeros(5, 4)}, {"boxes": torch.zeros(1, 4)}], 2),
    (torch.zeros(4, 2), None, 4),
    (torch.zeros(4, 2), {"y": torch.zeros(4)}, 4),
])
def test_samples_are_counted_by_the_targets_where_inputs_have_another_first_side(inputs: Any, target: Any,
                                                                                 samples: int) -> None:
    assert gather([(inputs, torch.zeros(samples, 1), target)]).samples == samples


def test_more_than_fits_into_memory_is_refused_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_scores, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="128 samples") as caught:
        gathered(torch.zeros(300))
    assert "metric=" in caught.value.hint


def test_outputs_are_kept_without_their_history() -> None:
    outputs = (torch.ones(300, requires_grad=True) * 2)
    assert not gathered(outputs).outputs(torch.arange(3)).requires_grad


def test_no_batches_are_refused() -> None:
    with pytest.raises(DataError, match="eval_data is empty"):
        gather([])


# -- what a metric may give -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1, 1.0, True, torch.tensor(1.0), torch.ones(1), torch.ones(1, 1), np.float32(1),
                                   np.ones(1), np.array(1), torch.tensor(1, dtype=torch.int64)])
def test_a_score_may_be_any_kind_of_number(given: Any) -> None:
    assert set_score(lambda outputs, targets: given, gathered(SCORES), of="the model") == 1


@pytest.mark.parametrize(("given", "seen", "remedy"), [
    (None, "gave None", "return"), ("0.5", "gave str '0.5'", "float"), ({"auc": 0.5}, "gave dict", "result['auc']"),
    (torch.ones(300), "shape (300,)", "metric=named"), (torch.ones(3), "shape (3,)", "float"),
    (np.ones(300), "shape (300,)", "metric=named"), ((0.5, 0.1), "gave tuple", "float"),
    (1 + 2j, "gave complex", "float"),
])
def test_what_is_no_number_is_refused_with_the_place_of_the_metric(given: Any, seen: str, remedy: str) -> None:
    def named(outputs: Any, targets: Any) -> Any:
        return given

    with pytest.raises(DataError) as caught:
        set_score(named, gathered(SCORES), of="the model")
    assert not isinstance(caught.value, UndefinedScore)
    assert seen in caught.value.message
    assert f"named (test_set_scores.py:{named.__code__.co_firstlineno})" in caught.value.message
    assert remedy in caught.value.hint


@pytest.mark.parametrize("given", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_score_that_is_not_finite_is_undefined(given: Any) -> None:
    with pytest.raises(UndefinedScore, match="the int8 model"):
        set_score(lambda outputs, targets: given, gathered(SCORES), of="the int8 model")


def broken(outputs: Any, targets: Any) -> float:
    raise ValueError("only one class")


def test_an_error_of_the_metric_is_told_with_its_line() -> None:
    with pytest.raises(UndefinedScore) as caught:
        set_score(broken, gathered(SCORES), of="the float model")
    line = broken.__code__.co_firstlineno + 1
    assert f"ValueError on the 300 samples of the float model: only one class (test_set_scores.py:{line})" in str(
        caught.value)


def test_an_error_that_no_other_data_would_mend_is_told_apart() -> None:
    with pytest.raises(DataError, match="TypeError") as caught:
        set_score(lambda outputs: 1.0, gathered(SCORES), of="the model")  # type: ignore[misc, arg-type]
    assert not isinstance(caught.value, UndefinedScore)


# -- the comparison ---------------------------------------------------------------------------------------------------


def test_the_same_outputs_lose_nothing_and_prove_only_what_so_many_samples_can() -> None:
    found = compared(SCORES)
    assert (found.drop, found.p_value, found.kind, found.metric) == (0, 1, "set_metric", "auc")
    assert found.fp32 == found.int8 == pytest.approx(float(auc(SCORES, LABELS)))
    assert found.drop_ci[1] == pytest.approx(1.968 / 302, rel=1e-2)
    assert found.is_fraction
    assert found.samples == 300
    assert (found.flips, found.flipped) == ((), 0)


def test_a_lost_ranking_is_a_significant_drop() -> None:
    found = compared(SCORES + 3 * torch.randn(300, generator=DRAW), ptq=SCORES, fine_tuned=SCORES)
    assert found.drop > 0.1
    assert 0 < found.drop_ci[0] < found.drop < found.drop_ci[1]
    assert found.p_value < 0.01
    assert found.ptq_p_value is not None
    assert found.ptq_p_value < 0.01
    assert found.fine_tuned_p_value == found.ptq_p_value
    assert found.ptq == found.fine_tuned == found.fp32


def test_a_simulated_control_is_compared_with_the_fine_tuned_model() -> None:
    noisy = gathered(SCORES + 3 * torch.randn(300, generator=DRAW))
    sides = {"fp32": gathered(SCORES), "int8": noisy, "ptq": gathered(SCORES), "fine_tuned": gathered(SCORES)}
    assert compare_sets(auc, sides, higher_is_better=True, budget_s=9, ptq_simulated=True).ptq_p_value == 1


def test_where_lower_is_better_a_higher_score_is_a_drop_in_shares_of_float_s() -> None:
    found = compared(SCORES + 0.5, metric=mse, higher_is_better=False)
    assert found.drop == pytest.approx(found.int8 - found.fp32)
    assert found.drop > 0
    assert found.drop_ci[0] < found.drop < found.drop_ci[1]
    assert not found.is_fraction
    assert not found.higher_is_better
    small = compared(SCORES, metric=lambda outputs, targets: 1e-3 * mse(outputs, targets), higher_is_better=False)
    assert not small.is_fraction, "an error that happens to be small is no share"


def test_a_score_below_zero_on_any_side_is_no_share() -> None:
    def r2(outputs: Tensor, targets: Tensor) -> float:
        return 1 - mse(outputs, targets) / float(targets.var())

    assert not compared(LABELS * 1.01, metric=r2).is_fraction


@pytest.mark.parametrize(("other", "message"), [(gathered(SCORES[:200], LABELS[:200]), "300 and 200 samples"),
                                                (gathered(SCORES, 1 - LABELS), "another order")])
def test_passes_over_other_samples_are_refused(other: GatheredSet, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare_sets(auc, {"fp32": gathered(SCORES), "int8": other}, higher_is_better=True, budget_s=9)


def test_drawn_sets_without_a_class_are_counted_and_not_scored() -> None:
    labels = torch.zeros(300)
    labels[:3] = 1
    sides = {side: gathered(SCORES, labels) for side in ("fp32", "int8")}
    found = compare_sets(auc, sides, higher_is_better=True, budget_s=math.inf)
    assert found.resampling is not None
    assert found.resampling.undefined > 20
    assert found.drop_ci == (-math.inf, math.inf)


def test_few_samples_and_slow_metrics_give_no_interval() -> None:
    few = {side: gathered(SCORES[:12], LABELS[:12]) for side in ("fp32", "int8")}
    slow = {side: gathered(SCORES) for side in ("fp32", "int8")}
    found = [compare_sets(auc, few, higher_is_better=True, budget_s=9),
             compare_sets(auc, slow, higher_is_better=True, budget_s=0)]
    assert all(each.drop_ci == (-math.inf, math.inf) and each.p_value == 1 for each in found)
    assert found[0].resampling is not None
    assert found[1].resampling is not None
    assert found[0].resampling.too_few_samples
    assert found[1].resampling.too_slow


@pytest.mark.parametrize(("metric", "name"), [
    (auc, "auc"), (lambda outputs, targets: 0.5, "set_metric"), (functools.partial(auc), "auc")])
def test_a_score_is_called_by_the_name_of_its_function(metric: Any, name: str) -> None:
    assert compared(SCORES, metric=metric).metric == name


def test_a_float_model_that_scores_no_better_than_with_shuffled_targets_is_at_chance() -> None:
    guesses = gathered(torch.randn(300, generator=torch.Generator().manual_seed(1)))
    found = compare_sets(auc, {"fp32": guesses, "int8": guesses}, higher_is_better=True, budget_s=math.inf)
    assert found.at_chance
    assert found.shuffled is not None
    assert found.shuffled >= found.fp32
    assert not compared(SCORES).at_chance
    assert not compared(SCORES, metric=mse, higher_is_better=False).at_chance


def test_a_score_that_does_not_pair_outputs_with_targets_is_never_at_chance() -> None:
    assert not compared(SCORES, metric=lambda outputs, targets: float(outputs.mean() - targets.mean())).at_chance


def test_a_metric_that_changes_what_it_gets_changes_nothing_for_the_next() -> None:
    def greedy(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.zero_().sum())

    found = gathered(SCORES)
    set_score(greedy, found, of="the model")
    assert set_score(auc, found, of="the model") > 0.5
