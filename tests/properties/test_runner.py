"""Running a law: repeatable, shrinking, fuzzing for as long as asked, whatever the implementation does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor

from fixtures.reference_ops import half_even
from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.laws import get_law
from pytest_qat.properties.ops import QParams, QuantOps
from pytest_qat.properties.runner import check_example, check_law, fuzz_law

RIGHT = half_even()


def with_quantize(quantize: Callable[..., Any]) -> QuantOps:
    return dataclasses.replace(RIGHT, name="mine", quantize=quantize)


def off_by_one_in(lane: int) -> QuantOps:
    def quantize(x: Tensor, *params: Any) -> Tensor:
        codes = RIGHT.quantize(x, *params).reshape(-1).clone()
        codes[lane:lane + 1] += 1
        return codes.clamp(params[2], params[3]).reshape(x.shape)
    return with_quantize(quantize)


@pytest.mark.parametrize("lane", [1, 7, 37, 100])
@pytest.mark.parametrize("law", ["P17_layout", "P20_cross_implementation", "P8_ties"])
def test_a_bug_in_one_lane_shrinks_to_the_smallest_tensor_that_has_it(law: str, lane: int) -> None:
    failure = check_law(get_law(law), off_by_one_in(lane))
    assert failure is not None
    assert failure.example.lanes == (0.0,) * (lane + 1)
    assert (failure.example.qparams, failure.example.layout) == (QParams(scale=1.0, zero_point=0), "contiguous")


def test_a_failure_of_the_sweep_alone_shrinks_to_one_value() -> None:
    def quantize(x: Tensor, *params: Any) -> Tensor:
        return RIGHT.quantize(x, *params) + (x == 101.0).int()

    failure = check_law(get_law("P20_cross_implementation"), with_quantize(quantize), examples=0)
    assert failure is not None
    assert failure.example.values == (101.0,)
    assert failure.example.qparams.scale == 1.0


def test_the_same_seed_tries_the_same_examples_and_another_one_others() -> None:
    def seen(seed: int) -> list[Any]:
        found: list[Any] = []

        def quantize(x: Tensor, *params: Any) -> Tensor:
            found.append((x.tolist(), params))
            return RIGHT.quantize(x, *params)

        check_law(get_law("P5_monotone"), with_quantize(quantize), seed=seed, examples=20)
        return found

    assert seen(0) == seen(0)
    assert seen(0) != seen(1)


def raising(x: Tensor, *params: Any) -> Tensor:
    raise RuntimeError("not implemented for this shape")


def in_place(x: Tensor, *params: Any) -> Tensor:
    codes = RIGHT.quantize(x, *params)
    x.zero_()
    return codes


@pytest.mark.parametrize(("quantize", "said"), [
    (raising, "quantize raised RuntimeError: not implemented for this shape"),
    (in_place, "quantize changed its argument"),
    (lambda x, *params: RIGHT.quantize(x, *params).tolist(), "quantize returned list"),
    (lambda x, *params: RIGHT.quantize(x, *params).float(), "quantize returned torch.float32"),
    (lambda x, *params: RIGHT.quantize(x, *params) > 0, "quantize returned torch.bool"),
    (lambda x, *params: RIGHT.quantize(x, *params).unsqueeze(0), "quantize returned the shape"),
    (lambda x, *params: torch.quantize_per_tensor(x.float(), 1.0, 0, torch.qint8), "quantize returned a quantized")])
def test_what_a_function_does_wrong_is_a_finding_in_its_own_words(quantize: Callable[..., Any], said: str) -> None:
    failure = check_law(get_law("P3_range"), with_quantize(quantize))
    assert failure is not None
    assert said in failure.lines[0]


def test_a_function_that_is_not_deterministic_is_a_finding() -> None:
    calls = itertools.count()

    def quantize(x: Tensor, *params: Any) -> Tensor:
        return RIGHT.quantize(x, *params) + (1000 if next(calls) == 10 else 0)

    failure = check_law(get_law("P3_range"), with_quantize(quantize))
    assert failure is not None
    assert "same example" in failure.lines[-1]


def test_one_example_can_be_tried_alone() -> None:
    example = AffineExample(qparams=QParams(), values=(0.0,), size=38)
    assert check_example(get_law("P17_layout"), RIGHT, example) is None
    assert check_example(get_law("P17_layout"), off_by_one_in(37), example) is not None


class Clock:
    """Moves a second with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_fuzzing_ends_in_time_and_finds_nothing_where_nothing_is() -> None:
    clock = Clock()
    assert fuzz_law(get_law("P4_zero_exact"), RIGHT, seconds=50, clock=clock) == []
    assert clock.now < 50 + 50 + 5  # each example of the last round looks at the clock


@pytest.mark.slow
def test_fuzzing_goes_on_after_a_failure() -> None:
    def quantize(x: Tensor, *params: Any) -> Tensor:
        codes = RIGHT.quantize(x, *params)
        wrong = (x.abs() > 1e20) | (x == 3.0)
        return torch.where(wrong, codes.clamp(-5, 5), codes)

    found = fuzz_law(get_law("P14_huge_finite"), with_quantize(quantize), seconds=4000, clock=Clock())
    assert len(found) > 1
    assert len({str(failure.example) for failure in found}) == len(found)


def test_the_user_s_profile_and_torch_s_state_are_left_alone() -> None:
    profile, threads = hypothesis.settings().max_examples, torch.get_num_threads()
    state = torch.get_rng_state()
    check_law(get_law("P18_threads"), RIGHT, examples=3)
    assert (hypothesis.settings().max_examples, torch.get_num_threads()) == (profile, threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_profile_of_the_user_s_that_draws_nothing_changes_nothing() -> None:
    hypothesis.settings.register_profile("none at all", phases=[], max_examples=1)
    before = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile("none at all")
    try:
        assert check_law(get_law("P17_layout"), off_by_one_in(37)) is not None
    finally:
        hypothesis.settings.load_profile(before)
