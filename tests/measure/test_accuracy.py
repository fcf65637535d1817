"""Per-sample scores and their comparison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import Accuracy, Scores, agreement_scores, compare_scores, evaluate, top1

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 8.0, 7.0]])
HITS = torch.tensor([0, 1, 2, 2])  # the last one is a miss


def same(value: Any) -> Any:
    return value


def scores(values: list[float], *, fingerprint: str = "data", majority: float | None = None) -> Scores:
    return Scores(values=np.array(values, dtype=np.float64), fingerprint=fingerprint, majority=majority)


def compared(fp32: list[float], int8: list[float], ptq: list[float] | None = None, **options: Any) -> Accuracy:
    options.setdefault("higher_is_better", True)
    return compare_scores(scores(fp32), scores(int8), None if ptq is None else scores(ptq), **options)


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


# -- agreement ------------------------------------------------------------------------------------------------------


def test_agreement_of_logits_is_the_share_of_equal_classes() -> None:
    other = LOGITS.clone()
    other[0] = torch.tensor([1.0, 2.0, 0.0])
    found, sqnr = agreement_scores([LOGITS[:2], LOGITS[2:]], [other[:2], other[2:]])
    assert found.values.tolist() == [0, 1, 1, 1]
    noise = math.sqrt(2) / float(LOGITS.norm())
    assert sqnr == pytest.approx(-20 * math.log10(noise), abs=1e-4)


def test_agreement_of_other_outputs_allows_an_error_of_a_tenth() -> None:
    reference = torch.tensor([[10.0], [10.0], [10.0], [0.0]])
    found, _ = agreement_scores([reference], [torch.tensor([[10.5], [10.999], [11.5], [0.0]])])
    assert found.values.tolist() == [1, 1, 0, 1]


def test_a_model_agrees_with_itself_entirely() -> None:
    found, sqnr = agreement_scores([{"a": LOGITS, "b": LOGITS[:, :1]}], [{"a": LOGITS, "b": LOGITS[:, :1]}])
    assert found.mean == 1
    assert sqnr == math.inf


def test_outputs_of_different_shape_cannot_agree() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        agreement_scores([LOGITS], [LOGITS[:, :2]])


def test_outputs_without_a_float_tensor_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="no floating-point tensor"):
        agreement_scores([HITS], [HITS])


# -- float against int8 ---------------------------------------------------------------------------------------------


def test_a_drop_is_positive_when_int8_is_worse() -> None:
    found = compared([1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0])
    assert (found.fp32, found.int8, found.ptq, found.drop, found.samples) == (1, 0.75, 0.5, 0.25, 4)
    assert found.drop_ci[0] < 0.25 < found.drop_ci[1]
    assert (found.p_value, found.ptq_p_value, found.kind) == (1, 1, "metric")


def test_the_sign_is_turned_where_lower_is_better() -> None:
    found = compared([0.1, 0.2, 0.3], [0.4, 0.2, 0.3], higher_is_better=False)
    assert found.drop == pytest.approx(0.1)
    assert (found.fp32, found.int8) == pytest.approx((0.2, 0.3))
    assert found.drop_ci[1] > 0


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_counting_errors_gives_the_same_verdict_as_counting_hits(pairs: list[tuple[bool, bool]]) -> None:
    before, after = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    hits = compared(before, after)
    errors = compared([1 - value for value in before], [1 - value for value in after], higher_is_better=False)
    assert errors.drop == pytest.approx(hits.drop)
    assert errors.p_value == pytest.approx(hits.p_value)
    assert errors.drop_ci == pytest.approx(hits.drop_ci)


def test_a_control_that_errs_exactly_like_int8_is_no_evidence_where_lower_is_better() -> None:
    found = compared([0.0] * 8, [0.5] * 8, [0.5] * 8, higher_is_better=False)
    assert found.ptq_p_value == 1
    assert found.p_value < 0.05


def test_without_a_control_there_is_nothing_to_say_about_it() -> None:
    found = compared([1, 0], [1, 0])
    assert found.ptq is None
    assert found.ptq_p_value is None


@pytest.mark.parametrize("who", ["int8", "ptq"])
@pytest.mark.parametrize("other", [scores([1, 0], fingerprint="turned"), scores([1, 0, 1])])
def test_passes_over_different_samples_are_refused(who: str, other: Scores) -> None:
    sides = {"int8": scores([1, 0]), "ptq": scores([1, 0]), who: other}
    with pytest.raises(DataError, match="different samples or another order") as caught:
        compare_scores(scores([1, 0]), sides["int8"], sides["ptq"], higher_is_better=True)
    assert "shuffle=False" in caught.value.hint


@pytest.mark.parametrize(("hits", "samples", "majority", "at_chance"), [
    (10, 10, 0.5, False), (6, 10, 0.5, True), (4, 4, 0.5, True), (90, 100, 0.9, True), (100, 100, 0.9, False),
    (10, 10, 1.0, True), (9, 10, None, False),
])
def test_a_float_model_that_only_names_the_majority_is_at_chance(hits: int, samples: int, majority: float | None,
                                                                 at_chance: bool) -> None:
    made = scores([1.0] * hits + [0.0] * (samples - hits), majority=majority)
    found = compare_scores(made, made, None, higher_is_better=True)
    assert found.at_chance is at_chance
    assert found.majority == majority


@pytest.mark.parametrize("options", [{"kind": "agreement", "sqnr": 30.0}, {}])
def test_chance_is_no_matter_for_agreement_or_scores_on_a_scale(options: dict) -> None:
    made = scores([1.0, 0.0] if options else [0.5, 0.25], majority=0.9)
    found = compare_scores(made, made, None, higher_is_better=True, **options)
    assert not found.at_chance
    assert found.majority is None
    assert found.sqnr_db == options.get("sqnr")
