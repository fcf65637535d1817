"""Every fixture by every recipe, and some torchvision models: the outcome of each check, as a markdown table.

Run from the repository root: `python -m tests.benchmarks.matrix [--recipe NAME ...] [--model REF ...]`, or with
`--torchvision` for models of torchvision, untrained, on one image of 224x224 pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FIXTURES = ("fixtures.edge_model:digits", "fixtures.vgg:digits", "fixtures.mobilenet:digits", "fixtures.mlp:digits",
            "fixtures.transformer:digits")
RECIPES = ("fx-x86", "fx-fbgemm", "fx-qnnpack", "fx-onednn", "eager-x86", "fx-torchscript", "pt2e-inductor",
           "pt2e-executorch", "pt2e-litert", "pt2e-onnxruntime", "torchao-int8", "torchao-int4")
TORCHVISION = tuple(f"torchvision:{name}" for name in (
    "mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11", "efficientnet_b0",
    "mnasnet0_5", "regnet_x_400mf", "convnext_tiny", "vit_b_16"))
TORCHVISION_RECIPES = ("pt2e-executorch", "pt2e-inductor", "fx-x86")
TORCHVISION_INPUTS = "1x3x224x224"
SHORT = 90


def main() -> None:
    """Run the models one by one and print a row for each model and recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append")
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--inputs")
    parser.add_argument("--torchvision", action="store_true")
    chosen = parser.parse_args()
    models, recipes = (TORCHVISION, TORCHVISION_RECIPES) if chosen.torchvision else (FIXTURES, RECIPES)
    inputs = chosen.inputs or (TORCHVISION_INPUTS if chosen.torchvision else None)
    print("| model | recipe | accuracy fp32 -> int8 | speedup (interval) | over eager | smaller | not passed |")
    print("|---|---|---|---|---|---|---|")
    for model in chosen.model or models:
        for run in records(model, tuple(chosen.recipe or recipes), inputs):
            print(row(run), flush=True)


def records(model: str, recipes: tuple[str, ...], inputs: str | None) -> list[dict[str, Any]]:
    """Return the runs of one pytest session."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "qat.json")
        shapes = [f"--qat-inputs={inputs}"] if inputs else []
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", f"--qat-model={model}",
                        f"--qat-json={path}", "--qat-memory=off", *shapes,
                        *(f"--qat-recipe={recipe}" for recipe in recipes)],
                       check=False, stdout=subprocess.DEVNULL)
        runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return runs


def row(run: dict[str, Any]) -> str:
    """Return one line of the table."""
    metrics = run["metrics"]
    accuracy, speedup, eager = metrics["accuracy"], metrics["speedup"], metrics["speedup_over_eager"]
    cells = [f"`{run['model']}`", f"`{run['recipe']}`"]
    cells.append(f"{accuracy['fp32']:.1%} -> {accuracy['int8']:.1%}" if accuracy else "-")
    cells.append(with_interval(speedup) if speedup else "-")
    cells.append(f"{eager['estimate']:.2f}x" if eager else "-")
    cells.append(f"{metrics['size_reduction']:.2f}x" if metrics["size_reduction"] else "-")
    bad = [f"{name} {entry['outcome']}{cause(run, name)}" for name, entry in run["checks"].items()
           if entry["outcome"] not in ("passed", "blocked")
           and (name, entry["outcome"]) not in (("roundtrip", "inconclusive"), ("parity", "inconclusive"))]
    cells.append(", ".join(bad) or "all passed")
    return "| " + " | ".join(cells) + " |"


def with_interval(speedup: dict[str, Any]) -> str:
    """Return an estimate with its interval; too few pairs give none."""
    if None in speedup["ci"]:
        return f"{speedup['estimate']:.2f}x (too few pairs: {speedup['pairs']})"
    return "{:.2f}x ({:.2f} to {:.2f})".format(speedup["estimate"], *speedup["ci"])


def cause(run: dict[str, Any], check: str) -> str:
    """Return why a stage failed, in brackets; the numbers tell for the other checks."""
    if check not in ("prepare", "convert", "coverage"):
        return ""
    text = str(run["checks"][check]["reasons"][0]).replace("|", "/").strip().rstrip(".")
    return f" ({text[:SHORT]}{'...' if len(text) > SHORT else ''})"


if __name__ == "__main__":
    main()
