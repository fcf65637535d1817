"""The laws: each planted bug is killed by the law that names it, and correct implementations survive all of them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

from fixtures import c_ops, numpy_ops, reference_ops
from fixtures.mutants import MUTANTS, Mutant
from pytest_qat.properties.laws import LAWS, get_law, laws_for
from pytest_qat.properties.runner import check_law

ROWS = {
    "P": range(1, 23), "C": range(1, 11), "S": range(1, 5), "F": range(1, 12), "O": range(1, 14), "R": range(1, 9),
    "M": range(1, 12)}
CORRECT = (
    reference_ops.half_even(), pytest.param(reference_ops.half_away(), marks=pytest.mark.slow),
    pytest.param(reference_ops.half_up(), marks=pytest.mark.slow), numpy_ops.ops(), c_ops.ops(),
    reference_ops.min_max(), reference_ops.symmetric(), reference_ops.min_max_channels(),
    reference_ops.moving_average(), reference_ops.integer_ops(), reference_ops.learnable())


def test_every_row_of_the_list_of_laws_has_a_law() -> None:
    numbers = {law.name.split("_")[0] for law in LAWS}
    assert {f"{family}{number}" for family, rows in ROWS.items() for number in rows} <= numbers


def test_names_are_unique_and_every_law_says_what_it_demands() -> None:
    assert len({law.name for law in LAWS}) == len(LAWS)
    for law in LAWS:
        assert len(inspect.getdoc(law.statement) or "") > 20, law.name
        assert law.summary.endswith((".", ":")), law.name


def test_there_are_enough_mutants_and_each_has_a_name() -> None:
    assert len(MUTANTS) >= 40
    assert len({mutant.ops.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.ops.name)
def test_a_mutant_is_killed_by_its_law(mutant: Mutant) -> None:
    failure = check_law(get_law(mutant.killed_by), mutant.ops, shrink=False)
    assert failure is not None
    assert failure.law == mutant.killed_by
    assert failure.lines


def test_a_kernel_that_saturates_is_exact_for_activations_of_seven_bits() -> None:
    saturating = next(mutant.ops for mutant in MUTANTS if "saturate in 16 bits" in mutant.ops.name)
    narrow = dataclasses.replace(saturating, activation_max=127)
    assert [law.name for law in laws_for(narrow) if check_law(law, narrow, examples=15) is not None] == []


@pytest.mark.parametrize("ops", CORRECT, ids=lambda ops: ops.name)
def test_a_correct_implementation_survives_every_law(ops: Any) -> None:
    """Twenty seeds are tried by `tests.benchmarks.laws`."""
    for law in laws_for(ops):
        failure = check_law(law, ops, seed=1, examples=30)
        assert failure is None, failure


@pytest.mark.parametrize(("low", "high"), [
    (-8, 7), (0, 15), (-2, 1), (0, 3), pytest.param(-127, 127, marks=pytest.mark.slow),
    pytest.param(-2**15, 2**15 - 1, marks=pytest.mark.slow)])
def test_other_ranges_of_codes_are_served(low: int, high: int) -> None:
    ops = dataclasses.replace(reference_ops.half_even(), quant_min=low, quant_max=high)
    for law in laws_for(ops):
        failure = check_law(law, ops, examples=5)
        assert failure is None, failure


def test_laws_need_what_they_speak_about() -> None:
    bare = dataclasses.replace(reference_ops.half_even(), fake_quantize=None, quantize_per_channel=None,
                               dequantize_per_channel=None)
    assert {law.name[0] for law in laws_for(bare)} == {"P"}
    assert {law.name[0] for law in laws_for(reference_ops.half_even())} == {"P", "C", "F"}
    assert {law.name[0] for law in laws_for(reference_ops.symmetric())} == {"O", "S"}


def test_a_kernel_that_dies_is_reported_by_its_signal() -> None:
    import os
    import signal

    def quantize(x: torch.Tensor, scale: float, *rest: Any) -> torch.Tensor:
        if scale == 0:
            os.kill(os.getpid(), signal.SIGFPE)
        return reference_ops.half_even().quantize(x, scale, *rest)

    failure = check_law(get_law("P15_scale_domain"), dataclasses.replace(reference_ops.half_even(), quantize=quantize))
    assert failure is not None
    assert "the process died of SIGFPE" in failure.lines[1]


def test_a_promise_of_raising_for_nan_is_held() -> None:
    law = get_law("P13_nan_and_infinity")
    promising = dataclasses.replace(reference_ops.half_even(), nan="raises")
    failure = check_law(law, promising)
    assert failure is not None
    assert "expected an exception" in failure.lines[1]

    def quantize(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.isnan().any():
            raise ValueError("NaN")
        return reference_ops.half_even().quantize(x, *rest)

    assert check_law(law, dataclasses.replace(promising, quantize=quantize)) is None


def test_nan_is_nobody_s_business_where_nothing_is_promised() -> None:
    def quantize(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        codes = reference_ops.half_even().quantize(x, *rest)
        return torch.where(x.isnan(), torch.arange(x.numel()).reshape(x.shape).int() % 100, codes)

    odd = dataclasses.replace(reference_ops.half_even(), quantize=quantize, nan=None)
    assert check_law(get_law("P13_nan_and_infinity"), odd) is None
    assert check_law(get_law("P13_nan_and_infinity"), dataclasses.replace(odd, nan="zero_point")) is not None


def test_a_kernel_that_wants_contiguous_tensors_fails_the_law_about_layouts_alone() -> None:
    def quantize(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return reference_ops.half_even().quantize(x.view(-1), *rest).view(x.shape)

    ops = dataclasses.replace(reference_ops.half_even(), quantize=quantize, fake_quantize=None,
                              quantize_per_channel=None, dequantize_per_channel=None)
    assert {law.name for law in laws_for(ops) if check_law(law, ops, examples=10) is not None} == {"P17_layout"}
