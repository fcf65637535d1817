"""What there is to say about the outcome of a check: causes of a failure, and what deserves a look after a pass.

Whoever makes a check asks here next: `with_causes(checks, checks.check("parity"))`. Each explanation gets the run and
reads the numbers that were judged. It may compute further stages of the run (`ModelRun.stage`), or make runs of its own
with another case, recipe or settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pytest_qat.case import calibration_batches
from pytest_qat.checks import CheckResult, ModelChecks, error_text
from pytest_qat.diagnosis.changes import changes_for
from pytest_qat.diagnosis.compared import as_record, compared
from pytest_qat.diagnosis.costs import causes_of_size, causes_of_speed
from pytest_qat.diagnosis.coverage import causes_of_coverage
from pytest_qat.diagnosis.diagnose import diagnosed
from pytest_qat.diagnosis.divergence import first_divergence, kernels_disagree
from pytest_qat.diagnosis.given import stages_of
from pytest_qat.diagnosis.lost import why_lost
from pytest_qat.diagnosis.recipes import Need, need_of, recipes_that_take
from pytest_qat.diagnosis.remedies import mended
from pytest_qat.diagnosis.scores import causes_of_scores
from pytest_qat.diagnosis.training import collapsed_ranges, notes_on_preparing, switched_off
from pytest_qat.errors import DataError, InvalidCase, TrainingError, UnsupportedEnvironment
from pytest_qat.findings import Finding
from pytest_qat.measure.parity import HEALTHY_DB
from pytest_qat.measure.size import take_census
from pytest_qat.measure.untrained import why_random
from pytest_qat.pipeline.finite import DIVERGED
from pytest_qat.pipeline.run import ModelRun, NotApplicable, StageFailed
from pytest_qat.runtimes.base import OpTime
from pytest_qat.verdict import Outcome
from pytest_qat.workflows.names import user_names

__all__ = ["with_causes"]

_NO_RECIPE_S = (DataError, InvalidCase, TrainingError)
"""The model, its data or its training are the reason."""
_MOST_SMALLER = 8.0
"""No recipe shrinks float32 further than to four bits."""
_MOST_FASTER = 8.0
"""Int8 products have at most four times the throughput of float32's; the rest is for copies that get smaller, too."""
Explain = Callable[[ModelRun, CheckResult], tuple[Finding, ...]]


def with_causes(checks: ModelChecks, result: CheckResult, *, others: bool = True) -> CheckResult:
    """Explain the result of a check, and add what was found to the record.

    Args:
        checks: The checks of the run, one of which gave the result.
        result: What it concluded.
        others: Whether to try other recipes after a failure; not where they are judged anyway.

    Returns:
        The result with the findings added; the verdict stays as it is, even if looking for causes fails.
    """
    try:
        found = _explained(checks, result, others=others)
    except Exception as error:  # a verdict must not get lost with its explanation
        found = (Finding(
            code="diagnosis-failed", severity="warning", evidence={"error": type(error).__name__},
            message=f"looking for the causes of {result.check} raised {_text_of(error)}; the verdict does not depend "
                    "on it.",
            remedy="report it to pytest-qat with the model's structure."),)
    checks.add_findings(found)
    return replace(result, findings=(*result.findings, *found))


def _explained(checks: ModelChecks, result: CheckResult, *, others: bool) -> tuple[Finding, ...]:
    explain = _EXPLAIN.get(result.judged or "")
    found = () if explain is None else explain(checks.run, result)
    if result.verdict.outcome is Outcome.FAILED and checks.run.settings.diagnose_s > 0:
        if result.judged in ("parity", "accuracy"):
            checks.add_diagnosis(seconds=checks.run.shared.probing_s, stages=as_record(compared(checks.run)))
        if result.judged == "accuracy":
            found = (*found, *_what_mends(checks, found))
    found = (*found, *_of_given_stages(checks, result, known=(*result.findings, *found)))
    return (*found, *_what_would_do(checks, result, known=(*result.findings, *found))) if others else found


def _of_given_stages(checks: ModelChecks, result: CheckResult, *, known: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return what is wrong with the stages that the case brings, once, after a failed check that they may explain."""
    run, case = checks.run, checks.run.case
    given = case.prepared is not None or case.converted is not None
    if not given or result.verdict.outcome is not Outcome.FAILED or result.judged not in _EXPLAIN or (
            run.settings.diagnose_s <= 0):
        return ()
    try:
        diagnosis = run.stage("the stages given", lambda: diagnosed(
            stages_of(case), seconds=run.settings.diagnose_s / 2))
    except StageFailed:
        return ()  # what there is to say of the check is said
    codes = {finding.code for finding in known}
    return tuple(finding for finding in diagnosis.findings if finding.severity != "note" and finding.code not in codes)


def _what_mends(checks: ModelChecks, found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return what came of changes to the case after accuracy has failed, and keep it in the record."""
    mending = mended(checks.run, changes_for(checks.run, found))
    largest: list[list[Any]] = next((
        finding.evidence["largest"] for finding in found if "largest" in finding.evidence), [])
    checks.add_diagnosis(seconds=checks.run.shared.probing_s,
                         layers=[{"module": module, "share_of_error": share} for module, share in largest],
                         remedies=[] if mending is None else mending.evidence["remedies"])
    return () if mending is None else (mending,)


def _what_would_do(checks: ModelChecks, result: CheckResult, *, known: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return which recipe would do, after a failure; nothing where the model or its data are the reason."""
    run, need = checks.run, _need(checks.run, result, known)
    if need is None or run.settings.diagnose_s <= 0 or isinstance(result.error, _NO_RECIPE_S) or any(
            finding.code in DIVERGED for finding in known):
        return ()
    try:
        run.inputs()
    except StageFailed as failed:
        if not isinstance(failed.error, UnsupportedEnvironment):  # the machine lacks what this recipe needs, no other
            return ()
    blamed = [finding.module for finding in known
              if finding.module and (finding.severity == "error" or "place" in finding.evidence)]
    of_this_engine = isinstance(result.error, UnsupportedEnvironment)
    return (recipes_that_take(run, need, command=checks.command, blamed=blamed,
                              check="convert" if of_this_engine else result.judged or result.owner or result.check),)


def _need(run: ModelRun, result: CheckResult, known: Sequence[Finding]) -> Need | None:
    """Return what another recipe must show to be worth a word after this result; None: nothing would be."""
    if result.verdict.outcome is not Outcome.FAILED:
        return None
    if result.judged is None:
        return need_of(result.owner, result.tolerances) if result.owner in ("prepare", "convert") else None
    if result.judged == "speedup":
        # A trial is timed in a forked process, which has one thread.
        in_reach = run.settings.threads == 1 and result.tolerances.min_speedup <= _MOST_FASTER
        return need_of("speedup", result.tolerances) if in_reach else None
    if result.judged == "accuracy":
        return _need_of_accuracy(run, result, known)
    if result.judged == "size" and result.tolerances.min_size_reduction > _MOST_SMALLER:
        return None
    return need_of(result.judged, result.tolerances) if result.judged in ("coverage", "parity", "size") else None


def _need_of_accuracy(run: ModelRun, result: CheckResult, known: Sequence[Finding]) -> Need | None:
    """Another recipe is worth trying where quantization itself loses it, not training and not the kernels."""
    if {"remedy-mends", "qat-below-ptq", "lost-in-training", "batch-norm-drifted", "calibration-unlike-evaluation",
        "lost-in-conversion", "flat-output"} & {finding.code for finding in known}:
        return None
    try:
        reached = run.parity().quantization_sqnr_db
    except (StageFailed, NotApplicable):
        return None
    return need_of("accuracy", result.tolerances, float_db=reached) if reached < HEALTHY_DB else None


def _text_of(error: Exception) -> str:
    return error_text(error.error if isinstance(error, StageFailed) else error).rstrip(".")


def _prepare(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    brings_converted_only = run.case.converted is not None and run.case.prepared is None
    if brings_converted_only:
        return (*run.notes_on_model, *notes_on_preparing(run.case, None))
    prepared = run.prepared()
    return (*run.notes_on_model, *prepared.findings, *notes_on_preparing(run.case, prepared.module))


def _convert(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    done = run.converted()
    if done.prepared is None:
        return ()
    return (*done.int8.findings, *switched_off(done.left_off), *collapsed_ranges(
        done.prepared.module, untrained=bool(why_random(run.case.model))))


def _coverage(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    return causes_of_coverage(run.coverage())


def _parity(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    parity, done = run.parity(), run.converted()
    if result.verdict.outcome is not Outcome.FAILED or not (parity.finite and parity.prepared_finite):
        return ()
    prepared = done.prepared
    assert prepared is not None, "unreachable because parity compares with it"
    try:
        culprit = run.stage("divergence", lambda: first_divergence(
            prepared.module, done.int8.module, calibration_batches(run.case, limit=1)[0]))
    except StageFailed as failed:
        return (kernels_disagree(parity, None, unknown_because=error_text(failed.error)),)
    return (kernels_disagree(parity, culprit),)


def _accuracy(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    accuracy = run.accuracy()
    lost = why_lost(run, accuracy) if result.verdict.outcome is Outcome.FAILED else ()
    scores = causes_of_scores(accuracy, run.converted().fine_tuning, higher_is_better=accuracy.higher_is_better,
                              tolerance=result.tolerances.accuracy_drop)
    by_training = {"lost-in-training", "batch-norm-drifted"} & {finding.code for finding in lost}
    return (*lost, *(finding for finding in scores if not by_training or finding.code != "qat-below-ptq"))


def _size(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    pair = run.deployed()
    allowed = pair.fp32["contiguous"].size_bytes / max(result.tolerances.min_size_reduction, 1e-9)
    return causes_of_size(take_census(pair.int8["contiguous"]), allowed_bytes=allowed, dead=_dead_names(run))


def _dead_names(run: ModelRun) -> list[str]:
    """Return how the tensors that nothing reads are called in the artifact, where a workflow may have wrapped them."""
    actual: dict[str, list[str]] = {}
    for name, own in user_names(run.converted().int8.module).items():
        actual.setdefault(own, []).append(name)
    found = []
    for idle in run.coverage().idle:
        places = [idle.module, *actual.get(idle.module, ())]
        if idle.called or not idle.module:
            leaves = [name.rpartition(".")[2] for name in idle.names]
            found += [*idle.names, *(f"{place}.{leaf}" for place in places if place for leaf in leaves)]
        else:
            found += [f"{place}." for place in places]
    return found


def _speedup(run: ModelRun, result: CheckResult) -> tuple[Finding, ...]:
    floor = result.tolerances.min_speedup
    speed = run.speed(floor)

    def op_times() -> tuple[Sequence[OpTime], Sequence[OpTime]]:
        try:
            return run.op_times(speed.layouts)
        except StageFailed:  # a profiler that fails must not cost the other causes
            return (), ()

    return causes_of_speed(speed, floor, run.coverage(), op_times)


_EXPLAIN: Mapping[str, Explain] = MappingProxyType({
    "prepare": _prepare, "convert": _convert, "coverage": _coverage, "parity": _parity, "accuracy": _accuracy,
    "size": _size, "speedup": _speedup})
