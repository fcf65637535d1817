"""Make the checks of one run: compute the stages that a check needs, judge the numbers, and keep the record.

The record is plain data in the form of `--qat-json`, so it reaches an xdist controller unchanged. A check says what was
measured and whether that is enough. `diagnosis` finds out why it is not; callers run it after a failed check.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_qat import verdict as judge
from pytest_qat.case import Tolerances
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import CheckFailed, MissingPackage, NotComparable, QATError
from pytest_qat.findings import Finding
from pytest_qat.measure.size import take_census
from pytest_qat.pipeline.run import ModelRun, NotApplicable, StageFailed
from pytest_qat.record import metrics as record
from pytest_qat.record.schema import CHECK_OF_TOLERANCE, CHECKS, CheckRecord, Metrics, RemedyRecord, RunRecord
from pytest_qat.verdict import Outcome, Verdict
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["CheckResult", "ModelChecks", "error_text"]

NEED_INT8 = frozenset({"parity", "accuracy", "size", "speedup", "roundtrip"})
"""Checks that are meaningless if nothing in the model computes in int8."""
STAGE_OWNERS = {"inputs": "prepare", "prepare": "prepare", "convert": "convert", "deploy": "convert",
                "coverage": "coverage"}
"""The check that fails if a stage fails. Other checks that need the stage are blocked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check concluded.

    Attributes:
        check: Name of the check.
        verdict: Outcome and reasons.
        tolerances: The tolerances that the check used.
        judged: Name of the check whose numbers decided the verdict: this one, or `coverage` if nothing computes in
            int8, or None if a stage failed before there were any numbers.
        owner: Name of the check to which the failed stage belongs, if a stage failed.
        findings: Findings from failed stages and from diagnosis.
        error: Exception to raise for a failed check instead of `CheckFailed`: a tool error, or an unexpected exception
            with its traceback.
    """

    check: str
    verdict: Verdict
    tolerances: Tolerances
    judged: str | None = None
    owner: str | None = None
    findings: tuple[Finding, ...] = ()
    error: Exception | None = None


class ModelChecks:
    """The checks of one model with one recipe, and their record.

    Args:
        run: The stages of the model.
        reference: The reference by which the user named the model.
        command: The command that checks the model again, without a recipe; empty if there is none.

    Attributes:
        run: The stages of the model.
        command: As given.
    """

    def __init__(self, run: ModelRun, *, reference: str, command: str = "") -> None:
        self.run = run
        self.command = command
        self._record: RunRecord = {
            "model": reference, "recipe": run.recipe.name, "name": run.case.label, "workflow": run.recipe.workflow,
            "runtime": run.recipe.runtime, "engine": run.recipe.engine, "threads": run.settings.threads,
            "batch": None, "fine_tuning": None, "tolerances": run.settings.tolerances.as_dict(),
            "metrics": record.no_metrics(), "checks": {}, "findings": [], "diagnosis": None}

    @property
    def reference(self) -> str:
        """The reference by which the user named the model."""
        return self._record["model"]

    def record(self) -> RunRecord:
        """Return a copy of the record so far."""
        return copy.deepcopy(self._record)

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Add findings to the record, except those that it already contains."""
        known = self._record["findings"]
        for finding in findings:
            entry = finding.as_dict()
            if entry not in known:
                known.append(entry)

    def add_diagnosis(self, *, seconds: float, stages: Sequence[Mapping[str, object]] = (),
                      layers: Sequence[Mapping[str, object]] = (), remedies: Sequence[RemedyRecord] = ()) -> None:
        """Add what was found out about a failed check, and what was tried, to the record.

        Args:
            seconds: What went into looking for causes and remedies so far.
            stages: How far each stage agrees with the one before it; those of another check are the same.
            layers: Modules with the share of the error that their rounding makes.
            remedies: What was tried.
        """
        known = self._record["diagnosis"] or {"seconds": 0.0, "stages": [], "layers": [], "remedies": []}
        self._record["diagnosis"] = {"seconds": round(seconds, 1), "stages": [*stages] or known["stages"],
                                     "layers": [*known["layers"], *layers],
                                     "remedies": [*known["remedies"], *remedies]}

    def check(self, name: str, *, selected: Collection[str] = CHECKS,
              tolerances: Tolerances | None = None) -> CheckResult:
        """Make one check and put its outcome into the record.

        Args:
            name: One of `CHECKS`.
            selected: The checks that this session makes. A failed stage blocks this check only if the check that owns
                the stage is among them; otherwise this check fails, so that the failure is not lost.
            tolerances: Tolerances to use instead of those of the run.
        """
        own = self.run.settings.tolerances
        bounds = tolerances or own
        result = self._result(name, selected, bounds)
        entry: CheckRecord = {"outcome": result.verdict.outcome.value, "reasons": list(result.verdict.reasons)}
        demanded = {field: value for field, value in bounds.as_dict().items()
                    if CHECK_OF_TOLERANCE[field] == name and value != getattr(own, field)}
        if demanded:
            entry["tolerances"] = demanded
        self._record["checks"][name] = entry
        self.add_findings(result.findings)
        return result

    def _result(self, name: str, selected: Collection[str], tolerances: Tolerances) -> CheckResult:
        try:
            self.run.recipe.require_packages()
            if name in NEED_INT8 and not self.run.coverage().reference and self.run.coverage().int8_modules == 0:
                return self._nothing_in_int8(name, selected, tolerances)
            verdict = self._checks()[name](tolerances)
        except Exception as error:
            return self._without_numbers(name, error, selected, tolerances)
        return CheckResult(check=name, judged=name, verdict=self._strictly(verdict), tolerances=tolerances)

    def _nothing_in_int8(self, name: str, selected: Collection[str], tolerances: Tolerances) -> CheckResult:
        nothing = judge.judge_coverage(self.run.coverage(), tolerances)
        if "coverage" in selected:
            return CheckResult(check=name, verdict=_blocked("coverage", nothing.reasons[0]), tolerances=tolerances)
        return CheckResult(check=name, judged="coverage", verdict=nothing, tolerances=tolerances)

    def _without_numbers(self, name: str, error: Exception, selected: Collection[str],
                         tolerances: Tolerances) -> CheckResult:
        """Return the result of a check for which an error prevented the measurement."""
        owner = name
        if isinstance(error, StageFailed):
            owner, error = STAGE_OWNERS.get(error.stage, name), error.error
        if isinstance(error, NotApplicable):
            verdict = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(str(error),))
        elif isinstance(error, (MissingPackage, NotComparable)):
            verdict = self._strictly(Verdict(outcome=Outcome.INCONCLUSIVE,
                                             reasons=(error.message + (
                                                 f" Remedy: {error.hint}" if error.hint else ""),)))
        elif owner != name and owner in selected:
            verdict = _blocked(owner, error_text(error))
        elif isinstance(error, CheckFailed):
            verdict = Verdict(outcome=Outcome.FAILED, reasons=error.reasons)
            return CheckResult(check=name, owner=owner, verdict=verdict, tolerances=tolerances, findings=error.findings)
        else:
            verdict = Verdict(outcome=Outcome.FAILED, reasons=(error_text(error),))
            return CheckResult(check=name, owner=owner, verdict=verdict, tolerances=tolerances, error=error)
        return CheckResult(check=name, verdict=verdict, tolerances=tolerances)

    def _strictly(self, verdict: Verdict) -> Verdict:
        return judge.strictly(verdict, strict=self.run.settings.strict)

    # -- one method per check -------------------------------------------------------------------------------------

    def _checks(self) -> Mapping[str, Callable[[Tolerances], Verdict]]:
        return {"prepare": self._prepare, "convert": self._convert, "coverage": self._coverage,
                "parity": self._parity, "accuracy": self._accuracy, "size": self._size,
                "speedup": self._speedup, "roundtrip": self._roundtrip}

    def _prepare(self, tolerances: Tolerances) -> Verdict:
        if self.run.case.converted is not None and self.run.case.prepared is None:
            self.run.inputs()
            return _passed("the case has its own converted model.")
        count = sum(1 for _ in fake_quantizers(self.run.prepared().module))
        return _passed(f"{count} fake-quantize modules inserted.")

    def _convert(self, tolerances: Tolerances) -> Verdict:
        done = self.run.converted().fine_tuning
        self.run.deployed()
        self._record["fine_tuning"] = {
            "kind": done.kind, "steps": done.steps, "first_loss": done.first_loss, "last_loss": done.last_loss}
        return _passed({
            "data": f"fine-tuned for {done.steps} steps, loss {done.first_loss or 0:.4f} -> {done.last_loss or 0:.4f}.",
            "own": "fine-tuned by the train function of the case.",
            "none": "calibrated but not fine-tuned, because the case has neither train nor train_data.",
            "given": "the case has its own converted model." if self.run.case.converted is not None else
                     "the case has its own prepared model, which is converted as it is.",
        }[done.kind])

    def _coverage(self, tolerances: Tolerances) -> Verdict:
        coverage = self.run.coverage()
        self._metrics["coverage"] = record.coverage_metrics(coverage)
        return judge.judge_coverage(coverage, tolerances)

    def _parity(self, tolerances: Tolerances) -> Verdict:
        parity = self.run.parity()
        self._metrics["parity"] = record.parity_metrics(parity)
        return judge.judge_parity(parity)

    def _accuracy(self, tolerances: Tolerances) -> Verdict:
        accuracy = self.run.accuracy()
        self._metrics["accuracy"] = record.accuracy_metrics(accuracy)
        return judge.judge_accuracy(accuracy, tolerances, strict=self.run.settings.strict,
                                    higher_is_better=accuracy.higher_is_better)

    def _size(self, tolerances: Tolerances) -> Verdict:
        pair = self.run.deployed()
        fp32, int8 = (take_census(side["contiguous"]) for side in (pair.fp32, pair.int8))
        record.add_size(self._metrics, fp32=fp32, int8=int8)
        self._note_memory()
        return judge.judge_size(fp32.total_bytes, int8.total_bytes, tolerances)

    def _note_memory(self) -> None:
        """Record the peak memory, or the reason why it cannot be measured; no verdict depends on it."""
        try:
            self._metrics["peak_memory_bytes"] = record.memory_metrics(self.run.memory())
        except NotApplicable as reason:
            self._metrics["memory_note"] = str(reason)
        except StageFailed as failed:
            self._metrics["memory_note"] = error_text(failed.error)

    def _speedup(self, tolerances: Tolerances) -> Verdict:
        speed = self.run.speed(tolerances.min_speedup)
        record.add_speed(self._metrics, speed)
        self._record["batch"] = speed.samples
        return judge.judge_speedup(speed.like_for_like, tolerances, noise=speed.noise)

    def _roundtrip(self, tolerances: Tolerances) -> Verdict:
        count, broken = self.run.roundtrip()
        if not count:
            raise NotApplicable("the qparams of the converted model cannot be read, so there is nothing to check.")
        if broken:
            where = broken[0].module or "the model"
            raise CheckFailed([f"the round-trip law does not hold for the qparams of {where}."], findings=broken)
        return _passed(f"the round-trip law holds for {count} quantized tensors.")

    @property
    def _metrics(self) -> Metrics:
        return self._record["metrics"]


def error_text(error: Exception) -> str:
    """Return the message of an error, in one line."""
    if isinstance(error, CheckFailed):
        return error.reasons[0]
    if isinstance(error, QATError):
        return error.message
    return f"{type(error).__name__}: {headline(error)}"


def _passed(reason: str) -> Verdict:
    return Verdict(outcome=Outcome.PASSED, reasons=(reason,))


def _blocked(by: str, reason: str) -> Verdict:
    return Verdict(outcome=Outcome.BLOCKED, reasons=(f"{by} failed ({reason.rstrip('.')}).",))
