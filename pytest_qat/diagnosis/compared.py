"""Compare the stages of a run whose outputs are wrong: float, unrounded, fake-quantize, reference, artifact."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.batches import call, float_tensors
from pytest_qat.diagnosis.lost import affordable, data_that_count, nothing_rounded
from pytest_qat.diagnosis.steps import StageComparison
from pytest_qat.errors import NotComparable
from pytest_qat.findings import json_number
from pytest_qat.measure.agreement import compare_outputs
from pytest_qat.pipeline.run import ModelRun, StageFailed
from pytest_qat.runtimes.chunks import run_batch

__all__ = ["as_record", "compared"]

_BATCHES = 4
_SHARE = 0.1
"""Of the time for a diagnosis, at most; a batch of each stage is looked at in any case."""


def compared(run: ModelRun) -> tuple[StageComparison, ...]:
    """Return how far each stage of a run agrees with the one before it, on the data that its accuracy is judged by.

    Args:
        run: A run that has been deployed.

    Returns:
        The steps between `float`, `unrounded` (the trained model with fake-quantize off), `fake-quantize`, `reference`
        (the converted model in torch, where another runtime ships) and `int8` (what ships); none where their outputs
        cannot be compared.
    """
    float_model, done, pair = run.inputs(), run.converted(), run.deployed()
    forms: dict[str, Callable[[Any], Any]] = {"float": partial(call, float_model)}
    if done.prepared is not None:
        forms |= {"unrounded": partial(_call_unrounded, done.prepared.module),
                  "fake-quantize": partial(call, done.prepared.module)}
    if run.recipe.runtime not in ("torch", "torchscript"):
        forms["reference"] = partial(call, done.int8.module)
    shipped = pair.int8["contiguous"]

    def compare() -> tuple[StageComparison, ...]:
        batches = data_that_count(run.case)[:_BATCHES]
        began = time.monotonic()
        _outputs(forms["float"], batches[:1])
        batches = batches[:affordable(time.monotonic() - began, passes=len(forms) + 1, least=1,
                                      budget_s=_SHARE * run.settings.diagnose_s)]
        with torch.inference_mode(), shipped.session():
            made = {name: _outputs(form, batches) for name, form in forms.items()}
            made["int8"] = _outputs(partial(run_batch, shipped), batches)
        return tuple(StageComparison(before=before, after=after, agreement=compare_outputs(made[before], made[after]))
                     for before, after in itertools.pairwise(made))

    try:
        return run.stage("stages compared", compare)
    except StageFailed as failed:
        if isinstance(failed.error, NotComparable):
            return ()
        raise


def as_record(steps: tuple[StageComparison, ...]) -> list[dict[str, object]]:
    """Return the entries of `diagnosis.stages` of the record; null stands for exact agreement."""
    return [{"before": step.before, "after": step.after, "sqnr_db": json_number(step.agreement.sqnr_db),
             "mean_removed_db": json_number(step.agreement.mean_removed_db),
             "worst_column_db": json_number(step.agreement.worst_column_db),
             "worst_column": step.agreement.worst_column, "worst_output": step.agreement.worst_output,
             "same_class": step.agreement.same_class} for step in steps]


def _call_unrounded(prepared: nn.Module, inputs: Any) -> Any:
    with nothing_rounded(prepared):
        return call(prepared, inputs)


def _outputs(form: Callable[[Any], Any], batches: list[Any]) -> list[list[Tensor]]:
    return [[tensor.detach().clone() for tensor in float_tensors(form(inputs))] for inputs in batches]
