"""The census of an artifact: made-up tensors, and files that the torch runtime wrote of a float and an int8 model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.finetune import calibrate
from pytest_qat.measure.size import SizeCensus, census_of, take_census
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes.base import Deployed, StoredTensor
from pytest_qat.runtimes.torch import deploy_form
from pytest_qat.workflows import fx

IMAGES = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """A convolution, and two linear layers that share their weight if asked to."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.relu = nn.ReLU()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.relu(self.conv(x)).mean((2, 3))))


def int8_of(model: nn.Module, *, skip: Sequence[str] = ()) -> nn.Module:
    recipe = get_recipe("fx-x86")
    with preserved_torch_state(), quantized_engine("x86"):
        prepared = fx.prepare(QATCase(model=model, example_inputs=(IMAGES,), skip=skip), recipe)
        calibrate(prepared.module, [(IMAGES,)])
        return fx.convert(prepared, recipe).module


def deployed(model: nn.Module, folder: Path) -> Deployed:
    return deploy_form(model.eval(), folder / "artifact.pt", engine="x86",
                                        channels_last=False)


def tensor(name: str, size_bytes: int, *, dtype: str = "float32", shape: tuple[int, ...] = (2, 2)) -> StoredTensor:
    return StoredTensor(name=name, dtype=dtype, shape=shape, size_bytes=size_bytes)


def names(tensors: Sequence[StoredTensor]) -> list[str]:
    return [entry.name for entry in tensors]


def test_bytes_are_counted_by_dtype_most_first() -> None:
    census = census_of([tensor("a", 10), tensor("b", 100, dtype="qint8"), tensor("c", 30)], total_bytes=200)
    assert list(census.by_dtype.items()) == [("qint8", 100), ("float32", 40)]
    assert names(census.tensors) == ["b", "c", "a"]
    assert (census.total_bytes, census.container_bytes) == (200, 60)


def test_tensors_of_one_size_stay_in_the_order_of_the_artifact() -> None:
    assert names(census_of([tensor("b", 5), tensor("a", 5), tensor("c", 6)], total_bytes=16).tensors) == ["c", "b", "a"]


def test_a_file_without_tensors_is_all_container() -> None:
    census = census_of([], total_bytes=700)
    assert (census.by_dtype, census.tensors, census.container_bytes) == ({}, (), 700)
    assert census.float_weights(least_share=0.0) == ()


def test_a_file_smaller_than_its_tensors_because_it_packs_them_has_no_container() -> None:
    assert census_of([tensor("a", 1000)], total_bytes=600).container_bytes == 0


@pytest.mark.parametrize(("dtype", "shape", "size_bytes", "named"), [
    ("float32", (4, 5), 80, True), ("float16", (4, 5), 80, True), ("bfloat16", (4, 5), 80, True),
    ("float64", (1, 1, 4, 5), 80, True), ("float32", (4, 5), 50, True), ("float32", (4, 5), 49, False),
    ("float32", (20,), 80, False), ("float32", (), 80, False),
    ("qint8", (4, 5), 80, False), ("int64", (4, 5), 80, False), ("uint8", (4, 5), 80, False),
])
def test_float_weights_are_float_tensors_of_two_sides_with_a_share_of_the_file(
        dtype: str, shape: tuple[int, ...], size_bytes: int, named: bool) -> None:
    census = census_of([tensor("w", size_bytes, dtype=dtype, shape=shape)], total_bytes=1000)
    assert names(census.float_weights(least_share=0.05)) == (["w"] if named else [])


def test_float_weights_come_largest_first() -> None:
    census = census_of([tensor("a", 60), tensor("b", 90), tensor("c", 70)], total_bytes=1000)
    assert names(census.float_weights(least_share=0.05)) == ["b", "c", "a"]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.builds(tensor, st.sampled_from("abc"), st.integers(0, 10**9),
                          dtype=st.sampled_from(["float32", "qint8", "int64"]))), st.integers(0, 10**9))
def test_every_byte_of_a_tensor_is_counted_once(tensors: list[StoredTensor], total: int) -> None:
    census = census_of(tensors, total_bytes=total)
    assert sum(census.by_dtype.values()) == sum(entry.size_bytes for entry in tensors)
    assert sorted(names(census.tensors)) == sorted(names(tensors))
    assert census.container_bytes == max(0, total - sum(census.by_dtype.values()))


# -- of real artifacts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fp32_census(tmp_path_factory: pytest.TempPathFactory) -> SizeCensus:
    return take_census(deployed(Net(), tmp_path_factory.mktemp("fp32")))


@pytest.fixture(scope="module")
def int8_census(tmp_path_factory: pytest.TempPathFactory) -> SizeCensus:
    return take_census(deployed(int8_of(Net()), tmp_path_factory.mktemp("int8")))


def test_a_float_model_is_all_float_with_every_parameter_by_name(fp32_census: SizeCensus) -> None:
    assert {entry.name: entry.size_bytes for entry in fp32_census.tensors} == {
        "conv.weight": 4 * 32 * 27, "conv.bias": 4 * 32, "first.weight": 4 * 32 * 32, "first.bias": 4 * 32,
        "second.weight": 4 * 32 * 32, "second.bias": 4 * 32}
    assert fp32_census.by_dtype == {"float32": 4 * (32 * 27 + 2 * 32 * 32 + 3 * 32)}
    assert names(fp32_census.tensors[:2]) == ["first.weight", "second.weight"]


def test_an_int8_model_s_packed_linear_weights_are_counted_too(int8_census: SizeCensus) -> None:
    sizes = {entry.name: entry.size_bytes for entry in int8_census.tensors if entry.dtype == "qint8"}
    assert sizes.pop("conv.weight") == 32 * 27
    assert sorted(sizes.values()) == [32 * 32, 32 * 32]
    assert all(name.startswith(("first.", "second.")) for name in sizes)
    assert int8_census.by_dtype["qint8"] == 32 * 27 + 2 * 32 * 32
    assert next(iter(int8_census.by_dtype)) == "qint8"
    assert int8_census.by_dtype["float32"] < 4 * 3 * 32 + 100, "biases and scales are all that is float"


def test_tensors_and_container_make_up_the_file(fp32_census: SizeCensus, int8_census: SizeCensus) -> None:
    for census in (fp32_census, int8_census):
        assert 0 < census.container_bytes < census.total_bytes
        assert census.container_bytes + sum(census.by_dtype.values()) == census.total_bytes


def test_an_int8_model_has_no_float_weights_left_and_a_float_model_has_all(fp32_census: SizeCensus,
                                                                          int8_census: SizeCensus) -> None:
    assert int8_census.float_weights(least_share=0.0) == ()
    assert names(fp32_census.float_weights(least_share=0.05)) == ["first.weight", "second.weight", "conv.weight"]


def test_float_weights_left_behind_are_named(tmp_path: Path) -> None:
    census = take_census(deployed(int8_of(Net(), skip=["second"]), tmp_path))
    [left] = census.float_weights(least_share=0.05)
    assert (left.name, left.dtype, left.shape, left.size_bytes) == ("second.weight", "float32", (32, 32), 4096)


def test_a_shared_weight_is_counted_once_as_the_file_holds_it_once(tmp_path: Path, fp32_census: SizeCensus) -> None:
    census = take_census(deployed(Net(tied=True), tmp_path))
    assert fp32_census.by_dtype["float32"] - census.by_dtype["float32"] == 4 * 32 * 32
    assert fp32_census.total_bytes - census.total_bytes >= 4 * 32 * 32
    assert names(census.float_weights(least_share=0.05)) == ["first.weight", "conv.weight"]
