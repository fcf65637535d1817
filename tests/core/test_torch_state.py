"""Global torch state is what it was, also after an error."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine, threads, without_fast_path
from pytest_qat.errors import UnsupportedEnvironment


def state() -> tuple[object, ...]:
    return (torch.backends.quantized.engine, torch.get_num_threads(), torch.get_rng_state().tolist(),
            random.getstate(), np.random.get_state()[1].tolist(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled())


def disturb() -> None:
    torch.backends.quantized.engine = "qnnpack"
    torch.set_num_threads(1)
    torch.randn(3)
    random.random()
    np.random.rand(3)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)


def test_everything_is_restored() -> None:
    before = state()
    with preserved_torch_state(seed=3):
        disturb()
    assert state() == before


def test_everything_is_restored_after_an_error() -> None:
    before = state()
    with pytest.raises(RuntimeError, match="midway"), preserved_torch_state():
        disturb()
        raise RuntimeError("midway")
    assert state() == before


def test_the_seed_makes_all_generators_repeat() -> None:
    def draw() -> tuple[float, float, float]:
        with preserved_torch_state(seed=5):
            return torch.rand(1).item(), random.random(), float(np.random.rand())
    assert draw() == draw()


def test_an_unknown_engine_names_those_that_are_there() -> None:
    with pytest.raises(UnsupportedEnvironment, match="engine tpu, but this machine supports"), quantized_engine("tpu"):
        pytest.fail("entered")


def test_the_engine_is_set_and_restored_also_after_an_error() -> None:
    before = torch.backends.quantized.engine
    others = [engine for engine in torch.backends.quantized.supported_engines if engine not in ("none", before)]
    for engine in others:
        with pytest.raises(ValueError, match="inside"), quantized_engine(engine):
            assert torch.backends.quantized.engine == engine
            raise ValueError("inside")
        assert torch.backends.quantized.engine == before
    with quantized_engine(None):
        assert torch.backends.quantized.engine == before


def test_threads_are_set_and_restored() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
        with threads(None):
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("message", [
    "torch.ao.quantization is deprecated and will be removed",
    "All inputs of this cat operator must share the same quantization parameters. Otherwise ..."])
def test_torchs_own_warnings_stay_silent_and_others_do_not(message: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with preserved_torch_state():
            warnings.warn(message, stacklevel=1)
            warnings.warn("something of the user's", UserWarning, stacklevel=1)
    assert [str(entry.message) for entry in caught] == ["something of the user's"]


def test_generators_of_cuda_are_restored_if_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    restored: list[object] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with preserved_torch_state(seed=5):
        assert torch.initial_seed() == 5
    assert seeds == []  # a seed that waits for CUDA to begin would be the user's
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["before"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    with preserved_torch_state(seed=7):
        assert (seeds, restored) == ([7], [])
    assert restored == [["before"]]


def test_without_the_fast_path_an_encoder_layer_calls_its_linear_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    called: list[str] = []
    forward = layer.linear1.forward
    layer.linear1.forward = lambda x: (called.append("linear1"), forward(x))[1]  # type: ignore[method-assign]
    was_on = torch.backends.mha.get_fastpath_enabled()
    with without_fast_path(), torch.inference_mode():
        assert not torch.backends.mha.get_fastpath_enabled()
        layer(torch.randn(2, 3, 8))
    assert called
    assert torch.backends.mha.get_fastpath_enabled() is was_on
