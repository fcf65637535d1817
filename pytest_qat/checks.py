"""Make the checks of one run: compute the stages that a check needs, judge the numbers, and keep the record.

The record is plain data in the form of `--qat-json`, so that it crosses to an xdist controller unchanged. Checks say
what was measured and whether it is enough; why it is not is for `diagnosis`, which whoever makes a check asks next.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from pytest_qat import verdict as judge
from pytest_qat.case import Tolerances
from pytest_qat.core.tracebacks import headline
from pytest_qat.errors import CheckFailed, MissingPackage, QATError
from pytest_qat.findings import Finding
from pytest_qat.measure.size import take_census
from pytest_qat.pipeline.run import ModelRun, NotApplicable, StageFailed
from pytest_qat.record import metrics as record
from pytest_qat.record.schema import CHECK_OF_TOLERANCE, CHECKS, CheckRecord, Metrics, RunRecord
from pytest_qat.verdict import Outcome, Verdict
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["CheckResult", "ModelChecks", "error_text"]

NEED_INT8 = frozenset({"parity", "accuracy", "size", "speedup", "roundtrip"})
"""Checks that say nothing about a model in which nothing computes in int8."""
STAGE_OWNERS = {"inputs": "prepare", "prepare": "prepare", "convert": "convert", "deploy": "convert",
                "coverage": "coverage"}
"""The check that fails if a stage fails; other checks that need the stage are blocked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check concluded.

    Attributes:
        check: Name of the check.
        verdict: Outcome and reasons.
        tolerances: The bounds that it was made with.
        judged: Name of the check whose numbers the verdict rests on: this one; or `coverage`, if nothing computes in
            int8; or None, if a stage failed before there were any numbers.
        owner: Name of the check that owns the stage that failed, where one did.
        findings: What stages that failed said about the model, and what diagnosis added.
        error: What to raise for a failed check instead of `CheckFailed`: a tool error, or an unforeseen one with its
            traceback.
    """

    check: str
    verdict: Verdict
    tolerances: Tolerances
    judged: str | None = None
    owner: str | None = None
    findings: tuple[Finding, ...] = ()
    error: Exception | None = None


class ModelChecks:
    """The checks of one model by one recipe, and their record.

    Args:
        run: The stages.
        reference: The reference under which the model was asked for.
        command: What checks the model again on the command line, without a recipe; empty: nothing does.

    Attributes:
        run: The stages.
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
        """The reference under which the model was asked for."""
        return self._record["model"]

    def record(self) -> RunRecord:
        """Return a copy of the record so far."""
        return copy.deepcopy(self._record)

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Add findings to the record; one that is there already is kept once."""
        known = self._record["findings"]
        for finding in findings:
            entry = finding.as_dict()
            if entry not in known:
                known.append(entry)

    def check(self, name: str, *, selected: Collection[str] = CHECKS,
              tolerances: Tolerances | None = None) -> CheckResult:
        """Make one check and put its outcome into the record.

        Args:
            name: One of `CHECKS`.
            selected: The checks that this session makes. A stage that fails blocks this check only if the check that
                owns the stage is among them, so that no failure is lost.
            tolerances: Bounds to use instead of the run's.
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
        """Return what follows from an error that left nothing to judge."""
        owner = name
        if isinstance(error, StageFailed):
            owner, error = STAGE_OWNERS.get(error.stage, name), error.error
        if isinstance(error, NotApplicable):
            verdict = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(str(error),))
        elif isinstance(error, MissingPackage):
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

    # -- one method a check ---------------------------------------------------------------------------------------

    def _checks(self) -> Mapping[str, Callable[[Tolerances], Verdict]]:
        return {"prepare": self._prepare, "convert": self._convert, "coverage": self._coverage,
                "parity": self._parity, "accuracy": self._accuracy, "size": self._size,
                "speedup": self._speedup, "roundtrip": self._roundtrip}

    def _prepare(self, tolerances: Tolerances) -> Verdict:
        if self.run.case.converted is not None and self.run.case.prepared is None:
            self.run.inputs()
            return _passed("the case brings its own converted model.")
        count = sum(1 for _ in fake_quantizers(self.run.prepared().module))
        return _passed(f"{count} fake-quantize modules inserted.")

    def _convert(self, tolerances: Tolerances) -> Verdict:
        done = self.run.converted().fine_tuning
        self.run.deployed()
        self._record["fine_tuning"] = {
            "kind": done.kind, "steps": done.steps, "first_loss": done.first_loss, "last_loss": done.last_loss}
        return _passed({
            "data": f"fine-tuned for {done.steps} steps, loss {done.first_loss or 0:.4f} -> {done.last_loss or 0:.4f}.",
            "own": "fine-tuned by the case's own train.",
            "none": "not fine-tuned, only calibrated: the case gives neither train nor train_data.",
            "given": "the case brings its own converted model." if self.run.case.converted is not None else
                     "the case brings its own prepared model, which is converted as it is.",
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
                                    higher_is_better=self.run.case.higher_is_better)

    def _size(self, tolerances: Tolerances) -> Verdict:
        pair = self.run.deployed()
        fp32, int8 = (take_census(side["contiguous"]) for side in (pair.fp32, pair.int8))
        record.add_size(self._metrics, fp32=fp32, int8=int8)
        self._note_memory()
        return judge.judge_size(fp32.total_bytes, int8.total_bytes, tolerances)

    def _note_memory(self) -> None:
        """Record peak memory if it can be measured, else the reason; no verdict depends on it."""
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
            raise NotApplicable("the converted model has no qparams that can be read, so there is nothing to check.")
        if broken:
            where = broken[0].module or "the model"
            raise CheckFailed([f"quantize-dequantize breaks its law on the qparams of {where}."], findings=broken)
        return _passed(f"quantize-dequantize keeps its law on {count} quantized tensors.")

    @property
    def _metrics(self) -> Metrics:
        return self._record["metrics"]


def error_text(error: Exception) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, CheckFailed):
        return error.reasons[0]
    if isinstance(error, QATError):
        return error.message
    return f"{type(error).__name__}: {headline(error)}"


def _passed(reason: str) -> Verdict:
    return Verdict(outcome=Outcome.PASSED, reasons=(reason,))


def _blocked(by: str, reason: str) -> Verdict:
    return Verdict(outcome=Outcome.BLOCKED, reasons=(f"{by} failed ({reason.rstrip('.')}).",))
