"""Coverage against two independent counts: torch's flop counter, and the dtypes of the weights that are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pytest_qat.case import QATCase
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.errors import MissingPackage
from pytest_qat.finetune import calibrate
from pytest_qat.measure.coverage import Coverage, coverage_of_kernels, measure_coverage
from pytest_qat.measure.macs import count_macs
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import DeploySettings, load_runtime
from pytest_qat.runtimes.base import StoredTensor
from pytest_qat.runtimes.stored import stored_tensors
from pytest_qat.workflows import load_workflow
from tests.measure.generated_nets import Net, net_of

INT8 = frozenset({"int8", "qint8"})
SEEDS = range(8)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


def converted(net: Net, recipe_name: str) -> tuple[nn.Module, dict[str, str]]:
    recipe = get_recipe(recipe_name)
    try:
        recipe.require_packages()
    except MissingPackage as missing:
        pytest.skip(missing.message)
    case, workflow = QATCase(model=net.model, example_inputs=net.inputs), load_workflow(recipe.workflow)
    prepared = workflow.prepare(case, recipe)
    calibrate(prepared.module, [net.inputs])
    return workflow.convert(prepared, recipe).module.eval(), dict(prepared.float_modules)


def int8_by_weights(net: Net, stored: Sequence[StoredTensor]) -> int:
    """MACs of the weights that are stored in int8, told by the number of their elements."""
    sizes = {tensor.size_bytes for tensor in stored if tensor.dtype in INT8 and len(tensor.shape) > 1}
    return sum(macs for size, macs in net.macs.items() if size in sizes)


def assert_coverage(found: Coverage, net: Net, stored: Sequence[StoredTensor]) -> None:
    """Check the counts of MACs and weights, and the names of what is left in float."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.model(*net.inputs)
    assert found.macs + net.unread == counter.get_total_flops() // 2 == sum(net.macs.values()) + net.unread
    assert found.int8_macs == int8_by_weights(net, stored)
    assert sum(left.macs for left in found.leftovers) == found.macs - found.int8_macs
    assert sum(idle.weights for idle in found.idle) == net.dead
    names = {name for name, _ in net.model.named_modules()} - {""}
    assert {left.module for left in found.leftovers} <= names


@pytest.mark.parametrize("seed", range(30))
def test_macs_are_those_of_torch_s_counter_and_of_the_parts(seed: int) -> None:
    net = net_of(seed)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.model(*net.inputs)
    counted = count_macs(net.model, net.inputs)
    total = sum(counted.by_module.values())
    assert total + net.unread == counter.get_total_flops() // 2 == sum(net.macs.values()) + net.unread


@pytest.mark.parametrize("recipe", ["fx-x86", "torchao-int8", "eager-x86"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_share_in_int8_is_that_of_the_weights_which_torch_stores_in_int8(seed: int, recipe: str) -> None:
    net = net_of(seed, functions=recipe != "eager-x86")  # a product between quantized tensors has no eager form
    if recipe == "torchao-int8" and not any(type(module) is nn.Linear for module in net.model.modules()):
        pytest.skip("no linear layer was drawn, which torchao refuses")
    module, reasons = converted(net, recipe)
    found = measure_coverage(net.model, module, net.inputs, reasons=reasons)
    assert_coverage(found, net, stored_tensors(module.state_dict()))
    assert found.int8_macs or recipe == "torchao-int8"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pt2e-executorch", "pt2e-litert"])
@pytest.mark.parametrize("seed", range(2))
def test_the_share_in_int8_is_that_of_the_weights_which_the_artifact_stores_in_int8(
        seed: int, recipe: str, tmp_path: Path) -> None:
    net = net_of(seed)
    module, reasons = converted(net, recipe)
    settings = DeploySettings(engine=None, threads=1, timeout_s=300)
    deployed = load_runtime(get_recipe(recipe).runtime).deploy(net.model, module, net.inputs, tmp_path, settings)
    artifact = deployed.int8["contiguous"]
    found = coverage_of_kernels(net.model, artifact.kernels or (), net.inputs, reasons=reasons)
    opaque = recipe == "pt2e-executorch"  # whose delegates keep their weights in blobs
    assert_coverage(found, net, stored_tensors(module.state_dict()) if opaque else artifact.tensors)
