"""Users' models: small ones with data after public bug reports, and the smallest forms of what such models brought.

What is right for each is told by the recipe of its report; a minimal one is taken, or refused with the operation and
the line named. Speed is measured and recorded, and no test asserts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import outcomes, run_models, texts

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Right:
    """What must come of a model.

    Attributes:
        share: Share of the multiply-accumulates in int8; None: no check of it.
        fails: Checks that fail, but for the speedup.
        unsure: Checks that may be inconclusive: their samples are few.
        codes: Codes of findings with their modules, all of which must be there; no module: whichever.
        said: Parts of what is said.
    """

    share: float | None = 1.0
    fails: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset({"accuracy"})
    codes: tuple[tuple[str, str | None], ...] = ()
    said: tuple[str, ...] = ()


def failing(*checks: str, codes: tuple[tuple[str, str | None], ...] = (), said: tuple[str, ...] = ()) -> Right:
    return Right(share=None, fails=frozenset(checks), codes=codes, said=said)


CASES: dict[str, dict[str, Right]] = {
    "fx-x86": {
        "wifi_pose:case": Right(share=0.973, said=("wifi_pose.py:",)),
        "wifi_pose:calibrated": Right(share=0.973),
        "lstm_sigmoid:case": Right(fails=frozenset({"size"}), codes=(("size-structure", None),)),
        "machine_anomaly:case": failing("prepare", said=("set_metric=auc",)),
        "machine_anomaly:per_sample": Right(),
        "vocoder_wn:case": Right(share=0.66, codes=(("wrong-int8-kernel", "ups.0"), ("wrong-int8-kernel", "ups.1"),
                                                    ("parametrization-merged", None))),
        "unet3d:case": Right(share=0.985, codes=(("wrong-int8-kernel", "up"),)),
        "van_lka:case": Right(fails=frozenset({"size"}), codes=(("size-structure", None),)),
        "cross_attention:case": Right(share=0.968),
    },
    "eager-x86": {
        "lstm_sigmoid:case": Right(fails=frozenset({"size"}), codes=(("size-structure", None),)),
        "tcn_causal:case": failing("prepare", codes=tuple(
            ("eager-op-without-int8-kernel", f"blocks.{index}") for index in range(3))),
        "jpeg_nan:case": failing("convert", codes=(("weights-not-finite", "features.0.0"),), said=("diverged",)),
    },
    "pt2e-executorch": {
        "same_pad:case": Right(), "same_pad:as_posted": Right(),
        "gate_denoiser:case": Right(fails=frozenset({"size"}), codes=(("size-structure", None),)),
        "deit_token:case": Right(share=0.946),
        "unet3d:case": failing("convert", codes=(("no-kernel", "pool"),), said=("max_pool3d", "unet3d.py:")),
        "vocoder_wn:removed": Right(),
    },
    "pt2e-onnxruntime": {"tcn_causal:case": Right(share=1.0, codes=(("dead-weights", None),))},
    "pt2e-litert": {"cross_attention:case": Right(share=0.968)},
    "pt2e-inductor": {"van_lka:case": Right(fails=frozenset({"size"}))},
}


TAKEN = {
    "fx-x86": {"scaled_by_shape": 8 / 9, "long_mask": 1.0, "list_input": 1.0, "prelu": 1.0, "volume": 1.0,
               "dead_linear": 1.0},
    "pt2e-executorch": {"one_of_many": 1.0, "int_index": 1.0, "prelu_2d": 1.0},
    "torchao-int8": {"subclass_linear": None, "dead_linear": 1.0},
    "pt2e-litert": {"no_grad_part": 1.0},
    "pt2e-inductor": {"dead_linear": 1.0},
}
"""The share of the multiply-accumulates in int8, by recipe and minimal model; None: see `assert_minimal`."""
REFUSED = {"pt2e-executorch": ("volume", "volume_norm")}
"""ExecuTorch's default build has no kernel for Conv3d."""


@pytest.mark.parametrize("recipe", list(dict.fromkeys([*CASES, *TAKEN])))
def test_models_come_out_right(recipe: str, tmp_path: Path) -> None:
    """One session for each recipe: much of its time is the libraries' start."""
    cases, minimal = CASES.get(recipe, {}), [*TAKEN.get(recipe, ()), *REFUSED.get(recipe, ())]
    runs = run_models(tmp_path, recipe, [*cases, *(f"minimal:{name}" for name in minimal)],
                      "-k", "minimal or not (speedup or roundtrip)")
    printed = (tmp_path / "output.txt").read_text(encoding="utf-8")
    wrong = {name: problems for name, right in cases.items() if (problems := problems_of(runs[name], right, printed))}
    assert wrong == {}
    assert_minimal({name: runs[f"minimal:{name}"] for name in minimal}, recipe)


def problems_of(run: Mapping[str, Any], right: Right, printed: str) -> list[str]:
    checks, said = outcomes(run), texts(run) + printed  # a remedy of an error is printed only
    failed = {name for name, outcome in checks.items() if outcome == "failed"}
    found = [f"failed: {sorted(failed)}"] if failed != right.fails else []
    if right.share is not None:
        share = run["metrics"]["coverage"]["mac_share"]
        found += [f"share {share}"] if share != pytest.approx(right.share, abs=0.005) else []
        open_ones = {name for name, outcome in checks.items() if outcome not in ("passed", "failed")}
        found += [f"no answer: {sorted(open_ones)}"] if open_ones - right.unsure else []
    codes = [(each["code"], each["module"]) for each in run["findings"]]
    found += [f"no {code} at {module}: {codes}" for code, module in right.codes
              if not any(code == each and module in (None, place) for each, place in codes)]
    return [*found, *(f"not said: {part}" for part in right.said if part not in said)]


def assert_minimal(runs: Mapping[str, Mapping[str, Any]], recipe: str) -> None:
    for name, share in TAKEN.get(recipe, {}).items():
        assert_taken(runs[name], share)
    for name in REFUSED.get(recipe, ()):
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
