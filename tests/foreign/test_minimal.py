"""The smallest forms of what users' models brought: each is taken, or refused with the operation and the line named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import outcomes, run_models, texts

pytestmark = pytest.mark.slow

TAKEN = {
    "fx-x86": {"scaled_by_shape": 8 / 9, "long_mask": 1.0, "list_input": 1.0, "prelu": 1.0, "volume": 1.0,
               "dead_linear": 1.0},
    "pt2e-executorch": {"one_of_many": 1.0, "int_index": 1.0, "prelu_2d": 1.0},
    "torchao-int8": {"subclass_linear": None, "dead_linear": 1.0},
    "pt2e-litert": {"no_grad_part": 1.0},
    "pt2e-inductor": {"dead_linear": 1.0},
}
"""The share of the multiply-accumulates in int8, by recipe and model; None: see the test below."""
REFUSED = ("volume", "volume_norm")
"""ExecuTorch's default build has no kernel for Conv3d."""


@pytest.mark.parametrize("recipe", TAKEN)
def test_models_are_taken_or_refused_for_what_they_are(recipe: str, tmp_path: Path) -> None:
    """One session for each recipe: most of its time is the libraries' start."""
    names = [*TAKEN[recipe], *(REFUSED if recipe == "pt2e-executorch" else ())]
    records = run_models(tmp_path, recipe, [f"minimal:{name}" for name in names])
    runs = {reference.removeprefix("minimal:"): run for reference, run in records.items()}
    for name, share in TAKEN[recipe].items():
        assert_taken(runs[name], share)
    for name in names[len(TAKEN[recipe]):]:
        assert_refused_with_operator_module_and_line(runs[name])
    if recipe == "torchao-int8":  # the subclasses' own weights are float, the layers in them are not
        inner, own, last = 128 * 128, 128 * 128, 128 * 8
        assert runs["subclass_linear"]["metrics"]["coverage"]["weight_share"] == pytest.approx(
            (2 * inner + last) / (2 * inner + 2 * own + last))
    if recipe == "pt2e-inductor":
        assert runs["dead_linear"]["metrics"]["coverage"]["int8_modules"] == 1
    if recipe == "fx-x86":
        assert "wrong-int8-kernel" in {found["code"] for found in runs["prelu"]["findings"]}


def assert_taken(run: Mapping[str, Any], share: float | None) -> None:
    checks = outcomes(run)
    assert {checks[check] for check in ("prepare", "convert", "coverage", "parity")} == {"passed"}
    assert {checks["accuracy"], checks["roundtrip"]} <= {"passed", "inconclusive"}  # random weights; torchao's tensors
    assert "blocked" not in checks.values()
    if share is not None:
        assert run["metrics"]["coverage"]["mac_share"] == pytest.approx(share)


def assert_refused_with_operator_module_and_line(run: Mapping[str, Any]) -> None:
    assert outcomes(run)["convert"] == "failed"
    [finding] = [found for found in run["findings"] if found["code"] == "kernel-refused"]
    assert finding["module"] == "conv"
    assert "convolution" in texts(run)
    assert "minimal.py:" in texts(run)
