"""Signal-to-quantization-noise ratio, and the three forms of one model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pytest_qat.errors import NotComparable
from pytest_qat.measure.parity import compare_parity, sqnr_db

VALUES = st.lists(st.floats(-1e3, 1e3).filter(lambda value: abs(value) > 1e-3), min_size=1, max_size=20)


@pytest.mark.parametrize(("signal", "noisy", "expected"), [
    ([10.0], [11.0], 20.0), ([10.0], [9.0], 20.0), ([1.0, 0.0], [1.0, 0.01], 40.0), ([3.0, 4.0], [0.0, 0.0], 0.0),
    ([1.0], [11.0], -20.0), ([1.0, 2.0], [1.0, 2.0], math.inf), ([0.0], [0.0], math.inf), ([0.0], [1.0], -math.inf),
    ([], [], math.inf), ([1e-40, 2e-41], [0.0, 0.0], math.inf), ([0.0], [1e-39], math.inf),
])
def test_the_ratio_is_that_of_the_norms_in_decibels(signal: list[float], noisy: list[float], expected: float) -> None:
    assert sqnr_db(torch.tensor(signal), torch.tensor(noisy)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("broken", [math.inf, -math.inf])
def test_an_infinite_output_is_infinitely_noisy(broken: float) -> None:
    assert sqnr_db(torch.ones(2), torch.tensor([1.0, broken])) == -math.inf


@pytest.mark.parametrize(("signal", "noisy"), [([1.0], [math.nan]), ([math.nan], [1.0])])
def test_a_ratio_of_nan_passes_for_nothing_good(signal: list[float], noisy: list[float]) -> None:
    assert not sqnr_db(torch.tensor(signal), torch.tensor(noisy)) >= 0


@settings(deadline=None, derandomize=True)
@given(VALUES, st.integers(-20, 20))
def test_scaling_both_by_a_power_of_two_changes_nothing(values: list[float], exponent: int) -> None:
    signal = torch.tensor(values)
    noisy = signal * 1.125
    assert sqnr_db(signal * 2.0**exponent, noisy * 2.0**exponent) == pytest.approx(sqnr_db(signal, noisy))
    assert sqnr_db(signal, noisy) == pytest.approx(20 * math.log10(8), abs=1e-3)


@settings(deadline=None, derandomize=True)
@given(VALUES)
def test_ten_times_the_noise_is_twenty_decibels_less(values: list[float]) -> None:
    signal = torch.tensor(values, dtype=torch.float64)
    quiet, loud = (sqnr_db(signal, signal * (1 + error)) for error in (1e-4, 1e-3))
    assert quiet - loud == pytest.approx(20, abs=1e-6)


def test_each_form_is_compared_with_the_one_before_it() -> None:
    found = compare_parity(lambda x: x, lambda x: x * 1.1, lambda x: x * 1.1 * 1.01, [torch.ones(3), torch.ones(2)])
    assert found.quantization_sqnr_db == pytest.approx(20, abs=1e-3)
    assert found.sqnr_db == pytest.approx(40, abs=1e-3)
    assert found.finite


def test_forms_that_are_equal_agree_without_bound() -> None:
    found = compare_parity(torch.relu, torch.relu, torch.relu, [torch.ones(3)])
    assert (found.sqnr_db, found.quantization_sqnr_db) == (math.inf, math.inf)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_single_output_that_is_not_finite_shows(broken: float) -> None:
    def breaking(x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x)) == 1, broken, x)

    assert not compare_parity(lambda x: x, lambda x: x * 1.1, breaking, [torch.ones(3)]).finite


@pytest.mark.parametrize("wrap", [lambda x: {"a": x}, lambda x: (x, 1), lambda x: [x, [x, torch.ones(1).long()]]])
def test_outputs_may_nest(wrap: Any) -> None:
    found = compare_parity(wrap, wrap, lambda x: wrap(x * 1.1), [torch.ones(3)])
    assert found.sqnr_db == pytest.approx(20, abs=1e-3)


def test_a_quantized_output_is_compared_by_its_values() -> None:
    found = compare_parity(lambda x: x, lambda x: x, lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8),
                           [torch.tensor([1.0, 2.0])])
    assert found.sqnr_db == math.inf


def test_outputs_without_a_float_tensor_are_refused() -> None:
    with pytest.raises(NotComparable, match="no floating-point tensor"):
        compare_parity(torch.argmax, torch.argmax, torch.argmax, [torch.ones(3)])


def outputs(noise: dict[str, float], *, fewer: bool = False) -> Any:
    """A detector's outputs: boxes in pixels, and scores a thousand times smaller."""
    generator = torch.Generator().manual_seed(0)
    made = {"boxes": 300 * torch.rand(8, 400, generator=generator), "scores": torch.rand(8, 100, generator=generator),
            "loss": torch.rand(1, generator=generator)}
    changed = {name: values * (1 + noise.get(name, 0.0)) for name, values in made.items()}
    return lambda _: {"boxes": changed["boxes"]} if fewer else changed


def test_a_large_output_does_not_hide_what_became_of_a_small_one() -> None:
    found = compare_parity(outputs({}), outputs({"boxes": 0.01, "scores": 0.01}),
                           outputs({"boxes": 0.011, "scores": 1.0}), [None])
    assert found.output == "['scores']"
    assert found.sqnr_db == pytest.approx(20 * math.log10(1.01 / 0.99), abs=1e-2)
    assert found.sqnr_db < found.limit_db


def test_a_few_values_are_no_output_of_their_own() -> None:
    found = compare_parity(outputs({}), outputs({"boxes": 0.01}), outputs({"boxes": 0.011, "loss": 1.0}), [None])
    assert found.output in ("", "['boxes']")
    assert found.sqnr_db > found.limit_db


def test_forms_that_return_outputs_of_other_sizes_cannot_be_compared() -> None:
    boxes = [torch.ones(5, 4), torch.ones(5, 4), torch.ones(4, 4)]
    with pytest.raises(NotComparable, match=r"return 20, 20 and 16 values in output \['boxes'\]"):
        compare_parity(*(lambda batch, made=made: {"boxes": made} for made in boxes), [None])


def test_a_form_that_returns_nothing_is_told_apart_from_those_that_do() -> None:
    with pytest.raises(NotComparable, match="return 1, 0 and 0 floating-point tensors"):
        compare_parity(lambda batch: [torch.ones(3)], lambda batch: None, lambda batch: [None], [None])


def test_forms_that_return_more_or_fewer_tensors_cannot_be_compared() -> None:
    with pytest.raises(NotComparable, match="return 3, 3 and 1 floating-point tensors"):
        compare_parity(outputs({}), outputs({}), outputs({}, fewer=True), [None])


def test_nan_of_the_prepared_model_is_told() -> None:
    found = compare_parity(lambda x: x, lambda x: x * math.nan, lambda x: x, [torch.ones(3)])
    assert (found.finite, found.prepared_finite) == (True, False)


@pytest.mark.parametrize("form", [torch.zeros(0), {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}])
def test_outputs_without_a_value_compare_nothing(form: Any) -> None:
    """As those of a detector with random weights, which finds no box: agreement of nothing is no agreement."""
    with pytest.raises(NotComparable, match="empty"):
        compare_parity(lambda _: form, lambda _: form, lambda _: form, [0])


def test_one_empty_output_beside_another_is_no_harm() -> None:
    form = {"boxes": torch.zeros(0, 4), "scores": torch.ones(8)}
    assert compare_parity(lambda _: form, lambda _: form, lambda _: form, [0]).holds
