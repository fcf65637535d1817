"""The accuracy of a deployed pair: by the case's evaluation data, or by agreement of int8 with float without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call, sample_count
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.measure.accuracy import Accuracy, Scores, compare_scores, evaluate
from pytest_qat.measure.flat_outputs import flat_outputs
from pytest_qat.measure.outputs import agreement_scores
from pytest_qat.runtimes import Deployed, DeployedPair

__all__ = ["CALIBRATION_BATCHES", "measure_accuracy"]

CALIBRATION_BATCHES = 16


def measure_accuracy(case: QATCase, pair: DeployedPair, *, run: Callable[[Deployed, Any], Any], seed: int,
                     ptq: nn.Module | None, prepared: nn.Module | None, ptq_simulated: bool) -> Accuracy:
    """Score float, int8, the control and the fine-tuned model on the same samples.

    Args:
        case: Whose data and metric count.
        pair: The deployed models.
        run: Runs a deployed model on a batch.
        seed: Seed of every pass over the data.
        ptq: The control; None where there is none.
        prepared: The fine-tuned model with fake-quantize; None where there is none.
        ptq_simulated: Whether the control is not converted.

    Raises:
        DataError: the data or the metric cannot be used.
    """
    fp32, int8 = pair.fp32["contiguous"], pair.int8["contiguous"]
    if case.eval_data is None:
        batches, reference, candidate = _outputs(case, pair, run)
        samples = [sample_count(inputs) for inputs in batches]
        agreement = partial(agreement_scores, reference, samples=samples)
        (agreed, sqnr), (same, _) = agreement(candidate), agreement(reference)
        with torch.inference_mode():
            twin = None if ptq is None else agreement([call(ptq, inputs) for inputs in batches])[0]
        return replace(compare_scores(same, agreed, twin, higher_is_better=True, kind="agreement", sqnr=sqnr),
                       flat=flat_outputs(reference, candidate, samples=samples))

    def score(side: str, call_model: Callable[[Any], Any]) -> Scores:
        assert case.eval_data is not None, "unreachable because it was asked for"
        # A loader that shuffles with torch's generator gives the same order in each pass this way.
        with preserved_torch_state(seed=seed), torch.inference_mode():
            return evaluate(call_model, case.eval_data, case.metric, like=case.example_inputs,
                            step=f"evaluating {side}")

    def score_deployed(side: str, deployed: Deployed) -> Scores:
        with deployed.session():
            return score(side, partial(run, deployed))

    control, fine_tuned = (None if module is None else score(side, partial(call, module))
                           for side, module in (("PTQ", ptq), ("fine-tuned", prepared)))
    before = score_deployed("float", fp32)
    after = score_deployed("int8", int8)
    found = compare_scores(before, after, control, fine_tuned=fine_tuned, ptq_simulated=ptq_simulated,
                           higher_is_better=case.higher_is_better)
    if before.scored is None:  # a metric of the user's, or nothing beside what was scored
        return found
    batches, reference, candidate = _outputs(case, pair, run)
    return replace(found, flat=flat_outputs(reference, candidate, but=before.scored,
                                            samples=[sample_count(inputs) for inputs in batches]))


def _outputs(case: QATCase, pair: DeployedPair, run: Callable[[Deployed, Any], Any]) -> tuple[list[Any], ...]:
    """Return calibration batches, and what the float and the int8 model make of them."""
    batches = calibration_batches(case, limit=CALIBRATION_BATCHES)
    made = []
    for deployed in (pair.fp32["contiguous"], pair.int8["contiguous"]):
        with deployed.session():
            made.append([run(deployed, inputs) for inputs in batches])
    return batches, *made
