"""Per-sample scores and their comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import Accuracy, Flip, Scores, agreement_scores, compare_scores, evaluate, top1

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 8.0, 7.0]])
HITS = torch.tensor([0, 1, 2, 2])  # the last one is a miss


def same(value: Any) -> Any:
    return value


def scores(values: Sequence[float], *, fingerprint: str = "data", majority: float | None = None,
           targets: Sequence[float] | None = None, predictions: Sequence[int] | None = None) -> Scores:
    return Scores(values=np.array(values, dtype=np.float64), fingerprint=fingerprint, majority=majority,
                  targets=None if targets is None else np.array(targets),
                  predictions=None if predictions is None else np.array(predictions))


def compared(fp32: Sequence[float], int8: Sequence[float], ptq: Sequence[float] | None = None,
             fine_tuned: Sequence[float] | None = None, **options: Any) -> Accuracy:
    options.setdefault("higher_is_better", True)
    twins = [None if values is None else scores(values) for values in (ptq, fine_tuned)]
    return compare_scores(scores(fp32), scores(int8), twins[0], fine_tuned=twins[1], **options)


def table(same: int, worse: int, better: int) -> Accuracy:
    """The comparison of 0/1 scores of which so many stay, turn wrong and turn right."""
    return compared([1.0] * same + [1.0] * worse + [0.0] * better, [1.0] * same + [0.0] * worse + [1.0] * better)


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


@pytest.mark.parametrize("who", ["int8", "ptq", "fine_tuned"])
@pytest.mark.parametrize(("other", "message", "hint"), [
    (scores([1, 0], fingerprint="turned"), "different samples or another order", "shuffle=False"),
    (scores([1, 0, 1]), "gave 2 and 3 samples", "iterated again"),
    (scores([1]), "gave 2 and 1 samples", "iterated again"),
])
def test_passes_over_different_samples_are_refused(who: str, other: Scores, message: str, hint: str) -> None:
    sides = {"int8": scores([1, 0]), "ptq": scores([1, 0]), "fine_tuned": scores([1, 0]), who: other}
    with pytest.raises(DataError, match=message) as caught:
        compare_scores(scores([1, 0]), sides["int8"], sides["ptq"], fine_tuned=sides["fine_tuned"],
                       higher_is_better=True)
    assert hint in caught.value.hint


def test_data_that_can_be_read_only_once_are_refused_and_not_compared_in_part() -> None:
    data = iter([(LOGITS[:2], HITS[:2]), (LOGITS[2:], HITS[2:])])
    first = evaluate(same, data, None)
    with pytest.raises(DataError, match="eval_data is empty"):
        evaluate(same, data, None)
    assert len(first.values) == 4


def test_data_that_shrink_between_two_models_are_refused_with_both_numbers() -> None:
    class Shrinking:
        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Any:
            self.left -= 1
            return iter([(LOGITS, HITS)] * self.left)

    data = Shrinking()
    first, second = evaluate(same, data, None), evaluate(same, data, None)
    with pytest.raises(DataError, match="gave 8 and 4 samples") as caught:
        compare_scores(first, second, None, higher_is_better=True)
    assert caught.value.hint


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


# -- flips ----------------------------------------------------------------------------------------------------------


def test_a_flip_tells_the_place_the_target_and_both_classes_of_the_default_metric() -> None:
    int8 = LOGITS.clone()
    int8[1] = torch.tensor([7.0, 3.0, 1.0])  # was right, names class 0 now
    int8[3] = torch.tensor([7.0, 8.0, 9.0])  # was wrong, is right now
    found = compare_scores(evaluate(same, [(LOGITS, HITS)], None), evaluate(same, [(int8, HITS)], None), None,
                           higher_is_better=True)
    assert found.flips == (Flip(index=1, target=1, before=1, after=0), Flip(index=3, target=2, before=0, after=2))
    assert found.flipped == 2


def test_a_sample_that_stays_wrong_in_another_way_is_no_flip() -> None:
    int8 = LOGITS.clone()
    int8[3] = torch.tensor([0.0, 9.0, 1.0])
    found = compare_scores(evaluate(same, [(LOGITS, HITS)], None), evaluate(same, [(int8, HITS)], None), None,
                           higher_is_better=True)
    assert found.flips == ()
    assert (found.flipped, found.drop) == (0, 0)


def test_a_flip_of_a_user_s_metric_tells_both_scores() -> None:
    target = torch.tensor([0.5, 4.0, 1.0])
    before, after = (evaluate(same, [(torch.tensor(values), target)], lambda output, want: (output - want).abs())
                     for values in ([1.0, 2.0, 1.0], [1.0, 3.5, 1.25]))
    found = compare_scores(before, after, None, higher_is_better=False)
    assert found.flips == (Flip(index=1, target=4.0, before=2.0, after=0.5),
                           Flip(index=2, target=1.0, before=0.0, after=0.25))


def test_a_flip_without_a_number_for_a_target_has_none() -> None:
    assert compared([1, 1], [1, 0]).flips == (Flip(index=1, target=None, before=1.0, after=0.0),)


def test_flips_are_plain_numbers_that_json_takes() -> None:
    int8 = LOGITS.roll(1, dims=0)
    found = compare_scores(evaluate(same, [(LOGITS, HITS)], None), evaluate(same, [(int8, HITS)], None), None,
                           higher_is_better=True)
    assert found.flips
    for flip in found.flips:
        assert {type(flip.index), type(flip.target), type(flip.before), type(flip.after)} == {int}


def test_no_more_than_a_thousand_flips_are_kept_and_those_are_the_largest_changes() -> None:
    small, large = [0.1] * 700, [0.9] * 600
    found = compared([0.0] * 2600, small + [0.0] * 300 + large + [-0.9] * 300 + small)
    assert found.flipped == 2300
    kept = {flip.index for flip in found.flips}
    assert len(kept) == len(found.flips) == 1000
    assert kept >= set(range(1000, 1900)), "every large change of either sign is among them"
    assert kept - set(range(1000, 1900)) == set(range(100)), "and of equal changes the first ones"


def test_a_thousand_flips_are_all_kept_in_order() -> None:
    found = compared([0.0] * 1001, [0.0] + [1.0] * 1000)
    assert [flip.index for flip in found.flips] == list(range(1, 1001))
    assert found.flipped == 1000


def test_a_control_or_a_fine_tuned_twin_has_no_part_in_the_flips() -> None:
    found = compared([1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1])
    assert found.flips == ()
    assert found.flipped == 0


# -- what the samples can prove -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "drop", "interval", "provable"), [
    # Agresti and Min by hand: (b - c) / (n + 2) +- 1.959964 sqrt((b + c + 1) / (n + 2) - centre**2) / sqrt(n + 2).
    ((98, 0, 0), 0.0, (-0.0195996, 0.0195996), 0.0195996),
    ((95, 3, 0), 0.0306122, (-0.0087558, 0.0687558), 0.0381435),
    ((95, 0, 3), -0.0306122, (-0.0687558, 0.0087558), 0.0393680),
    ((9994, 4, 0), 0.0004001, (-0.0000382, 0.0008382), 0.0004381),
    ((88, 6, 4), 0.0204082, (-0.0448864, 0.0848864), 0.0644782),
    ((1, 1, 0), 0.5, (-0.3981972, 0.8981972), 0.3981972),
])
def test_the_interval_and_what_it_can_prove_are_those_worked_out_by_hand(
        counts: tuple[int, int, int], drop: float, interval: tuple[float, float], provable: float) -> None:
    found = table(*counts)
    assert found.samples == sum(counts)
    assert found.flipped == counts[1] + counts[2]
    assert found.drop == pytest.approx(drop, abs=1e-7)
    assert found.drop_ci == pytest.approx(interval, abs=1e-7)
    assert found.provable_drop == pytest.approx(provable, abs=1e-7)


@pytest.mark.parametrize(("counts", "p_value"), [
    ((98, 0, 0), 1.0), ((95, 3, 0), 0.25), ((95, 0, 3), 0.25), ((88, 6, 4), 0.75390625), ((90, 10, 0), 2 / 2**10),
    ((90, 9, 1), 2 * 11 / 2**10), ((90, 5, 5), 1.0),
])
def test_the_significance_of_a_table_is_mcnemar_s_exact_one(counts: tuple[int, int, int], p_value: float) -> None:
    assert table(*counts).p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize(("counts", "tolerance", "needed"), [
    ((98, 0, 0), 0.02, 98),          # already proven
    ((98, 0, 0), 0.01, 377),         # 98 * 1.95996**2 = 376.5
    ((98, 0, 0), 0.005, 1506),       # 98 * (0.0195996 / 0.005)**2 = 1505.9
    ((95, 3, 0), 0.1, 98),
    ((95, 3, 0), 0.05, 380),         # 98 * (0.0381435 / 0.0193878)**2 = 379.3
    ((95, 3, 0), 3 / 98, None),      # the drop is all that is allowed
    ((95, 3, 0), 0.01, None),
    ((95, 0, 3), 0.0, 163),          # 98 * (0.0393680 / 0.0306122)**2 = 162.1
    ((98, 0, 0), 0.0, None),
])
def test_the_samples_needed_are_those_worked_out_by_hand(counts: tuple[int, int, int], tolerance: float,
                                                         needed: int | None) -> None:
    assert table(*counts).samples_needed(tolerance) == needed


def test_what_is_provable_is_proven_by_as_many_samples_as_there_are_and_no_less() -> None:
    found = table(500, 0, 0)
    assert found.samples_needed(found.provable_drop) == 500
    assert (found.samples_needed(found.provable_drop * 0.99) or 0) > 500


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 400), st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_looser_tolerance_never_needs_more_samples(right: int, worse: int, better: int, one: float,
                                                     other: float) -> None:
    found = table(right, worse, better)
    tight, loose = (found.samples_needed(tolerance) for tolerance in sorted((one, other)))
    assert tight is None or (loose is not None and loose <= tight)
    assert found.provable_drop >= 0


# -- the fine-tuned twin, and ratios --------------------------------------------------------------------------------


def test_the_fine_tuned_model_is_scored_and_compared_with_int8() -> None:
    found = compared([1.0] * 20, [1.0] * 10 + [0.0] * 10, [1.0] * 12 + [0.0] * 8, [1.0] * 19 + [0.0])
    assert (found.fp32, found.int8, found.ptq, found.fine_tuned) == (1, 0.5, 0.6, 0.95)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.ptq_p_value == pytest.approx(0.5)
    assert found.fine_tuned_p_value == pytest.approx(2 / 2**9)


def test_without_a_fine_tuned_model_there_is_nothing_to_say_about_it() -> None:
    found = compared([1, 0], [1, 0], [1, 0])
    assert found.fine_tuned is None
    assert found.fine_tuned_p_value is None
    assert found.ptq == 0.5


@pytest.mark.parametrize(("fp32", "int8", "higher_is_better", "relative"), [
    ([1, 1, 1, 1], [1, 1, 1, 0], True, 0.25), ([1, 1, 0, 0], [1, 0, 0, 0], True, 0.5),
    ([0.5, 0.5], [1.0, 0.75], False, 0.75), ([1, 0], [1, 1], True, -1.0),
    ([-2.0, -2.0], [-3.0, -3.0], True, 0.5), ([-2.0, -2.0], [-3.0, -3.0], False, -0.5),
    ([0, 0], [0, 0], True, None), ([1.0, -1.0], [-5.0, -5.0], True, None),
])
def test_the_relative_drop_is_a_share_of_the_float_score_and_nothing_at_zero(
        fp32: list[float], int8: list[float], higher_is_better: bool, relative: float | None) -> None:
    assert compared(fp32, int8, higher_is_better=higher_is_better).relative_drop == (
        None if relative is None else pytest.approx(relative))


def test_lower_is_better_turns_the_interval_and_what_it_proves_but_no_score() -> None:
    before = [0.25] * 40
    after = [0.25] * 20 + [0.5] * 20
    worse, better = (compared(before, after, after, before, higher_is_better=higher) for higher in (False, True))
    assert worse.drop == -better.drop == 0.125
    assert worse.drop_ci == (-better.drop_ci[1], -better.drop_ci[0])
    assert worse.drop_ci[0] < worse.drop < worse.drop_ci[1]
    assert worse.provable_drop == pytest.approx(worse.drop_ci[1] - 0.125)
    assert (worse.fp32, worse.int8, worse.ptq, worse.fine_tuned) == (0.25, 0.375, 0.375, 0.25)
    assert worse.p_value == better.p_value < 0.05
    assert worse.fine_tuned_p_value == worse.p_value
    assert worse.ptq_p_value == 1


def test_no_drop_is_a_plain_zero_whichever_way_is_better() -> None:
    found = compared([1, 0], [1, 0], higher_is_better=False)
    assert str(found.drop) == "0.0"


@pytest.mark.parametrize(("fp32", "int8", "is_fraction"), [
    ([0.0, 1.0], [1.0, 0.0], True), ([0.25, 0.5], [0.75, 0.5], True), ([0.25, 1.01], [0.75, 0.5], False),
    ([0.25, 0.5], [0.75, -0.01], False), ([30.0, 20.0], [29.0, 20.0], False),
])
def test_percent_are_the_right_words_only_where_all_scores_lie_between_0_and_1(
        fp32: list[float], int8: list[float], is_fraction: bool) -> None:
    assert compared(fp32, int8).is_fraction is is_fraction


def test_scores_on_another_scale_are_compared_without_mcnemar() -> None:
    drawn = np.random.default_rng(1)
    before = drawn.normal(30, 4, 200)
    clear, unclear = (compared(before, before - drawn.normal(mean, 0.5, 200)) for mean in (1, 0))
    assert clear.p_value < 0.001
    assert 0.8 < clear.drop_ci[0] < clear.drop < clear.drop_ci[1] < 1.2
    assert unclear.p_value > 0.05
    assert unclear.drop_ci[0] < 0 < unclear.drop_ci[1]
    assert not clear.is_fraction
    assert not clear.at_chance
    assert clear.flipped == 200


def test_scores_on_another_scale_give_the_same_figures_every_time() -> None:
    drawn = np.random.default_rng(2)
    before, after = drawn.normal(3, 1, (2, 50))
    assert compared(before, after) == compared(before, after)


def test_a_drop_of_one_sample_in_a_hundred_is_exactly_one_percent() -> None:
    assert compared([1.0] * 91 + [0.0] * 9, [1.0] * 90 + [0.0] * 10).drop == 0.01


def test_where_lower_is_better_few_errors_are_not_chance() -> None:
    errors = scores([1.0] * 2 + [0.0] * 98, majority=0.5)
    assert not compare_scores(errors, errors, None, higher_is_better=False).at_chance


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
