"""Examples: the tensors they become, how they are written down and read back, how they shrink."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.errors import DataError
from pytest_qat.properties.examples import (
    LAYOUTS,
    AffineExample,
    ChannelExample,
    IntegerExample,
    NetExample,
    StreamExample,
    decode,
    encode,
    laid_out,
    simpler,
)
from pytest_qat.properties.ops import ChannelQParams, QParams
from pytest_qat.properties.strategies import affine_examples, channel_examples, observer_streams


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [0, 1, 2, 6, 7, 64, 129])
def test_a_layout_keeps_the_logical_order(layout: str, size: int) -> None:
    flat = torch.arange(size, dtype=torch.float32)
    assert laid_out(flat, layout).flatten().tolist() == flat.tolist()


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last"])
def test_these_layouts_are_not_contiguous(layout: str) -> None:
    assert not laid_out(torch.arange(12.0), layout).is_contiguous()


def test_an_offset_starts_inside_a_storage() -> None:
    assert laid_out(torch.arange(5.0), "offset").storage_offset() == 1


def test_values_are_repeated_to_the_size() -> None:
    example = AffineExample(qparams=QParams(), values=(1.0, 2.0, 3.0), size=7)
    assert example.lanes == (1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0)
    assert example.tensor().flatten().tolist() == list(example.lanes)


@pytest.mark.parametrize(("ndim", "axis"), [(ndim, axis) for ndim in range(1, 5) for axis in range(-ndim, ndim)])
def test_channels_lie_along_their_axis(ndim: int, axis: int) -> None:
    params = ChannelQParams(scales=(1.0, 2.0, 3.0), zero_points=(0, 1, 2), axis=axis)
    rows = ((1.0,), (2.0,), (3.0,)) if ndim == 1 else ((1.0, 4.0), (2.0, 5.0), (3.0, 6.0))
    example = ChannelExample(qparams=params, rows=rows, ndim=ndim)
    tensor = example.tensor()
    assert tensor.ndim == ndim
    assert tensor.shape[axis] == 3
    assert example.gathered(tensor).tolist() == [list(row) for row in rows]


@given(st.one_of(affine_examples(), channel_examples(), observer_streams()))
def test_what_is_written_is_read_back(example: Any) -> None:
    assert decode(type(example), json.loads(json.dumps(encode(example)))) == example


@pytest.mark.parametrize("example", [
    IntegerExample(x=((1, 2),), weight=((3, -4), (5, 6)), bias=(0.1, 2.0)), NetExample(layers=("conv", "add"), seed=3),
    StreamExample(batches=((math.inf,), ()))])
def test_every_form_is_written_and_read(example: Any) -> None:
    assert decode(type(example), json.loads(json.dumps(encode(example)))) == example


def test_floats_are_written_exactly() -> None:
    assert encode(AffineExample(qparams=QParams(scale=0.1), values=(1 / 3,)))["values"] == ["0x1.5555555555555p-2"]


def test_nan_is_written_and_read() -> None:
    example = decode(StreamExample, encode(StreamExample(batches=((math.nan,),))))
    assert math.isnan(example.batches[0][0])


@pytest.mark.parametrize("data", [None, [], {}, {"values": 3}, {"qparams": {}, "values": ["one"]},
                                  {"qparams": {"scale": "0x1p0", "zero_point": "0"}, "values": []},
                                  {"qparams": {}, "values": ["0x1p0"], "color": "red"}])
def test_other_data_are_refused_in_one_sentence(data: Any) -> None:
    with pytest.raises(DataError, match="AffineExample"):
        decode(AffineExample, data)


def test_smaller_forms_have_fewer_values_and_plainer_layouts() -> None:
    example = AffineExample(qparams=QParams(), values=(1.0, 2.0, 3.0, 4.0), size=9, layout="strided")
    found = list(simpler(example))
    assert {smaller.layout for smaller in found} == {"contiguous", "strided"}
    assert {len(smaller.values) for smaller in found} == {2, 3, 4}
    assert all(set(smaller.values) <= set(example.values) for smaller in found)


def test_a_single_plain_value_cannot_shrink() -> None:
    assert list(simpler(AffineExample(qparams=QParams(), values=(1.0,)))) == []
