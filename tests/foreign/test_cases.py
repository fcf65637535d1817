"""Small models with data after public bug reports: what is right for each, with the recipe of its report.

Speed is measured and recorded, and no test asserts on it.
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
    "pt2e-onnxruntime": {"tcn_causal:case": Right(share=0.995, codes=(("dead-weights", None),))},
    "pt2e-litert": {"cross_attention:case": Right(share=0.968)},
    "pt2e-inductor": {"van_lka:case": Right(fails=frozenset({"size"}))},
}


@pytest.mark.parametrize("recipe", CASES)
def test_cases_come_out_right(recipe: str, tmp_path: Path) -> None:
    runs = run_models(tmp_path, recipe, list(CASES[recipe]), "-k", "not speedup and not roundtrip")
    printed = (tmp_path / "output.txt").read_text(encoding="utf-8")
    wrong = {name: problems for name, right in CASES[recipe].items()
             if (problems := problems_of(runs[name], right, printed))}
    assert wrong == {}


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
