"""The public strategies: what they reach, what they keep to, and how they refuse arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from pytest_qat.errors import InvalidOption
from pytest_qat.properties.examples import AffineExample
from pytest_qat.properties.ops import QParams
from pytest_qat.properties.oracle import step, unclamped
from pytest_qat.properties.strategies import (
    WIDE,
    affine_examples,
    channel_examples,
    code_range,
    fake_quantize_configs,
    largest_scale,
    observer_streams,
    per_channel,
    qparams,
    quantizable_tensors,
    values_for,
)

DTYPES = ("quint8", "qint8", "qint32", "int16", "uint4", "int4", "uint2", "int2")
QUICK = settings(max_examples=50, suppress_health_check=(), deadline=None)


def is_float32(value: float) -> bool:
    return not math.isfinite(value) or float(torch.tensor(value, dtype=torch.float32)) == value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["affine", "symmetric", "power_of_two"])
def test_qparams_are_valid(dtype: str, scheme: str) -> None:
    low, high = code_range(dtype)

    @QUICK
    @given(qparams(dtype, scheme))
    def check(params: QParams) -> None:
        assert (params.quant_min, params.quant_max) == (low, high)
        assert low <= params.zero_point <= high
        assert is_float32(params.scale)
        assert 2.0**-126 <= params.scale <= largest_scale(low, high)
        if scheme == "symmetric":
            assert params.zero_point == (0 if low < 0 else (low + high + 1) // 2)
        if scheme == "power_of_two":
            assert math.frexp(params.scale)[0] == 0.5

    check()


def test_the_bounds_of_scales_are_kept() -> None:
    @QUICK
    @given(qparams("qint8", min_scale=0.3, max_scale=0.4))
    def check(params: QParams) -> None:
        assert float(torch.tensor(0.3)) <= params.scale <= 0.4

    check()


@pytest.mark.parametrize("dtype", ["qint8", "quint8", "qint32", "int2"])
def test_values_are_float32_numbers(dtype: str) -> None:
    @QUICK
    @given(st.data(), qparams(dtype))
    def check(data: st.DataObject, params: QParams) -> None:
        values = data.draw(values_for(params, min_size=2, max_size=5))
        assert 2 <= len(values) <= 5
        assert all(is_float32(value) and math.isfinite(value) for value in values)

    check()


@pytest.mark.parametrize(("what", "condition"), [
    ("a tie", lambda x, params: step(x, params.scale) % 1 == 0.5),
    ("the lower end", lambda x, params: unclamped(x, params).low == params.quant_min),
    ("beyond the upper end", lambda x, params: unclamped(x, params).low > params.quant_max),
    ("a negative zero", lambda x, params: x == 0 and math.copysign(1, x) < 0),
    ("a subnormal", lambda x, params: 0 < abs(x) < 2.0**-126),
    ("float32's largest", lambda x, params: abs(x) > 3.4e38),
    ("over 2^31 steps", lambda x, params: abs(step(x, params.scale)) > 2**31)])
def test_what_matters_is_met_within_a_thousand_examples(what: str,
                                                         condition: Callable[[float, QParams], bool]) -> None:
    params = QParams(scale=0.5, zero_point=3)
    found = find(values_for(params), lambda values: any(condition(x, params) for x in values),
                 settings=settings(max_examples=1000, derandomize=True, database=None))
    assert found, what


def test_nan_and_infinity_come_only_where_they_are_allowed() -> None:
    params = QParams()

    @QUICK
    @given(values_for(params))
    def never(values: tuple[float, ...]) -> None:
        assert all(map(math.isfinite, values))

    never()
    for condition in (math.isnan, math.isinf):
        assert find(values_for(params, allow_nan=True, allow_infinity=True),
                    lambda values, condition=condition: any(map(condition, values)))


def test_without_huge_values_all_lie_near_the_range() -> None:
    @QUICK
    @given(affine_examples(allow_huge=False))
    def check(example: AffineExample) -> None:
        params = example.qparams
        assert all(abs(step(x, params.scale)) <= 260 or abs(x) <= 2.0**-126 for x in example.values)

    check()


def test_examples_shrink_to_one_element_with_scale_one() -> None:
    no_explaining = settings(phases=[Phase.generate, Phase.shrink], database=None, max_examples=2000)
    found = find(affine_examples(), lambda example: True, settings=no_explaining)
    assert found == AffineExample(qparams=QParams(scale=1.0, zero_point=0), values=(0.0,), size=0)
    wide = find(affine_examples(), lambda example: len(example.lanes) > 37 and example.layout == "strided",
                settings=no_explaining)
    assert (len(wide.lanes), wide.values, wide.qparams.scale) == (38, (0.0,), 1.0)


def test_tensors_come_in_every_layout() -> None:
    @QUICK
    @given(quantizable_tensors(QParams()))
    def check(tensor: torch.Tensor) -> None:
        assert tensor.dtype == torch.float32
        assert 1 <= tensor.numel() <= 136

    check()
    for layout in ("strided", "channels_last"):
        assert not find(quantizable_tensors(QParams(), layouts=[layout]), lambda x: x.numel() > 5).is_contiguous()


def test_channels_have_qparams_of_their_own_along_an_axis() -> None:
    @QUICK
    @given(channel_examples(min_channels=2))
    def check(example: Any) -> None:
        assert 2 <= len(example.rows) == len(example.qparams.scales) <= 4
        assert len({len(row) for row in example.rows}) == 1
        assert example.tensor().shape[example.axis] == len(example.rows)

    check()
    assert find(channel_examples(min_channels=2), lambda example: len(set(example.qparams.scales)) > 1)


def test_streams_keep_their_bounds() -> None:
    @QUICK
    @given(observer_streams(min_batches=2, max_batches=3, min_size=1, max_size=2, max_value=10.0))
    def check(stream: Any) -> None:
        assert 2 <= len(stream.batches) <= 3
        assert all(1 <= len(batch) <= 2 and all(abs(value) <= 10 for value in batch) for batch in stream.batches)

    check()


def test_configurations_have_codes_in_order() -> None:
    @QUICK
    @given(fake_quantize_configs())
    def check(config: Any) -> None:
        assert config.quant_min <= 0 < config.quant_max
        assert 0 < config.averaging_constant <= 1

    check()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: code_range("float8_e4m3fn"), "dtype is float8_e4m3fn"),
    (lambda: qparams("float32"), "dtype is float32"),
    (lambda: qparams("qint8", "cubic"), "scheme is 'cubic'"),
    (lambda: qparams(quant_min=3, quant_max=3), "3 to 3"),
    (lambda: qparams(min_scale=0), "min_scale is 0"),
    (lambda: qparams(min_scale=2, max_scale=1), "min_scale is 2"),
    (lambda: qparams(max_scale=math.nan), "max_scale is nan"),
    (lambda: values_for(QParams(), min_size=3, max_size=2), "min_size is 3"),
    (lambda: per_channel(min_channels=0), "min_channels is 0"),
    (lambda: quantizable_tensors(QParams(), layouts=["spiral"]), r"layouts are \['spiral'\]"),
    (lambda: quantizable_tensors(QParams(), layouts=[]), r"layouts are \[\]"),
    (lambda: observer_streams(min_batches=0), "0 to 4 batches")])
def test_arguments_that_make_no_sense_are_refused_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


def test_steps_of_wide_codes_stay_where_float32_can_tell_them_apart() -> None:
    @QUICK
    @given(qparams("qint32"))
    def check(params: QParams) -> None:
        assert abs(params.zero_point) <= WIDE
        assert params.scale * WIDE < 2.0**127

    check()


def test_no_health_check_is_silenced_and_none_complains() -> None:
    @settings(max_examples=200, suppress_health_check=(), database=None)
    @given(st.tuples(affine_examples(), channel_examples(), observer_streams()))
    def check(examples: Any) -> None:
        assert examples

    check()
