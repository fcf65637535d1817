"""Compare the stages that a user made, and explain the step that loses most: training, rounding or the int8 kernels."""

from __future__ import annotations

import contextlib
import copy
import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.core.batches import call, sample_count
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.divergence import first_divergence
from pytest_qat.diagnosis.effects import places_of
from pytest_qat.diagnosis.given import Given, outputs_of
from pytest_qat.diagnosis.int8_layers import fused_form, one_module_for_unlike_calls, worst_layer
from pytest_qat.diagnosis.lost import lost_by_rounding
from pytest_qat.errors import NotComparable, QATError
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.accuracy import Accuracy, Scores, compare_scores
from pytest_qat.measure.agreement import OutputAgreement, compare_outputs
from pytest_qat.measure.flat_outputs import FlatOutput, flat_outputs
from pytest_qat.measure.parity import HEALTHY_DB, MARGIN_DB
from pytest_qat.measure.scoring import evaluate
from pytest_qat.measure.statistics import is_binary
from pytest_qat.verdict import SIGNIFICANT, score_text
from pytest_qat.workflows.kernels import replace_wrong_kernels
from pytest_qat.workflows.names import user_names
from pytest_qat.workflows.observers import switch_fake_quantize

__all__ = ["StageComparison", "compare_stages", "stage_forms", "what_loses"]

_SAME_DB = 80.0
"""Fusing only folds batch norm, so that a fused model agrees with the float one to this and more."""
_NOTICEABLE_DB = 18.0
"""Agreement below which outputs are taken for wrong where nobody knows what they are good for."""
_UNRELATED_DB = 10.0
_NAMED = 5
_ALLOWED = 0.01
_LARGE = 0.05
_SAME_SCALE = 0.01
_MUCH = 0.4
"""Share of a drop that a step must make to be looked into; it is the first that does, for others may follow from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageComparison:
    """One step from float to int8.

    Attributes:
        before: The stage that is taken for right: `float`, `fused`, `unrounded` or `fake-quantize`.
        after: The next one; the last is `int8`.
        agreement: How far their outputs agree.
    """

    before: str
    after: str
    agreement: OutputAgreement

    def __str__(self) -> str:
        seen = self.agreement
        same = "" if seen.same_class is None else f", same class for {percent(seen.same_class)}"
        return (f"{self.before} -> {self.after}: {seen.sqnr_db:.1f} dB ({seen.mean_removed_db:.1f} without means, "
                f"{seen.worst_column_db:.1f} in the worst column){same}")


def stage_forms(given: Given) -> dict[str, nn.Module]:
    """Return the stages that there are or that can be derived, in their order."""
    forms: dict[str, nn.Module] = {"float": given.float_model}
    if given.fused is not None:
        forms["fused"] = copy.deepcopy(given.fused).eval()
    if given.rounding is not None:
        plain = copy.deepcopy(given.rounding)
        switch_fake_quantize(plain, on=False)
        forms |= {"unrounded": plain, "fake-quantize": copy.deepcopy(given.rounding)}
    if given.converted is not None:
        forms["int8"] = copy.deepcopy(given.converted).eval()
    return forms


def compare_stages(given: Given, forms: dict[str, nn.Module]) -> tuple[StageComparison, ...]:
    """Return how far each stage agrees with the one before it.

    Args:
        given: Whose inputs to use.
        forms: What `stage_forms` returned.

    Raises:
        NotComparable: the stages return no float tensors, or tensors of different shapes.
    """
    made = {name: outputs_of(model, given.batches) for name, model in forms.items()}
    names = list(made)
    return tuple(StageComparison(before=before, after=after, agreement=compare_outputs(made[before], made[after]))
                 for before, after in itertools.pairwise(names))


def what_loses(given: Given, forms: dict[str, nn.Module], stages: tuple[StageComparison, ...], *,
               seconds: float) -> tuple[Finding, ...]:
    """Return what makes the int8 model worse than float, or nothing where it is not.

    Args:
        given: What the user gave.
        forms: What `stage_forms` returned.
        stages: Their comparison.
        seconds: Most seconds to look for modules.
    """
    levels = {stage.after: stage.agreement.sqnr_db for stage in stages}
    scores = _scores(given, forms)
    differs = _step_that_differs(given, forms, levels)
    step = differs if scores is None else _step_that_costs(
        given, scores, forms, noticeable=differs is not None)
    broken = next((stage for stage in stages if stage.after == "fused" and levels["fused"] < _SAME_DB), None)
    if broken is not None and step != "training":
        return (_fused_differs(given, forms, broken),)
    lowest = min((levels[stage] for stage in ("fake-quantize", "int8") if stage in levels), default=_SAME_DB)
    unnoticed = step is None and differs is not None and lowest < _UNRELATED_DB
    if unnoticed or (step == "conversion" and levels["fake-quantize"] < _UNRELATED_DB):
        step = "whole" if "fake-quantize" not in forms else (
            "rounding" if levels["fake-quantize"] < _UNRELATED_DB else "conversion")
    elif step is None and "fake-quantize" in forms and "int8" in forms and _kernel_at_fault(levels):
        step = "conversion"  # whatever it costs on these samples
    if step is None:
        return ()
    found = _explained(step, given, forms, scores, levels, seconds=seconds)
    return tuple(replace(each, severity="warning") if each.severity == "error" else each
                 for each in found) if unnoticed and scores is not None else found


def _explained(step: str, given: Given, forms: dict[str, nn.Module], scores: dict[str, Scores] | None,
               levels: dict[str, float], *, seconds: float) -> tuple[Finding, ...]:
    """Return what is behind the step that loses most."""
    if step == "training":
        return (_of_training(given, scores),) if scores is not None else ()
    if step == "rounding":
        return _of_rounding(given, forms, seconds=seconds)
    flat = _flat(given, forms["float"], forms["int8"])
    if step == "conversion":
        return tuple(map(_unlike_columns, flat[:1])) if _some(flat) and not _kernel_at_fault(levels) else _of_kernels(
            given, forms, levels["int8"])
    found = worst_layer(given, forms["int8"])
    return (found,) if found is not None else tuple(map(_unlike_columns, flat[:1]))


def _kernel_at_fault(levels: dict[str, float]) -> bool:
    """Whether the converted model as a whole computes something other than the simulated one."""
    return levels["int8"] < min(HEALTHY_DB, levels["fake-quantize"] - MARGIN_DB)


def _scores(given: Given, forms: dict[str, nn.Module]) -> dict[str, Scores] | None:
    """Return what each stage scores by the evaluation data; None where there are none, or no score fits them."""
    if given.case.eval_data is None:
        return None
    try:
        with torch.inference_mode():
            return {name: evaluate(partial(call, model), given.case.eval_data, given.case.metric,
                                   like=given.case.example_inputs) for name, model in forms.items()}
    except QATError:
        if given.case.metric is not None:
            raise
        return None  # the default score does not fit these targets; outputs can be compared all the same


def _lost(given: Given, before: Scores, after: Scores) -> Accuracy:
    return compare_scores(before, after, None, higher_is_better=given.case.higher_is_better)


def _step_that_costs(given: Given, scores: dict[str, Scores], forms: dict[str, nn.Module], *,
                     noticeable: bool) -> str | None:
    """Return the first step that makes a good part of a drop that matters; None where there is no such drop.

    A small drop, or one of a score that is no share of something (an error), counts only where outputs differ, too.
    """
    last = list(forms)[-1]
    whole = _lost(given, scores["float"], scores[last])
    if last == "float" or whole.p_value >= SIGNIFICANT or whole.drop <= whole.allowed(_ALLOWED) or not (
            noticeable or (is_binary(scores["float"].values) and whole.drop > _LARGE)):
        return None
    steps: dict[str, float] = {}
    if "unrounded" in forms:
        steps["training"] = _lost(given, scores["float"], scores["unrounded"]).drop
        steps["rounding"] = _lost(given, scores["unrounded"], scores["fake-quantize"]).drop
        if "int8" in forms:
            steps["conversion"] = _lost(given, scores["fake-quantize"], scores["int8"]).drop
    else:
        steps["whole"] = whole.drop
    return next((step for step, lost in steps.items() if lost >= _MUCH * whole.drop), None)


def _step_that_differs(given: Given, forms: dict[str, nn.Module], levels: dict[str, float]) -> str | None:
    """Return the step whose outputs differ by more than a healthy model's do."""
    if "unrounded" in forms:
        if "int8" in forms and _kernel_at_fault(levels):
            return "conversion"
        if levels["fake-quantize"] < _NOTICEABLE_DB or _flat(given, forms["unrounded"], forms["fake-quantize"]):
            return "rounding"
        return "conversion" if "int8" in forms and _flat(given, forms["fake-quantize"], forms["int8"]) else None
    if "int8" not in forms:
        return None
    noticeable = levels["int8"] < _NOTICEABLE_DB or _flat(given, forms["float"], forms["int8"])
    return "whole" if noticeable else None


def _flat(given: Given, before: nn.Module, after: nn.Module) -> tuple[FlatOutput, ...]:
    """Return outputs that vary in one form, and hardly any more in another."""
    with contextlib.suppress(NotComparable), torch.inference_mode():
        made = [[call(model, inputs) for inputs in given.batches] for model in (before, after)]
        return tuple(each for each in flat_outputs(*made, small=True, samples=[
            sample_count(inputs) for inputs in given.batches])
                     if not each.faint)
    return ()


def _of_rounding(given: Given, forms: dict[str, nn.Module], *, seconds: float) -> tuple[Finding, ...]:
    """Return whose rounding loses it, and why; where it is the scale that several outputs share, that."""
    if (shared := one_module_for_unlike_calls(fused_form(given), given)) is not None:
        return (shared,)
    found = lost_by_rounding(given.case, forms["fake-quantize"], budget_s=seconds)
    flat = _flat(given, forms["unrounded"], forms["fake-quantize"])
    known = next((each for each in found if each.severity == "error"), None)
    if _some(flat) and (known is None or known.code == "rounding-too-coarse"):
        return (replace(_unlike_columns(flat[0]), module=known.module if known else None),)
    return found


def _some(flat: tuple[FlatOutput, ...]) -> bool:
    """Whether some columns of an output went flat, and others did not."""
    return bool(flat) and len(flat[0].columns) < flat[0].of


def _unlike_columns(flat: FlatOutput) -> Finding:
    return Finding(
        code="one-scale-for-unlike-columns", severity="error",
        evidence={"output": flat.output, "columns": list(flat.columns[:_NAMED]), "flat": len(flat.columns),
                  "of": flat.of, "std_fp32": flat.spread, "std_int8": flat.left},
        message=f"{flat.label} varies by {flat.spread:.3g} (standard deviation) in float, and in int8 by "
                f"{flat.left:.3g}, with {flat.values} distinct value{'' if flat.values == 1 else 's'}: all columns of "
                "a tensor share one scale, whose steps are too coarse for these.",
        remedy="bring the columns to one range, or return them as outputs of their own instead of concatenating them.")


def _fused_differs(given: Given, forms: dict[str, nn.Module], stage: StageComparison) -> Finding:
    divergence: Any = None
    with torch.inference_mode():
        divergence = first_divergence(forms["float"], forms["fused"], given.batches[0])
    return Finding(
        code="fused-differs", severity="error", module=divergence.module if divergence else None,
        evidence={"sqnr_db": json_number(stage.agreement.sqnr_db)},
        message=f"the fused model agrees with the float one to {stage.agreement.sqnr_db:.1f} dB, where folding batch "
                f"norm leaves {_SAME_DB:.0f} dB and more: what was fused is not the same model.",
        remedy="fuse a copy of the trained model in eval mode, and only layers that follow each other and whose value "
               "goes nowhere else.")


def _of_training(given: Given, scores: dict[str, Scores]) -> Finding:
    lost = _lost(given, scores["float"], scores["unrounded"])
    return Finding(
        code="lost-in-training", severity="error",
        evidence={"fp32": lost.fp32, "unrounded": lost.int8, "p_value": lost.p_value},
        message=f"with nothing rounded the prepared model scores {score_text(lost, lost.int8)}, float "
                f"{score_text(lost, lost.fp32)}: training lost it, not int8.",
        remedy="look at the training loop: a learning rate a tenth of the float model's or less, enough steps, its "
               "targets, and that its data and preprocessing are those of the float model's training.")


def _of_kernels(given: Given, forms: dict[str, nn.Module], level: float) -> tuple[Finding, ...]:
    """Return which layer's int8 kernel computes something other than what was simulated."""
    if (other := _other_qparams(forms)) is not None:
        return (other,)
    wrong = replace_wrong_kernels(copy.deepcopy(forms["int8"]), given.batches[0])
    if wrong:
        name = min(wrong, key=lambda each: wrong[each])
        kind = type(forms["int8"].get_submodule(name)).__name__
        return (Finding(
            code="wrong-int8-kernel", severity="error", module=user_names(forms["int8"])[name] or None,
            evidence={"sqnr_db": json_number(wrong[name]), "end_to_end_db": json_number(level)},
            message=f"the kernel of this {kind} agrees to {wrong[name]:.1f} dB with float arithmetic on the same int8 "
                    "numbers, where right kernels leave 40 dB and more.",
            remedy="leave this layer in float, or convert for another quantized engine."),)
    divergence = first_divergence(forms["fake-quantize"], forms["int8"], given.batches[0])
    if divergence is None and level > _UNRELATED_DB:
        return ()  # ops that are no modules round, too, which nothing simulated
    place = "" if divergence is None else f", first at this {divergence.kind} ({divergence.sqnr_db:.1f} dB)"
    return (Finding(
        code="kernels-disagree", severity="error", module=divergence.module if divergence else None,
        evidence={"sqnr_db": json_number(level)},
        message=f"the converted model agrees with the prepared one to {level:.1f} dB{place}: it computes something "
                "other than what fake-quantize simulated.",
        remedy="convert the prepared model again as it is now; if that gives the same, leave this module in float."),)


def _other_qparams(forms: dict[str, nn.Module]) -> Finding | None:
    """Return the first layer that was converted with another scale than the one observed for it."""
    rounding, int8 = forms["fake-quantize"], forms["int8"]
    theirs = user_names(int8)
    outputs: dict[str, Any] = {place.module: rounding.get_submodule(place.quantizers[0])
                               for place in places_of(rounding) if place.kind == "output"}
    known = {name: quantizer for name, quantizer in outputs.items()
             if isinstance(getattr(quantizer, "scale", None), Tensor) and quantizer.scale.numel() == 1}
    for name, module in int8.named_modules():
        scale = getattr(module, "scale", None)
        quantizer = known.get(theirs[name])
        if quantizer is None or not isinstance(scale, float) or not type(module).__module__.startswith("torch.ao.nn"):
            continue
        if abs(scale / float(quantizer.scale) - 1) > _SAME_SCALE:
            return Finding(
                code="kernels-disagree", severity="error", module=theirs[name] or None,
                evidence={"converted": scale, "observed": float(quantizer.scale)},
                message=f"this {type(module).__name__} was converted with the scale {scale:.4g}, but the prepared "
                        f"model holds {float(quantizer.scale):.4g} for it.",
                remedy="convert the prepared model again as it is now, and change no scale after that.")
    return None
