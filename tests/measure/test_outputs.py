"""Agreement of two models' outputs."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_qat.errors import DataError
from pytest_qat.measure.outputs import agreement_scores
from tests.measure.scored import HITS, LOGITS


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


def test_a_map_agrees_by_its_classes_or_by_its_values() -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 3, 8, 8)
    assert agreement_scores([image], [image + 0.02 * torch.randn_like(image)], samples=[4])[0].mean == 1
    classes = image * 5
    found, _ = agreement_scores([classes], [classes * 0.7], samples=[4])  # far in value, the same classes
    assert found.mean == 1


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


def test_outputs_of_different_shape_cannot_agree() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        agreement_scores([LOGITS], [LOGITS[:, :2]], samples=[len(LOGITS)])


def test_outputs_without_a_float_tensor_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="no floating-point tensor"):
        agreement_scores([HITS], [HITS], samples=[len(HITS)])


@pytest.mark.parametrize(("extra", "samples"), [(torch.ones(1), 4), (torch.tensor(1.0), 4), (torch.ones(2, 4, 5), 4)])
def test_outputs_that_have_no_row_for_each_sample_count_in_the_ratio_only(extra: torch.Tensor, samples: int) -> None:
    found, sqnr = agreement_scores([(extra, LOGITS)], [(extra * 0.5, LOGITS)], samples=[samples])
    assert found.values.tolist() == [1, 1, 1, 1]
    assert sqnr < math.inf


def test_outputs_without_any_row_for_each_sample_are_told_by_their_shapes() -> None:
    with pytest.raises(DataError, match=r"tensors of shape \(1,\), \(2, 3\) for a batch of 4 samples"):
        agreement_scores([(torch.ones(1), torch.ones(2, 3))], [(torch.ones(1), torch.ones(2, 3))], samples=[4])
