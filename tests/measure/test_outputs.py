"""Agreement of two models' outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pytest_qat.errors import NotComparable
from pytest_qat.measure.accuracy import Scores
from pytest_qat.measure.output_forms import Form, form_of
from pytest_qat.measure.outputs import agreement_of
from tests.measure.scored import HITS, LOGITS


def agreement_scores(reference: Sequence[Any], candidate: Sequence[Any], **options: Any) -> tuple[Scores, float]:
    found = agreement_of(reference, candidate, **options)
    return found.scores, found.sqnr_db


def test_agreement_of_logits_is_the_share_of_equal_classes() -> None:
    other = LOGITS.clone()
    other[0] = torch.tensor([1.0, 2.0, 0.0])
    found, sqnr = agreement_scores([LOGITS[:2], LOGITS[2:]], [other[:2], other[2:]], samples=[2, len(LOGITS) - 2])
    assert found.values.tolist() == [0, 1, 1, 1]
    noise = math.sqrt(2) / float(LOGITS.norm())
    assert sqnr == pytest.approx(-20 * math.log10(noise), abs=1e-4)


def test_agreement_of_other_outputs_allows_an_error_of_a_tenth() -> None:
    """A tenth of their spread over the samples, which is 5 here."""
    reference = torch.tensor([[110.0], [110.0], [100.0], [100.0]])
    found, _ = agreement_scores([reference], [torch.tensor([[110.49], [109.4], [100.6], [100.0]])], samples=[4])
    assert found.values.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("batches", [1, 3])
def test_samples_near_zero_are_not_held_to_their_own_size(batches: int) -> None:
    """A regression around zero, 30 dB of noise: what counts is how far outputs differ from each other."""
    torch.manual_seed(0)
    reference = [torch.randn(64, 1) for _ in range(batches)]
    noisy = [tensor + 0.03 * torch.randn(64, 1) for tensor in reference]
    found, _ = agreement_scores(reference, noisy, samples=[64] * batches)
    assert found.mean > 0.99


def test_a_single_sample_is_held_to_its_own_size() -> None:
    found, _ = agreement_scores([torch.tensor([10.0])], [torch.tensor([10.9])], samples=[1])
    assert found.values.tolist() == [1]
    found, _ = agreement_scores([torch.tensor([10.0])], [torch.tensor([11.1])], samples=[1])
    assert found.values.tolist() == [0]


# -- maps -----------------------------------------------------------------------------------------------------------

SEED = torch.Generator().manual_seed(0)
IMAGE = torch.randn(4, 1, 8, 8, generator=SEED) + 0.1 * torch.randn(4, 3, 8, 8, generator=SEED)
"""Channels that go together, as colors do."""
CLASSES = 4 * torch.eye(5)[torch.randint(5, (4, 8, 8), generator=SEED)].permute(0, 3, 1, 2) + torch.randn(
    4, 5, 8, 8, generator=SEED)
"""Logits of five classes."""


@pytest.mark.parametrize(("made", "place", "target", "form"), [
    (LOGITS, "", None, Form.CLASSES),
    (LOGITS, "", torch.zeros(4, 3) - 0.5, Form.VALUES),
    (LOGITS, "", torch.eye(3)[HITS], Form.CLASSES),
    (LOGITS, "", (torch.zeros(4, 7), HITS), Form.CLASSES),
    (LOGITS[:, :1], "['logits']", None, Form.VALUES),
    (CLASSES, "", None, Form.UNKNOWN),
    (CLASSES, "['out_logits']", None, Form.CLASSES),
    (CLASSES, "", torch.zeros(4, 8, 8, dtype=torch.long), Form.CLASSES),
    (CLASSES, "", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), Form.CLASSES),
    (CLASSES, "", torch.randn(4, 5, 8, 8), Form.VALUES),
    (CLASSES, "", torch.randn(4, 9), Form.UNKNOWN),
    (CLASSES.softmax(1), "", None, Form.CLASSES),
    (CLASSES.log_softmax(1), "", None, Form.CLASSES),
    (IMAGE, "", None, Form.VALUES),
    (IMAGE, "", torch.zeros(4, 8, 8, dtype=torch.long), Form.CLASSES),
    (IMAGE[:, :1], "", None, Form.VALUES),
    (3 * torch.eye(300).reshape(1, 300, 300, 1), "", None, Form.VALUES),
    (torch.randn(4, 5, 7), "", None, Form.VALUES),
    (torch.randn(4), "", None, Form.VALUES),
])
def test_what_an_output_is_follows_from_targets_names_and_numbers(made: torch.Tensor, place: str, target: Any,
                                                                  form: Form) -> None:
    assert form_of([made], place=place, target=target) is form


def test_a_map_of_classes_agrees_by_the_share_of_its_positions() -> None:
    other = CLASSES.clone()
    other[0, :, 0, :4] = other[0, :, 0, :4].roll(1, dims=0)
    target = torch.zeros(4, 8, 8, dtype=torch.long)
    found = agreement_of([CLASSES], [other], samples=[4], target=target)
    assert found.scores.values.tolist() == pytest.approx([60 / 64, 1, 1, 1])
    assert found.same_class is None
    assert agreement_of([CLASSES], [CLASSES * 0.5], samples=[4], target=target).scores.mean == 1


def test_a_map_of_values_agrees_by_its_noise_and_never_by_its_largest_channel() -> None:
    """Half the size has the same largest channel everywhere, and is another image."""
    near, half = (agreement_of([IMAGE], [other], samples=[4]) for other in (
        IMAGE + 0.02 * torch.randn(IMAGE.shape, generator=SEED), IMAGE * 0.5))
    assert (near.scores.mean, near.same_class) == (1, None)
    assert (half.scores.mean, half.same_class) == (0, None)


def test_of_a_map_of_either_kind_both_are_told() -> None:
    found = agreement_of([CLASSES], [CLASSES * 0.5], samples=[4])
    assert (found.scores.mean, found.same_class) == (0, 1)


# -- outputs that do not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other", "seen"), [
    ([torch.ones(5, 4)], [torch.ones(4, 4)], ["(5, 4)", "(4, 4)"]),
    ([torch.ones(5, 4), torch.ones(5)], [torch.ones(4, 4)], ["(5, 4)", "(5,)", "missing"]),
    ([torch.ones(5, 4)], [None], ["(5, 4)", "missing"]),
    ([None], [torch.ones(5, 4)], ["(5, 4)", "missing"]),
    ({"boxes": torch.ones(3, 4)}, {"scores": torch.ones(3, 4)}, ["['boxes']", "['scores']", "missing"]),
    (LOGITS, LOGITS[:, :2], ["(4, 3)", "(4, 2)"]),
])
def test_outputs_of_different_form_cannot_be_compared(one: Any, other: Any, seen: list[str]) -> None:
    with pytest.raises(NotComparable) as caught:
        agreement_of([one], [other], samples=[4])
    assert all(part in caught.value.message for part in seen), caught.value.message
    assert "metric" in caught.value.hint


def test_what_goes_together_is_compared_and_what_does_not_is_told() -> None:
    found = agreement_of([{"logits": LOGITS, "boxes": torch.ones(5, 4)}] * 2,
                         [{"logits": LOGITS, "boxes": torch.ones(5, 4)}, {"logits": LOGITS, "boxes": torch.ones(3, 4)}],
                         samples=[4, 4])
    assert found.scores.mean == 1
    [ragged] = found.ragged
    assert "['boxes'] is (5, 4) in float and (3, 4) in int8 (batch 1)" in ragged


@pytest.mark.parametrize("outputs", [[HITS], ["text"], [None], [torch.ones(4, 0)], [()]])
def test_outputs_without_numbers_cannot_be_compared(outputs: list[Any]) -> None:
    with pytest.raises(NotComparable, match="no floating-point tensor"):
        agreement_of(outputs, outputs, samples=[4])


@pytest.mark.parametrize("extra", [torch.ones(0, 4), torch.ones(4, 0), HITS, "text", None])
def test_what_holds_no_numbers_beside_the_logits_is_no_matter(extra: Any) -> None:
    found = agreement_of([(LOGITS, extra)], [(LOGITS, extra)], samples=[4])
    assert found.scores.mean == 1
    assert found.ragged == ()


def test_a_batch_without_outputs_on_both_sides_is_no_difference() -> None:
    with pytest.raises(NotComparable, match="none with a row for each"):
        agreement_of([LOGITS, None], [LOGITS, None], samples=[4, 4])


def test_sequences_of_any_length_are_compared_by_value() -> None:
    torch.manual_seed(0)
    reference = [torch.randn(4, 7, 5), torch.randn(2, 9, 5)]
    other = [reference[0], -reference[1]]
    assert agreement_scores(reference, other, samples=[4, 2])[0].values.tolist() == [1, 1, 1, 1, 0, 0]


def test_a_model_agrees_with_itself_entirely() -> None:
    found, sqnr = agreement_scores([{"a": LOGITS, "b": LOGITS[:, :1]}], [{"a": LOGITS, "b": LOGITS[:, :1]}],
                                    samples=[len(LOGITS)])
    assert found.mean == 1
    assert sqnr == math.inf


@pytest.mark.parametrize(("extra", "samples"), [(torch.ones(1), 4), (torch.tensor(1.0), 4), (torch.ones(2, 4, 5), 4)])
def test_outputs_that_have_no_row_for_each_sample_count_in_the_ratio_only(extra: torch.Tensor, samples: int) -> None:
    found, sqnr = agreement_scores([(extra, LOGITS)], [(extra * 0.5, LOGITS)], samples=[samples])
    assert found.values.tolist() == [1, 1, 1, 1]
    assert sqnr < math.inf


def test_outputs_without_any_row_for_each_sample_are_told_by_their_shapes() -> None:
    with pytest.raises(NotComparable, match=r"tensors of shape \(1,\), \(2, 3\) for a batch of 4 samples"):
        agreement_scores([(torch.ones(1), torch.ones(2, 3))], [(torch.ones(1), torch.ones(2, 3))], samples=[4])
