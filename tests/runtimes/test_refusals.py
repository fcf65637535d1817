"""What a runtime cannot run is refused with the operator, the user's module and the line, not with a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_qat.errors import CheckFailed
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import DeploySettings, load_runtime
from pytest_qat.workflows import pt2e
from tests.answers import quietly, skip_where_kernels_saturate
from tests.workflows.pt2e_models import made, prepared_for

pytestmark = pytest.mark.slow
ROWS = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
SETTINGS = DeploySettings(engine=None, threads=1, timeout_s=400)


class Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def model_of(function: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Inner(function))


def deployed(name: str, model: nn.Module, folder: Path, inputs: Tensor = ROWS) -> Any:
    recipe = get_recipe(name)
    for package in recipe.packages:
        pytest.importorskip(package)
    prepared = prepared_for(made(model, inputs), recipe)
    with quietly():
        return load_runtime(recipe.runtime).deploy(
            model, pt2e.convert(prepared, recipe).module, (inputs,), folder, SETTINGS)


def refusal(name: str, function: Any, folder: Path) -> Any:
    with pytest.raises(CheckFailed) as caught:
        deployed(name, model_of(function), folder)
    (finding,) = caught.value.findings
    assert finding.module == "1"
    assert re.search(rf"{Path(__file__).name}:\d+", finding.message)
    return finding


def test_an_operator_without_kernel_is_named(tmp_path: Path) -> None:
    finding = refusal("pt2e-executorch", lambda x: torch.erfinv(x.tanh()), tmp_path)
    assert finding.code == "no-kernel"
    assert "aten::erfinv" in finding.message


def test_a_kernel_that_does_not_take_its_values_is_named(tmp_path: Path) -> None:
    finding = refusal("pt2e-executorch", lambda x: F.avg_pool3d(F.conv3d(
        x.view(1, 1, 2, 4, 8), torch.ones(1, 1, 2, 2, 2)), 1), tmp_path)
    assert finding.code in ("kernel-refused", "no-kernel")
    assert "0x" not in finding.message


@pytest.mark.parametrize("name", ["pt2e-litert", "pt2e-onnxruntime"])
def test_an_operator_that_a_converter_does_not_know_is_named(name: str, tmp_path: Path) -> None:
    finding = refusal(name, lambda x: torch.digamma(x.abs() + 1), tmp_path)
    assert finding.code == "not-lowerable"
    assert "digamma" in finding.message


def test_what_has_no_int8_form_runs_in_float(tmp_path: Path) -> None:
    """Side by side in one model: most of a build is the start of its process."""
    parts = nn.ModuleDict({
        "prelu": nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 8)),
        "fft": model_of(lambda x: torch.fft.rfft(x).abs()), "index": model_of(lambda x: x[:, torch.arange(4) + 1]),
        "gelu": model_of(F.gelu), "hardswish": model_of(F.hardswish)})

    class SideBySide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {name: part(x) for name, part in self.parts.items()}

    form = deployed("pt2e-executorch", SideBySide(), tmp_path).int8["contiguous"]
    found = form.run(form.adapt((ROWS,)))
    for name, part in parts.items():
        assert (found[name] - part(ROWS)).abs().max() < 0.2, name
        assert any(kernel.int8 for kernel in form.kernels if kernel.module.startswith(f"parts.{name}.")), name


@pytest.mark.parametrize("name", ["pt2e-executorch", "pt2e-onnxruntime"])
def test_a_model_with_a_mask_and_an_unknown_output_ships(name: str, tmp_path: Path) -> None:
    skip_where_kernels_saturate(name)

    class Cache:
        def __init__(self, keys: Tensor) -> None:
            self.keys = keys

    globals()["Cache"] = Cache
    Cache.__qualname__ = "Cache"

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            keys = self.key(x)
            mask = torch.full((8, 8), torch.finfo(x.dtype).min).triu(1)
            return {"out": self.out(F.softmax(self.query(x) @ keys.t() + mask, -1) @ x), "cache": Cache(keys)}

    torch.manual_seed(0)
    model = Attention()
    form = deployed(name, model, tmp_path).int8["contiguous"]
    found, expected = form.run(form.adapt((ROWS,))), model(ROWS)
    assert (found["out"] - expected["out"]).abs().max() < 0.1
    assert (found["cache"].keys - expected["cache"].keys).abs().max() < 0.1
