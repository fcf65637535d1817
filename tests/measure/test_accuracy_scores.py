"""Per-sample scores: top-1, a user's metric, one pass over the data, and agreement with float."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pytest_qat.errors import DataError
from pytest_qat.measure.default_metric import top1
from pytest_qat.measure.scoring import evaluate
from tests.measure.scored import HITS, LOGITS, same

# -- top-1 ----------------------------------------------------------------------------------------------------------


def test_top_1_scores_every_sample_by_its_largest_logit() -> None:
    assert top1(LOGITS, HITS).tolist() == [1, 1, 1, 0]


def test_top_1_of_a_map_is_the_share_of_positions() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1
    target = torch.tensor([[[1, 1], [1, 0]], [[0, 0], [0, 0]]])
    assert top1(logits, target).tolist() == [0.75, 0.0]


@pytest.mark.parametrize("output", [{"logits": LOGITS}, (LOGITS, "rest"), [torch.zeros(4), LOGITS]])
def test_top_1_finds_the_logits_inside_an_output(output: Any) -> None:
    assert top1(output, HITS).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("output", [torch.zeros(4), torch.zeros(4, 1), {"boxes": torch.zeros(4, 1)}, None])
def test_top_1_of_an_output_without_classes_asks_for_a_metric(output: Any) -> None:
    with pytest.raises(DataError) as caught:
        top1(output, HITS)
    assert "metric=" in caught.value.hint


@pytest.mark.parametrize("target", [torch.tensor([[0], [1], [2]]), torch.eye(3, dtype=torch.long)])
def test_targets_of_another_shape_never_score_one_sample_by_the_target_of_another(target: Tensor) -> None:
    with pytest.raises(DataError):
        evaluate(same, [(torch.eye(3), target)], None)


@pytest.mark.parametrize("inputs", [
    torch.zeros(3, 5), torch.zeros(3, 4, dtype=torch.float64), (LOGITS[:3], LOGITS[:3]), {"x": torch.zeros(3, 5)},
])
def test_a_batch_that_the_model_does_not_take_is_told_beside_the_example(inputs: Any) -> None:
    def picky(inputs: Any) -> Any:
        if inputs is not LOGITS:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return inputs

    with pytest.raises(DataError, match=r"does not take batch 1 of eval_data.*mat1 and mat2") as caught:
        evaluate(picky, [(LOGITS, HITS), (inputs, HITS[:3])], None, like=(LOGITS,))
    assert f"example_inputs float32 {tuple(LOGITS.shape)}" in caught.value.message


def test_an_error_on_a_batch_like_the_example_stays_what_it_is() -> None:
    def broken(inputs: Any) -> Any:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match=r"^a bug$"):
        evaluate(broken, [(LOGITS[:3], HITS[:3])], None, like=[LOGITS])


# -- one pass over the data -----------------------------------------------------------------------------------------


def test_evaluation_joins_the_scores_of_all_batches_in_order() -> None:
    found = evaluate(same, [(LOGITS[:3], HITS[:3]), (LOGITS[3:], HITS[3:])], None)
    assert found.values.tolist() == [1, 1, 1, 0]
    assert found.mean == 0.75
    assert found.values.dtype == np.float64


def test_evaluation_uses_the_metric_of_the_case() -> None:
    data = [(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))]
    found = evaluate(same, data, lambda output, target: (output - target).abs())
    assert found.values.tolist() == [0.5, 2.0]
    assert found.majority is None


def test_evaluation_remembers_targets_and_the_classes_of_the_default_metric() -> None:
    found = evaluate(same, [(LOGITS[:3], HITS[:3]), (LOGITS[3:], HITS[3:])], None)
    assert found.targets is not None
    assert found.predictions is not None
    assert found.targets.tolist() == HITS.tolist()
    assert found.predictions.tolist() == [0, 1, 2, 0]


def test_a_metric_of_the_user_s_leaves_no_classes_but_its_targets() -> None:
    data = [(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))]
    found = evaluate(same, data, lambda output, target: (output - target).abs())
    assert found.predictions is None
    assert found.targets is not None
    assert found.targets.tolist() == [0.5, 4.0]


@pytest.mark.parametrize("target", [torch.zeros(4, 2), (HITS, HITS), {"y": HITS}, "label", None])
def test_a_target_that_is_not_one_number_a_sample_is_not_told(target: Any) -> None:
    assert evaluate(same, [(LOGITS, target)], lambda output, target: torch.ones(4)).targets is None


def test_one_batch_with_another_form_of_target_leaves_none_for_all() -> None:
    data = [(LOGITS, HITS), (LOGITS, {"y": HITS}), (LOGITS, HITS)]
    found = evaluate(same, data, lambda output, target: torch.ones(4))
    assert found.targets is None
    assert found.majority is None


def test_a_map_has_no_single_class_a_sample() -> None:
    found = evaluate(same, [(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))], None)
    assert found.predictions is None
    assert found.targets is None


@pytest.mark.parametrize("form", [
    lambda logits: {"logits": logits, "hidden": logits * 2},
    lambda logits: (logits, [logits]),
    lambda logits: [logits],
])
def test_the_metric_gets_the_output_in_the_model_s_own_form(form: Callable[[Tensor], Any]) -> None:
    seen: list[Any] = []

    def metric(output: Any, target: Tensor) -> Tensor:
        seen.append(output)
        logits = output["logits"] if isinstance(output, dict) else output[0]
        return (logits.argmax(1) == target).float() / 2

    found = evaluate(form, [(LOGITS[:3], HITS[:3]), (LOGITS[3:], HITS[3:])], metric)
    assert found.values.tolist() == [0.5, 0.5, 0.5, 0]
    assert [type(output) for output in seen] == [type(form(LOGITS))] * 2


@pytest.mark.parametrize("form", [lambda logits: {"logits": logits}, lambda logits: (logits, 1), lambda logits: logits])
def test_the_classes_of_the_default_metric_are_found_in_every_form_of_output(form: Callable[[Tensor], Any]) -> None:
    found = evaluate(form, [(LOGITS, HITS)], None)
    assert found.predictions is not None
    assert found.predictions.tolist() == [0, 1, 2, 0]


def test_a_metric_may_answer_with_whole_numbers_truths_or_a_list() -> None:
    answers = iter([torch.tensor([True, False, True, True]), torch.tensor([3, 1, 0, 2]), [0.5, 1, 2, 3]])
    found = evaluate(same, [(LOGITS, HITS)] * 3, lambda output, target: next(answers))
    assert found.values.tolist() == [1, 0, 1, 1, 3, 1, 0, 2, 0.5, 1, 2, 3]


def test_a_metric_that_needs_a_gradient_is_no_matter() -> None:
    weight = torch.ones(4, requires_grad=True)
    assert evaluate(same, [(LOGITS, HITS)], lambda output, target: weight * 2).mean == 2


def test_evaluation_calls_the_model_on_inputs_of_every_form() -> None:
    seen = []
    evaluate(lambda inputs: seen.append(inputs) or LOGITS, [({"x": LOGITS}, HITS), ((LOGITS, 1), HITS)], None)
    assert [type(inputs) for inputs in seen] == [dict, tuple]


def test_the_majority_is_the_share_of_the_most_frequent_class() -> None:
    data = [(torch.zeros(3, 2), torch.tensor([0, 1, 1])), (torch.zeros(2, 2), torch.tensor([1, 0]))]
    assert evaluate(same, data, None).majority == pytest.approx(0.6)


def test_the_fingerprint_tells_another_order_from_the_same_data() -> None:
    data = [(LOGITS[:2], HITS[:2]), (LOGITS[2:], HITS[2:])]
    first, again, turned = (evaluate(same, batches, None).fingerprint for batches in (data, data, data[::-1]))
    assert first == again != turned


@pytest.mark.parametrize(("data", "message"), [
    ([], "eval_data is empty"), ([LOGITS], "a tensor of shape"), ([(LOGITS, HITS, HITS)], "tuple of 3"),
    (["ab"], "expected a pair"), ([{"x": LOGITS, "y": HITS}], "expected a pair"),
])
def test_data_of_another_form_are_refused(data: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate(same, data, None)
    assert caught.value.hint


@pytest.mark.parametrize(("metric", "message"), [
    (lambda output, target: torch.tensor(0.5), r"shape \(\) on a batch of 4 samples, expected \(4,\)"),
    (lambda output, target: 0.5, r"shape \(\) on a batch of 4"),
    (lambda output, target: torch.ones(3), r"shape \(3,\) on a batch of 4"),
    (lambda output, target: torch.ones(4, 1), r"shape \(4, 1\)"),
    (lambda output, target: torch.tensor([1, 1, 1, math.nan]), "NaN or infinity on batch 0"),
    (lambda output, target: torch.tensor([1, 1, 1, math.inf]), "NaN or infinity on batch 0"),
    (lambda output, target: 1 / 0, "ZeroDivisionError on batch 0"),
    (lambda output: torch.ones(4), "TypeError on batch 0"),
    (lambda output, target: None, "batch 0"),
])
def test_a_metric_that_gives_no_score_per_sample_is_refused(metric: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate(same, [(LOGITS, HITS)], metric)
    assert caught.value.hint


def test_the_batch_that_breaks_the_metric_is_named() -> None:
    with pytest.raises(DataError, match="batch 2"):
        evaluate(same, [(LOGITS, HITS)] * 2 + [(LOGITS[:1] * math.nan, HITS[:1])], lambda out, target: out.sum(dim=1))


def test_a_metric_of_the_user_s_is_not_held_to_the_majority() -> None:
    target = torch.zeros(20, dtype=torch.int64)
    data = [(torch.eye(2)[target], target)]
    assert evaluate(same, data, None).majority == 1.0
    assert evaluate(same, data, lambda output, target: torch.ones(len(target))).majority is None


def test_targets_of_any_floating_type_are_listed() -> None:
    target = torch.tensor([0.5, 1.5], dtype=torch.bfloat16)
    found = evaluate(same, [(torch.ones(2, 3), target)], lambda output, target: torch.tensor([0.0, 1.0]))
    assert found.targets is not None
    assert found.targets.tolist() == [0.5, 1.5]


# -- which output ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [
    {"boxes": torch.zeros(4, 4), "logits": LOGITS}, {"features": torch.ones(4, 7), "class_scores": LOGITS},
    (torch.zeros(4, 2, 5), LOGITS), {"out": LOGITS, "aux": torch.zeros(4, 3)},
])
def test_top_1_takes_the_output_that_its_name_or_the_target_tells(output: Any) -> None:
    assert top1(output, HITS).tolist() == [1, 1, 1, 0]


def test_top_1_does_not_guess_between_outputs_of_different_width() -> None:
    with pytest.raises(DataError, match=r"cannot tell which .*\[0\] \(4, 7\), \[1\] \(4, 3\)") as caught:
        top1((torch.ones(4, 7), LOGITS), HITS)
    assert "metric=" in str(caught.value.hint)


def test_the_output_that_was_scored_is_told() -> None:
    found = evaluate(lambda batch: {"boxes": torch.zeros(4, 4), "logits": LOGITS}, [(LOGITS, HITS)], None)
    assert found.scored == "['logits']"


def test_samples_are_counted_by_the_target_where_the_first_side_of_the_input_is_time() -> None:
    found = evaluate(lambda batch: LOGITS, [(torch.zeros(20, 4, 5), HITS)], None)
    assert found.values.tolist() == [1, 1, 1, 0]
