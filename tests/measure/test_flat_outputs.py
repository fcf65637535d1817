"""Outputs that int8 leaves flat."""

from __future__ import annotations

import pytest
import torch

from pytest_qat.measure.flat_outputs import FlatOutput, flat_outputs


def boxes(offset: float = 0.0, *, samples: int = 32) -> torch.Tensor:
    """Four coordinates of about the same spread, the last one far from zero."""
    torch.manual_seed(0)
    return torch.randn(samples, 4) + torch.tensor([0.0, 0.0, 0.0, offset])


def quantized(values: torch.Tensor) -> torch.Tensor:
    scale = float(values.max() - values.min()) / 255
    return (values / scale).round() * scale


def test_columns_that_one_scale_is_too_coarse_for_are_flat() -> None:
    reference = boxes(600.0)
    [found] = flat_outputs([reference[:16], reference[16:]], [quantized(reference)[:16], quantized(reference)[16:]],
                           samples=[16, 16])
    assert (found.output, found.of) == ("", 4)
    assert found.columns == (0, 1, 2, 3)
    assert found.spread == pytest.approx(float(reference[:, found.columns[0]].std()))
    assert found.values <= 4


@pytest.mark.parametrize(("left", "columns"), [(0.01, (0,)), (0.09, (0,)), (0.11, ())])
def test_a_column_that_shrinks_to_a_tenth_is_flat_however_many_values_it_takes(left: float,
                                                                              columns: tuple[int, ...]) -> None:
    reference = boxes()
    found = flat_outputs([reference], [reference * torch.tensor([left, 1, 1, 1])], samples=[32])
    assert [column for each in found for column in each.columns] == list(columns)
    assert all(each.values == 32 for each in found)


def test_scores_beside_boxes_in_pixels_are_checked() -> None:
    reference = torch.cat([boxes() * 300, boxes().sigmoid()], dim=1)
    (found,) = flat_outputs([reference], [quantized(reference)], samples=[len(reference)])
    assert found.columns == (4, 5, 6, 7)


def test_small_columns_are_checked_if_asked() -> None:
    reference, candidate = boxes() * torch.tensor([1, 1, 1, 0.01]), boxes() * torch.tensor([1, 1, 1, 0.0])
    (found,) = flat_outputs([reference], [candidate], samples=[len(reference)], small=True)
    assert found.columns == (3,)


@pytest.mark.parametrize(("reference", "candidate"), [
    pytest.param(boxes(), quantized(boxes()), id="eight bits"),
    pytest.param(boxes(), boxes() * 0.5, id="half as large"),
    pytest.param(boxes() * torch.tensor([1, 1, 1, 0.01]), boxes() * torch.tensor([1, 1, 1, 0.0]), id="a faint column"),
    pytest.param(torch.ones(32, 4), torch.ones(32, 4), id="constant in float, too"),
    pytest.param(boxes().mul(99).sigmoid(), quantized(boxes().mul(99).sigmoid()), id="saturated"),
    pytest.param(boxes(samples=4), torch.zeros(4, 4), id="too few samples"),
    pytest.param(torch.cat([boxes()] * 5, dim=1), torch.cat([boxes()] * 5, dim=1) * (torch.arange(20) > 0),
                 id="one of twenty"),
])
def test_outputs_that_vary_as_they_should_are_not_flat(reference: torch.Tensor, candidate: torch.Tensor) -> None:
    assert flat_outputs([reference], [candidate], samples=[len(reference)]) == ()


@pytest.mark.parametrize(("level", "faint"), [(0.0, False), (4.0, False), (10.0, True)])
def test_an_output_that_varies_by_a_small_share_of_its_size_in_float_is_faint(level: float, faint: bool) -> None:
    reference = boxes() + level
    [found] = flat_outputs([reference], [torch.full_like(reference, level)], samples=[32])
    assert found.relative == pytest.approx(1 / (1 + level**2) ** 0.5, rel=0.2)
    assert found.faint is faint


def test_the_scored_output_is_left_to_its_metric_and_each_other_is_looked_at() -> None:
    reference = {"logits": boxes(), "boxes": boxes(), "depth": boxes()[:, 0], "map": boxes().reshape(8, 4, 2, 2)}
    reference |= {"logits": reference["logits"][:8], "boxes": reference["boxes"][:8], "depth": reference["depth"][:8]}
    dead = {name: torch.zeros_like(tensor) for name, tensor in reference.items()}
    found = flat_outputs([reference], [dead], samples=[8], but="['logits']")
    assert [(each.output, each.of) for each in found] == [("['boxes']", 4), ("['depth']", 1), ("['map']", 4)]
    assert found[1] == FlatOutput(output="['depth']", columns=(0,), of=1, left=0.0, values=1,
                                  relative=pytest.approx(1.0, rel=0.1),
                                  spread=pytest.approx(float(reference["depth"].std())))
