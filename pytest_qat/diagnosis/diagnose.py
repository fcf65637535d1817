"""Say what is wrong with the stages of a quantized model that its user made: `diagnose`, without pytest or a pipeline.

First come the audits, each of which looks at one thing, in the order of the stages. Where they find no error, the
stages are compared on the evaluation data: what training, rounding and the int8 kernels change, and which module and
cause is behind the step that loses most.
"""

from __future__ import annotations

import contextlib
import copy
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.torch_state import preserved_torch_state, without_fast_path
from pytest_qat.core.tracebacks import headline
from pytest_qat.diagnosis.audits import AUDITS
from pytest_qat.diagnosis.given import Given, received
from pytest_qat.diagnosis.steps import StageComparison, compare_stages, stage_forms, what_loses
from pytest_qat.errors import NotComparable, QATError
from pytest_qat.findings import Finding

__all__ = ["Diagnosis", "Remedy", "diagnose", "diagnosed"]

_DEFAULT_S = 120.0
_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What mends a finding.

    Attributes:
        change: What to do, an imperative sentence.
        code: Code of the finding.
        mends: Share of the outputs' error, from 0 to 1, that went away when it was tried on this model, by other ranges
            or scales at that place; None: it was not tried.
    """

    change: str
    code: str
    mends: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is wrong with a quantized model, and why.

    Attributes:
        findings: What was found, the root cause first; a healthy model has no errors and no warnings.
        stages: How far each stage agrees with the one before it, in the order of the stages.
        layers: The user's modules with the share of the outputs' error that goes away without rounding there, the
            largest first, as far as they were looked at.
        seconds: What looking took.
    """

    findings: tuple[Finding, ...]
    stages: tuple[StageComparison, ...]
    layers: tuple[tuple[str, float], ...]
    seconds: float

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that needs to be mended."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """What mends each error and warning, in their order."""
        return tuple(Remedy(change=finding.remedy, code=finding.code, mends=finding.evidence.get("share_mended"))
                     for finding in self.findings if finding.remedy and finding.severity != "note")

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            place = f" in {finding.module}" if finding.module else ""
            lines.append(_wrapped(f"{finding.severity}: {finding.code}{place}: {finding.message}", indent="  "))
            lines += [_wrapped(f"  remedy: {finding.remedy}", indent="    ")] if finding.remedy else []
        return "\n".join([*lines, *map(str, self.stages)]) or "nothing was found."


def _wrapped(text: str, *, indent: str) -> str:
    return textwrap.fill(text, width=_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def diagnose(float_model: nn.Module, example_inputs: Any, *, fused: nn.Module | None = None,
             prepared: nn.Module | None = None, converted: nn.Module | None = None,
             calibration: Iterable[Any] | None = None, evaluation: Iterable[Any] | None = None,
             metric: Callable[[Any, Any], Tensor] | None = None, higher_is_better: bool = True,
             optimizer: torch.optim.Optimizer | None = None, seconds: float = _DEFAULT_S) -> Diagnosis:
    """Find out what is wrong with a model that you quantized yourself; none of the modules is changed.

    Args:
        float_model: The trained float model, before anything was fused or prepared.
        example_inputs: Arguments of one call, as a tuple.
        fused: The float model with its layers fused.
        prepared: What prepare returned, after calibration or training, in the mode and with the switches as they are.
        converted: What convert returned.
        calibration: Batches of inputs that `prepared` was calibrated on.
        evaluation: Batches of `(inputs, target)`; without them, outputs are compared with the float model's.
        metric: `metric(output, target)` returns one score per sample, shape `(N,)`; the default as in `QATCase`.
        higher_is_better: False where a lower score of `metric` is better.
        optimizer: The one that trains `prepared`; with it, missing fake-quantizers are an error.
        seconds: Most seconds to look for the modules that lose accuracy.

    Raises:
        InvalidCase: a stage is no module, or the float model is quantized already.
        DataError: the evaluation data are no pairs, or a metric cannot be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, in copies of some layers
        given = received(float_model, example_inputs, fused=fused, prepared=prepared, converted=converted,
                         calibration=calibration, evaluation=evaluation, metric=metric,
                         higher_is_better=higher_is_better, optimizer=optimizer)
    return diagnosed(given, seconds=seconds)


def diagnosed(given: Given, *, seconds: float = _DEFAULT_S) -> Diagnosis:
    """Return what is wrong with these stages.

    Args:
        given: The stages; copies that may be switched about.
        seconds: Most seconds to look for modules.
    """
    began = time.monotonic()
    with preserved_torch_state(seed=0), without_fast_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations are not the user's
        findings = list(_audited(given))
        stages: tuple[StageComparison, ...] = ()
        layers: tuple[tuple[str, float], ...] = ()
        if not any(finding.severity == "error" for finding in findings):
            lost: tuple[Finding, ...] = ()
            try:
                forms = stage_forms(given)
                stages = compare_stages(given, forms)
                lost = what_loses(given, forms, stages, seconds=max(1.0, seconds - (time.monotonic() - began)))
            except NotComparable as error:
                lost = (Finding(code="not-comparable", severity="note", message=error.message,
                                remedy=error.hint or ""),)
            except QATError:
                raise
            except Exception as error:  # what the audits found must not get lost
                lost = (_failed("the comparison of the stages", error),)
            known = {finding.code for finding in lost}
            findings = [*lost, *(each for each in findings if each.code not in known)]
            layers = next((tuple((str(name), float(share)) for name, share in finding.evidence["largest"])
                           for finding in lost if "largest" in finding.evidence), ())
    ranks = ("error", "warning", "note")
    findings.sort(key=lambda finding: ranks.index(finding.severity))
    return Diagnosis(findings=tuple(findings), stages=stages, layers=layers,
                     seconds=round(time.monotonic() - began, 3))


def _audited(given: Given) -> Iterator[Finding]:
    """Yield what the audits find; once a stage has an error, later stages only follow from it."""
    told: set[str] = set()
    broken = False
    for _, audits in AUDITS:
        if broken:
            return
        for audit in audits:
            try:
                found = list(audit(_fresh(given)))
            except Exception as error:  # one audit must not cost the others
                found = [_failed(f"the audit {audit.__name__}", error)]
            for finding in found:
                if finding.code not in told:
                    told.add(finding.code)
                    yield finding
            if any(finding.severity == "error" for finding in found):
                broken = True
                break


def _failed(what: str, error: Exception) -> Finding:
    return Finding(code="diagnosis-failed", severity="note", evidence={"error": type(error).__name__},
                   message=f"{what} raised {type(error).__name__}: {headline(error)}.")


def _fresh(given: Given) -> Given:
    """Return the stages with a prepared model of its own, for audits switch and run it."""
    with contextlib.suppress(Exception):
        return replace(given, prepared=copy.deepcopy(given.prepared), converted=copy.deepcopy(given.converted))
    return given
