"""Put one check to a run: compute the stages it needs, judge the numbers, and keep the record of it.

The record is a plain dict in the form of `--qat-json`, so that it crosses to an xdist controller unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_qat import verdict as judge
from pytest_qat.case import Tolerances
from pytest_qat.core.tracebacks import headline
from pytest_qat.diagnosis.ranges import collapsed_ranges
from pytest_qat.errors import CheckFailed, MissingPackage, QATError
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.latency import Latency, Speedup
from pytest_qat.measure.size import SizeCensus, take_census
from pytest_qat.measure.speed import Speed
from pytest_qat.pipeline.run import ModelRun, NotApplicable, StageFailed
from pytest_qat.record.schema import CHECK_OF_TOLERANCE, CHECKS, STAGE_OWNERS
from pytest_qat.verdict import Outcome, Verdict
from pytest_qat.workflows.observers import fake_quantizers

__all__ = ["Assessment", "Result"]

FLOAT_WEIGHT_SHARE = 0.05
"""Share of the int8 artifact from which on a float weight tensor is worth a word."""
LARGEST_TENSORS = 20
NEED_INT8 = frozenset({"parity", "accuracy", "size", "speedup", "roundtrip"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a check concluded.

    Attributes:
        check: Name of the check.
        verdict: Outcome, reasons and findings.
        error: What to raise for a failed check that is not a plain finding: a tool error, or an unforeseen one with
            its traceback.
    """

    check: str
    verdict: Verdict
    error: Exception | None = None


class Assessment:
    """The checks of one run and their record.

    Args:
        run: The stages.
        reference: The REF under which the model was asked for.
    """

    def __init__(self, run: ModelRun, *, reference: str) -> None:
        self.run = run
        self._record: dict[str, Any] = {
            "model": reference, "recipe": run.recipe.name, "name": run.case.label, "workflow": run.recipe.workflow,
            "runtime": run.recipe.runtime, "engine": run.recipe.engine, "threads": run.settings.threads,
            "batch": None, "fine_tuning": None, "tolerances": run.settings.tolerances.as_dict(),
            "metrics": {"accuracy": None, "latency_s": None, "throughput_per_s": None, "speedup": None,
                        "speedup_over_eager": None, "size_bytes": None, "size_reduction": None, "coverage": None,
                        "parity": None, "energy_j_per_sample": None, "throughput_per_w": None,
                        "energy_domains_j": None, "energy_note": None, "peak_memory_bytes": None,
                        "memory_note": None, "size_census": None, "latency_percentiles_s": None, "batches": None},
            "checks": {}, "findings": []}

    def record(self) -> dict[str, Any]:
        """Return the run so far as plain JSON values."""
        return copy.deepcopy(self._record)

    def check(self, name: str, *, selected: Collection[str] = CHECKS, tolerances: Tolerances | None = None) -> Result:
        """Put one check to the run and note the outcome.

        Args:
            name: One of `CHECKS`.
            selected: Checks that this session will make; a failed stage whose own check is not among them fails the
                first check that needs it, so that no failure gets lost.
            tolerances: Instead of the run's.
        """
        own = self.run.settings.tolerances
        bounds = tolerances or own
        result = self._result(name, selected, bounds)
        verdict = result.verdict
        entry = {"outcome": verdict.outcome.value, "reasons": list(verdict.reasons)}
        held = {field: value for field, value in bounds.as_dict().items()
                if CHECK_OF_TOLERANCE[field] == name and value != getattr(own, field)}
        self._record["checks"][name] = {**entry, "tolerances": held} if held else entry
        known = self._record["findings"]
        known.extend(entry for entry in (finding.as_dict() for finding in verdict.findings) if entry not in known)
        return result

    def _result(self, name: str, selected: Collection[str],  # noqa: PLR0911 - one for each way to end
                tolerances: Tolerances) -> Result:
        try:
            self.run.recipe.require_packages()
            if name in NEED_INT8 and self.run.coverage().int8_modules == 0 and not self.run.coverage().reference:
                nothing = judge.judge_coverage(self.run.coverage(), tolerances)
                raise StageFailed("coverage", CheckFailed(nothing.reasons, findings=nothing.findings))
            made = self._checks()[name](tolerances)
            return Result(check=name, verdict=judge.strictly(made, strict=self.run.settings.strict))
        except NotApplicable as reason:
            return Result(check=name, verdict=Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(str(reason),)))
        except MissingPackage as missing:
            return self._skipped(name, missing)
        except StageFailed as failed:
            if isinstance(failed.error, MissingPackage):
                return self._skipped(name, failed.error)
            owner = STAGE_OWNERS.get(failed.stage, name)
            if owner != name and owner in selected:
                return Result(check=name, verdict=Verdict(
                    outcome=Outcome.BLOCKED, reasons=(f"{owner} failed ({_headline(failed.error).rstrip('.')}).",)))
            return _failure(name, failed.error)
        except Exception as error:
            return _failure(name, error)

    def _skipped(self, name: str, missing: MissingPackage) -> Result:
        """Nothing was tried: the reason is how to make it possible."""
        verdict = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=(f"{missing.message} Remedy: {missing.hint}",))
        return Result(check=name, verdict=judge.strictly(verdict, strict=self.run.settings.strict))

    # -- one method a check ---------------------------------------------------------------------------------------

    def _prepare(self, tolerances: Tolerances) -> Verdict:
        if self.run.case.converted is not None and self.run.case.prepared is None:
            self.run.inputs()
            return _passed("the case brings its own converted model.", self._notes())
        module = self.run.prepared().module
        count = sum(1 for _ in fake_quantizers(module))
        return _passed(f"{count} fake-quantize modules inserted.",
                       (*self._notes(), *_nothing_simulated(self.run, count)))

    def _notes(self) -> tuple[Finding, ...]:
        if not self.run.case.model.training:
            return ()
        return (Finding(code="model-in-train-mode", severity="note", remedy="call .eval() before handing it over.",
                        message="the model came in train mode; a copy in eval mode is the float baseline."),)

    def _convert(self, tolerances: Tolerances) -> Verdict:
        made = self.run.converted()
        self.run.deployed()
        done = made.fine_tuning
        self._record["fine_tuning"] = {
            "kind": done.kind, "steps": done.steps, "first_loss": done.first_loss, "last_loss": done.last_loss}
        return _passed({
            "data": f"fine-tuned for {done.steps} steps, loss {done.first_loss or 0:.4f} -> {done.last_loss or 0:.4f}.",
            "own": "fine-tuned by the case's own train.",
            "none": "not fine-tuned: the case gives neither train nor train_data, so this is calibration only.",
            "given": "the case brings its own converted model." if self.run.case.converted is not None else
                     "the case brings its own prepared model, which is converted as it is.",
        }[done.kind], () if made.prepared is None else (
            *_switched_off(made.left_off), *collapsed_ranges(made.prepared.module)))

    def _coverage(self, tolerances: Tolerances) -> Verdict:
        coverage = self.run.coverage()
        self._metrics["coverage"] = {
            "macs": coverage.macs, "int8_macs": coverage.int8_macs, "mac_share": coverage.mac_share,
            "weights": coverage.weights, "int8_weights": coverage.int8_weights,
            "weight_share": coverage.weight_share, "int8_modules": coverage.int8_modules}
        return judge.judge_coverage(coverage, tolerances)

    def _parity(self, tolerances: Tolerances) -> Verdict:
        parity = self.run.parity()
        self._metrics["parity"] = {"sqnr_db": json_number(parity.sqnr_db), "finite": parity.finite,
                                   "quantization_sqnr_db": json_number(parity.quantization_sqnr_db)}
        broken = parity.sqnr_db < parity.limit_db
        return judge.judge_parity(parity, self.run.divergence() if broken else None)

    def _accuracy(self, tolerances: Tolerances) -> Verdict:
        accuracy = self.run.accuracy()
        self._metrics["accuracy"] = _accuracy_metrics(accuracy)
        return judge.judge_accuracy(accuracy, tolerances, strict=self.run.settings.strict,
                                    higher_is_better=self.run.case.higher_is_better,
                                    fine_tuning=self.run.converted().fine_tuning)

    def _size(self, tolerances: Tolerances) -> Verdict:
        pair = self.run.deployed()
        fp32, int8 = pair.fp32["contiguous"].size_bytes, pair.int8["contiguous"].size_bytes
        census = {"fp32": take_census(pair.fp32["contiguous"]), "int8": take_census(pair.int8["contiguous"])}
        self._metrics.update(size_bytes={"fp32": fp32, "int8": int8}, size_reduction=fp32 / int8,
                             size_census={side: _census_metrics(found) for side, found in census.items()})
        self._note_memory()
        return judge.judge_size(fp32, int8, tolerances,
                                float_weights=census["int8"].float_weights(least_share=FLOAT_WEIGHT_SHARE))

    def _note_memory(self) -> None:
        """Report memory if it can be measured; no verdict hangs on it."""
        try:
            memory = self.run.memory()
        except (NotApplicable, StageFailed) as reason:
            self._metrics["memory_note"] = _headline(reason.error) if isinstance(reason, StageFailed) else str(reason)
            return
        self._metrics["peak_memory_bytes"] = {**memory.peak_bytes, "idle": memory.idle_bytes}

    def _speedup(self, tolerances: Tolerances) -> Verdict:
        speed = self.run.speed(tolerances.min_speedup)
        self._metrics.update(_speed_metrics(speed))
        self._record["batch"] = speed.samples
        return judge.judge_speedup(speed.like_for_like, tolerances, noise=speed.noise, batches=speed.batches,
                                   own_batch=speed.samples)

    def _roundtrip(self, tolerances: Tolerances) -> Verdict:
        count, broken = self.run.roundtrip()
        if not count:
            raise NotApplicable("the converted model shows no qparams to drive.")
        if broken:
            return Verdict(outcome=Outcome.FAILED, findings=tuple(broken), reasons=(
                f"quantize-dequantize breaks its law on the qparams of {broken[0].module or 'the model'}.",))
        return _passed(f"quantize-dequantize holds its law on {count} quantized tensors.")

    def _checks(self) -> Mapping[str, Callable[[Tolerances], Verdict]]:
        return {"prepare": self._prepare, "convert": self._convert, "coverage": self._coverage,
                "parity": self._parity, "accuracy": self._accuracy, "size": self._size,
                "speedup": self._speedup, "roundtrip": self._roundtrip}

    @property
    def _metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = self._record["metrics"]
        return metrics


def _passed(reason: str, findings: tuple[Finding, ...] = ()) -> Verdict:
    return Verdict(outcome=Outcome.PASSED, reasons=(reason,), findings=findings)


def _nothing_simulated(run: ModelRun, count: int) -> tuple[Finding, ...]:
    trains = run.case.train is not None or run.case.train_data is not None
    return () if count or not trains else (Finding(
        code="no-fake-quantize", severity="warning",
        message="no fake-quantize module was inserted, so training does not see int8: this is no QAT.",
        remedy="give a mapping for QAT (get_default_qat_qconfig_mapping), or a quantizer with is_qat=True; the others "
               "only observe."),)


def _switched_off(count: int) -> tuple[Finding, ...]:
    return (Finding(
        code="fake-quantize-off", severity="warning", evidence={"modules": count},
        message=f"{count} fake-quantize modules were switched off when training ended: what was trained did not see "
                "int8. They are on again for the comparisons.",
        remedy="leave fake-quantize on until training ends; what may be switched off late are observers."),
    ) if count else ()


def _failure(name: str, error: Exception) -> Result:
    findings = error.findings if isinstance(error, CheckFailed) else ()
    reasons = error.reasons if isinstance(error, CheckFailed) else (_headline(error),)
    verdict = Verdict(outcome=Outcome.FAILED, reasons=tuple(reasons), findings=findings)
    return Result(check=name, verdict=verdict, error=None if isinstance(error, CheckFailed) else error)


def _headline(error: Exception) -> str:
    if isinstance(error, CheckFailed):
        return error.reasons[0]
    if isinstance(error, QATError):
        return error.message
    return f"{type(error).__name__}: {headline(error)}"


def _accuracy_metrics(accuracy: Accuracy) -> dict[str, Any]:
    return {"fp32": accuracy.fp32, "int8": accuracy.int8, "ptq": accuracy.ptq, "fine_tuned": accuracy.fine_tuned,
            "drop": accuracy.drop, "drop_ci": [json_number(end) for end in accuracy.drop_ci],
            "relative_drop": json_number(accuracy.relative_drop), "p_value": accuracy.p_value,
            "ptq_p_value": accuracy.ptq_p_value, "fine_tuned_p_value": accuracy.fine_tuned_p_value,
            "samples": accuracy.samples,
            "provable_drop": json_number(accuracy.provable_drop), "kind": accuracy.kind,
            "is_fraction": accuracy.is_fraction, "sqnr_db": json_number(accuracy.sqnr_db), "flipped": accuracy.flipped,
            "flips": [{"index": flip.index, "target": json_number(flip.target), "before": flip.before,
                       "after": flip.after} for flip in accuracy.flips]}


def _census_metrics(census: SizeCensus) -> dict[str, Any]:
    return {"by_dtype": census.by_dtype, "container": census.container_bytes,
            "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape),
                         "bytes": tensor.size_bytes} for tensor in census.tensors[:LARGEST_TENSORS]]}


def _speed_metrics(speed: Speed) -> dict[str, Any]:
    main, eager, energy = speed.like_for_like, speed.over_eager, speed.energy
    sides = {"fp32": main.baseline, "int8": main.candidate, "fp32_eager": None if eager is None else eager.baseline}
    joules = None if energy is None else energy.joules
    return {
        "latency_s": {side: None if found is None else found.p50 for side, found in sides.items()},
        "latency_percentiles_s": {side: _percentiles(found) for side, found in sides.items()},
        "throughput_per_s": {side: None if found is None else speed.samples / found.p50
                             for side, found in sides.items()},
        "speedup": {**_ratio(main), "noise_floor": json_number(speed.noise_floor), "layouts": speed.layouts,
                    "noise": None if speed.noise is None else _ratio(speed.noise)},
        "speedup_over_eager": None if eager is None else _ratio(eager),
        "batches": [{"batch": entry.batch, "problem": entry.problem, "overhead": entry.overhead,
                     "latency_s": None if (made := entry.speedup) is None else {
                         "fp32": made.baseline.p50, "int8": made.candidate.p50},
                     "speedup": None if made is None else _ratio(made)} for entry in speed.batches] or None,
        "energy_j_per_sample": joules,
        "energy_domains_j": None if energy is None else energy.domains,
        "throughput_per_w": None if joules is None else {side: 1 / value for side, value in joules.items()},
        "energy_note": speed.energy_note}


def _ratio(speedup: Speedup) -> dict[str, Any]:
    return {"estimate": speedup.estimate, "ci": [json_number(end) for end in speedup.ci], "pairs": speedup.pairs,
            "confidence": speedup.confidence, "elapsed_s": speedup.elapsed_s}


def _percentiles(latency: Latency | None) -> dict[str, float] | None:
    return None if latency is None else {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99}
