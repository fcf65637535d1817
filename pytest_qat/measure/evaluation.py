"""The accuracy of a deployed pair: by the case's evaluation data, or by agreement of int8 with float without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core import progress
from pytest_qat.core.batches import call, labeled, sample_count
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.core.tracebacks import name_of
from pytest_qat.errors import NotComparable
from pytest_qat.measure.accuracy import Accuracy, Scores, compare_scores
from pytest_qat.measure.flat_outputs import flat_outputs
from pytest_qat.measure.outputs import agreement_of
from pytest_qat.measure.paired_outputs import pair_outputs
from pytest_qat.measure.scoring import evaluate, run_labeled
from pytest_qat.measure.set_scores import compare_sets, gather, set_score
from pytest_qat.measure.untrained import why_random
from pytest_qat.runtimes import Deployed, DeployedPair

__all__ = ["CALIBRATION_BATCHES", "Subjects", "measure_accuracy", "score_of"]

T = TypeVar("T")
CALIBRATION_BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """The models whose scores are compared.

    Attributes:
        pair: The deployed float and int8 model.
        run: Runs a deployed model on a batch.
        ptq: The control; None where there is none.
        prepared: The fine-tuned model with fake-quantize; None where there is none.
        ptq_simulated: Whether the control is not converted.
    """

    pair: DeployedPair
    run: Callable[[Deployed, Any], Any]
    ptq: nn.Module | None
    prepared: nn.Module | None
    ptq_simulated: bool

    def passes(self, score: Callable[[Callable[[Any], Any]], T], *, batches: int | None) -> dict[str, T]:
        """Return what each model scores, by `fp32`, `int8`, `ptq` and `fine_tuned`.

        Args:
            score: Makes a pass over the data with a model.
            batches: Number of batches of such a pass; None if it is not known.
        """
        found = {}
        for name, title, module in (("ptq", "PTQ", self.ptq), ("fine_tuned", "fine-tuned", self.prepared)):
            if module is not None:
                with progress.step(f"evaluating {title}", total=batches, unit="batches") as shown:
                    found[name] = score(_counted(partial(call, module), shown))
        for name, title, deployed in (("fp32", "float", self.pair.fp32["contiguous"]),
                                      ("int8", "int8", self.pair.int8["contiguous"])):
            with deployed.session(), progress.step(f"evaluating {title}", total=batches, unit="batches") as shown:
                found[name] = score(_counted(partial(self.run, deployed), shown))
        return found


def _counted(model: Callable[[Any], Any], shown: progress.Step) -> Callable[[Any], Any]:
    def run(inputs: Any) -> Any:
        output = model(inputs)
        shown.advance()
        return output

    return run


def measure_accuracy(case: QATCase, subjects: Subjects, *, seed: int, budget_s: float) -> Accuracy:
    """Score float, int8, the control and the fine-tuned model on the same samples.

    Args:
        case: Whose data and metric count.
        subjects: The models.
        seed: Seed of every pass over the data.
        budget_s: Most seconds for drawing samples again, which one score of a whole set takes.

    Raises:
        DataError: the data or the metric cannot be used.
        NotComparable: there are no evaluation data, and float and int8 return different forms.
    """
    if case.eval_data is None:
        return _agreement(case, subjects)
    batches = progress.known_length(case.eval_data)
    if case.set_metric is not None:
        sets = subjects.passes(lambda model: _pass_over(case, lambda data: gather(
            run_labeled(model, data, like=case.example_inputs)), seed=seed), batches=batches)
        return compare_sets(case.set_metric, sets, higher_is_better=case.higher_is_better, budget_s=budget_s,
                            ptq_simulated=subjects.ptq_simulated)
    scores = subjects.passes(lambda model: _pass_over(case, lambda data: evaluate(
        model, data, case.metric, like=case.example_inputs), seed=seed), batches=batches)
    found = compare_scores(
        scores["fp32"], scores["int8"], scores.get("ptq"), fine_tuned=scores.get("fine_tuned"),
        ptq_simulated=subjects.ptq_simulated, higher_is_better=case.higher_is_better,
        metric=None if case.metric is None else name_of(case.metric) or "metric")
    if scores["fp32"].scored is None:  # a metric of the user's, or nothing beside what was scored
        return found
    seen, reference, candidate = _outputs(case, subjects)
    return replace(found, ragged=pair_outputs(reference, candidate).ragged, flat=flat_outputs(
        reference, candidate, but=scores["fp32"].scored, samples=[sample_count(inputs) for inputs in seen]))


def score_of(case: QATCase, model: Callable[[Any], Any], *, seed: int) -> float:
    """Return what a model scores on the case's evaluation data, by its metric.

    Args:
        case: Whose data and metric count; it has evaluation data.
        model: Runs a batch.
        seed: Seed of the pass over the data.
    """
    if case.set_metric is not None:
        known = _pass_over(case, lambda data: gather(run_labeled(model, data, like=case.example_inputs)), seed=seed)
        return set_score(case.set_metric, known, of="the model without rounding")
    return float(_pass_over(case, lambda data: evaluate(model, data, case.metric, like=case.example_inputs),
                            seed=seed).mean)


def _pass_over(case: QATCase, look: Callable[[Any], T], *, seed: int) -> T:
    """Return what is seen in one pass over the evaluation data."""
    # A loader that shuffles with torch's generator gives the same order in each pass this way.
    with preserved_torch_state(seed=seed), torch.inference_mode():
        return look(case.eval_data)


def _agreement(case: QATCase, subjects: Subjects) -> Accuracy:
    batches, reference, candidate = _outputs(case, subjects)
    samples = [sample_count(inputs) for inputs in batches]
    target = None if case.train_data is None else next(labeled(case.train_data, field="train_data"))[1]
    agreement = partial(agreement_of, reference, samples=samples, target=target)
    found = agreement(candidate)
    with torch.inference_mode():
        twin = None if subjects.ptq is None else _agreed(
            agreement, [call(subjects.ptq, inputs) for inputs in batches])
    compared = compare_scores(agreement(reference).scores, found.scores, twin, higher_is_better=True, kind="agreement",
                              sqnr=found.sqnr_db)
    # Training may change a random model as it likes, and a prepared or converted one is what its user made of it.
    ours = not case.fine_tunes and case.prepared is None and case.converted is None
    return replace(compared, flat=flat_outputs(reference, candidate, samples=samples), ragged=found.ragged,
                   same_class=found.same_class, random_weights=why_random(case.model) if ours else "")


def _agreed(agreement: Callable[[list[Any]], Any], outputs: list[Any]) -> Scores | None:
    """Return how far the control agrees; None where it returns something else, which is nothing against int8."""
    try:
        scores: Scores = agreement(outputs).scores
    except NotComparable:
        return None
    return scores


def _outputs(case: QATCase, subjects: Subjects) -> tuple[list[Any], ...]:
    """Return calibration batches, and what the float and the int8 model make of them."""
    batches = calibration_batches(case, limit=CALIBRATION_BATCHES)
    made = []
    for deployed in (subjects.pair.fp32["contiguous"], subjects.pair.int8["contiguous"]):
        with deployed.session():
            made.append([subjects.run(deployed, inputs) for inputs in batches])
    return batches, *made
