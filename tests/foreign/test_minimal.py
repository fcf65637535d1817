"""The smallest forms of what users' models brought: each is taken, or refused with the operation and the line named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from runs import outcomes, run_models, texts

pytestmark = pytest.mark.slow

TAKEN = {
    "fx-x86": {"scaled_by_shape": 8 / 9, "long_mask": 1.0, "list_input": 1.0, "prelu": 1.0, "volume": 1.0,
               "dead_linear": None},
    "pt2e-executorch": {"one_of_many": 1.0, "int_index": 1.0, "prelu_2d": 1.0},
    "torchao-int8": {"subclass_linear": None},
    "pt2e-litert": {"no_grad_part": 1.0},
    "pt2e-inductor": {"dead_linear": None},
}
"""The share of the multiply-accumulates in int8, by recipe and model; None: see the tests below."""
REFUSED = ("volume", "volume_norm")
"""ExecuTorch's default build has no kernel for Conv3d."""

Runs = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The records by recipe and model: a session for each recipe."""
    found = {}
    for recipe, models in TAKEN.items():
        names = [*models, *(REFUSED if recipe == "pt2e-executorch" else ())]
        records = run_models(tmp_path_factory.mktemp(recipe), recipe, [f"minimal:{name}" for name in names])
        found[recipe] = {reference.removeprefix("minimal:"): run for reference, run in records.items()}
    return found


@pytest.mark.parametrize(("recipe", "name"), [(recipe, name) for recipe, models in TAKEN.items() for name in models])
def test_it_is_taken_and_what_runs_in_int8_is_counted_rightly(recipe: str, name: str, runs: Runs) -> None:
    run = runs[recipe][name]
    checks = outcomes(run)
    assert {checks[check] for check in ("prepare", "convert", "coverage", "parity")} == {"passed"}
    assert {checks["accuracy"], checks["roundtrip"]} <= {"passed", "inconclusive"}  # random weights; torchao's tensors
    assert "blocked" not in checks.values()
    share = TAKEN[recipe][name]
    if share is not None:
        assert run["metrics"]["coverage"]["mac_share"] == pytest.approx(share)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_runtime_has_no_kernel_for_is_named_with_operator_module_and_line(name: str, runs: Runs) -> None:
    run = runs["pt2e-executorch"][name]
    assert outcomes(run)["convert"] == "failed"
    [finding] = [found for found in run["findings"] if found["code"] == "kernel-refused"]
    assert finding["module"] == "conv"
    assert "convolution" in texts(run)
    assert "minimal.py:" in texts(run)


def test_weights_of_a_subclass_are_float_where_only_its_inner_layer_is_quantized(runs: Runs) -> None:
    coverage = runs["torchao-int8"]["subclass_linear"]["metrics"]["coverage"]
    inner, own, last = 128 * 128, 128 * 128, 128 * 8
    assert coverage["weight_share"] == pytest.approx((2 * inner + last) / (2 * inner + 2 * own + last))


def test_a_layer_whose_result_nobody_reads_is_no_obstacle(runs: Runs) -> None:
    assert runs["pt2e-inductor"]["dead_linear"]["metrics"]["coverage"]["int8_modules"] == 1


def test_torchs_prelu_that_cannot_hold_one_is_replaced_and_told(runs: Runs) -> None:
    codes = {found["code"] for found in runs["fx-x86"]["prelu"]["findings"]}
    assert "wrong-int8-kernel" in codes
