"""Where accuracy was lost on the way from float to int8, which modules lost it, and why, each measured on the model.

The score is taken of the trained model with nothing rounded, too: what float has more than that, training lost; what
that has more than the model with fake-quantize, rounding lost; what that has more than int8, the kernels lost.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core.batches import call, enough, float_tensors, labeled, sample_count
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.effects import Effects, Errors, Place, effects_of, error_of, places_of, switched_off
from pytest_qat.diagnosis.rounding import TAIL, cause_at, cause_of_part, extent, look_at
from pytest_qat.findings import Finding, json_number
from pytest_qat.finetune import calibrate
from pytest_qat.measure.accuracy import Accuracy
from pytest_qat.measure.evaluation import CALIBRATION_BATCHES, score_of
from pytest_qat.pipeline.run import ModelRun
from pytest_qat.verdict import score_text
from pytest_qat.workflows.observers import fake_quantizers, forget_ranges, switch_fake_quantize, switch_observers

__all__ = ["affordable", "data_that_count", "lost_by_rounding", "nothing_rounded", "why_lost", "with_statistics_of"]

_HALF = 0.5
_BATCHES = 8
_SAMPLES = 256
_FEWEST_SAMPLES = 8
_FEWEST_CALIBRATION = 4
_FAR = 2.0
_NAMED = 3
_PASSES = 12
"""What observing anew, and the interventions at one place, take of passes over the data."""
_PASSES_OF_PARTS = 6
"""What looking at a few parts of a model takes."""
_WORTH_A_WORD = 0.01
"""Without labels, outputs that rounding changes by less than this share of their variance (20 dB) differ for another
reason, such as training."""


def why_lost(run: ModelRun, accuracy: Accuracy) -> tuple[Finding, ...]:
    """Return what lost the accuracy of a run whose accuracy check has failed; nothing where that cannot be measured.

    Args:
        run: The run.
        accuracy: Its scores.
    """
    done = run.converted()
    if done.prepared is None or run.settings.diagnose_s <= 0:
        return ()
    prepared = done.prepared.module
    began = time.monotonic()
    try:
        return run.stage("where accuracy was lost", lambda: _why_lost(run, accuracy, prepared))
    finally:
        run.shared.probing_s += time.monotonic() - began  # trials get what is left


def _why_lost(run: ModelRun, accuracy: Accuracy, prepared: nn.Module) -> tuple[Finding, ...]:
    case, seed = run.case, run.settings.seed
    sign = 1.0 if accuracy.higher_is_better else -1.0
    rounded = accuracy.fine_tuned
    if accuracy.kind == "agreement" or rounded is None:
        return _by_training(run, prepared) or lost_by_rounding(
            case, prepared, budget_s=run.settings.diagnose_s / 2, least_error=_WORTH_A_WORD)
    if case.prepared is None and not case.fine_tunes:
        trained = accuracy.fp32  # with nothing rounded it is the float model
    else:
        with nothing_rounded(prepared):
            trained = score_of(case, partial(call, prepared), seed=seed)
    lost = {"training": sign * (accuracy.fp32 - trained), "rounding": sign * (trained - rounded),
            "conversion": sign * (rounded - accuracy.int8)}
    worst = max(lost, key=lambda stage: lost[stage])
    if lost[worst] < _HALF * accuracy.drop:
        return ()
    if worst == "rounding":
        return lost_by_rounding(case, prepared, budget_s=run.settings.diagnose_s / 2)
    return (_of_training(run, accuracy, prepared, trained, lost["training"]),) if worst == "training" else ()


@contextlib.contextmanager
def nothing_rounded(prepared: nn.Module) -> Iterator[None]:
    """Switch all fake-quantizers off, and on again."""
    switch_fake_quantize(prepared, on=False)
    try:
        yield
    finally:
        switch_fake_quantize(prepared, on=True)


# -- rounding -----------------------------------------------------------------------------------------------------


def lost_by_rounding(case: QATCase, prepared: nn.Module, *, budget_s: float,
                 least_error: float = 0.0) -> tuple[Finding, ...]:
    """Return whose rounding makes the error, and why: ranges that other data would mend, or a few places.

    Args:
        case: Whose data to use.
        prepared: The trained model.
        budget_s: Most seconds; what would not end within them is not begun.
        least_error: An error below this is not what to look for.
    """
    ends = time.monotonic() + budget_s
    batches = data_that_count(case)
    began = time.monotonic()
    with torch.inference_mode():
        call(prepared, batches[0])
    batch_s = time.monotonic() - began
    least = -(-_FEWEST_SAMPLES // max(1, sample_count(batches[0])))
    count = affordable(batch_s, passes=_PASSES + len(places_of(prepared)), budget_s=budget_s,
                        least=least if least * batch_s * _PASSES_OF_PARTS < _HALF * budget_s else 1)
    batches = batches[:count]
    reference = _reference(prepared, batches)

    def error_with(model: nn.Module) -> Errors:
        with torch.inference_mode():
            return error_of(reference, model, batches)

    began = time.monotonic()
    whole = error_with(prepared)
    passed_s = time.monotonic() - began
    left_s = ends - time.monotonic()
    if not whole.mean() > least_error or left_s < _PASSES_OF_PARTS * passed_s:
        return ()
    calibration = calibration_batches(case, limit=min(CALIBRATION_BATCHES, max(count, _FEWEST_CALIBRATION)))
    if left_s > _PASSES * passed_s and (
            found := _of_ranges(case, prepared, batches, calibration, whole, error_with)) is not None:
        return (found,)
    left_s = ends - time.monotonic()
    effects = effects_of(prepared, batches, reference, whole, passed_s=passed_s,
                         budget_s=max(left_s - _PASSES * passed_s, left_s / 2))
    if effects.few is None:
        return (_spread(effects),) if effects.tried else ()
    return _told(effects, _causes(prepared, effects.few.places, batches, partial(error_with, prepared)))


def affordable(batch_s: float, *, passes: int, budget_s: float, least: int) -> int:
    """Return how many batches may be run so many times within a budget, but no fewer than so many.

    Args:
        batch_s: Seconds that one batch takes.
        passes: How often.
        budget_s: Most seconds.
        least: Fewer would show nothing.
    """
    return max(least, int(budget_s / max(passes * batch_s, 1e-9)))


def _causes(prepared: nn.Module, places: Sequence[Place], batches: Sequence[Any],
            error_with: Callable[[], Errors]) -> list[Finding]:
    """Return the cause at each place, with nothing rounded at the others, which may hide it."""
    found = []
    for place in places:
        if place.kind == "part":
            found.append(cause_of_part(place))
            continue
        with switched_off(prepared, [name for other in places if other != place for name in other.quantizers]):
            if (seen := look_at(prepared, place, batches)) is not None:
                found.append(cause_at(prepared, place, seen, error_with=error_with))
    return found


def _of_ranges(case: QATCase, prepared: nn.Module, batches: Sequence[Any], calibration: Sequence[Any], whole: Errors,
               error_with: Callable[[nn.Module], Errors]) -> Finding | None:
    """Return that the ranges do not fit, where observing anew mends at least half of the error; None where it does not.

    Observed anew are first the calibration data, which the ranges should come from, then the data that count.
    """
    if not any(hasattr(module, "observer_enabled") for _, module in fake_quantizers(prepared)):
        return None
    for data, evaluated in ((calibration, False), (batches, True)):
        if evaluated and case.eval_data is None:
            break
        anew = copy.deepcopy(prepared)
        forget_ranges(anew)
        calibrate(anew, list(data))
        switch_observers(anew, on=False)
        mended = float(1 - error_with(anew).mean() / whole.mean())
        if mended < _HALF:
            continue
        evidence = {"share_mended": round(mended, 4)}
        goes = f"{percent(mended, digits=0)} of the outputs' error goes away"
        if evaluated:
            return _unlike(calibration, batches, goes, evidence)
        place = _most_changed(prepared, anew)
        return Finding(
            code="stale-range", severity="error", module=place.module or None if place else None, evidence=evidence,
            message="the ranges that fake-quantize uses do not fit what the trained model computes on the calibration "
                    f"data{f', least at {place}' if place else ''}. With ranges observed anew on them, {goes}.",
            remedy="leave observers on until weights and activations no longer change, or calibrate again after "
                   "training.")
    return None


def _unlike(calibration: Sequence[Any], batches: Sequence[Any], goes: str, evidence: dict[str, Any]) -> Finding:
    """Return in what the calibration data differ from the evaluation data."""
    low, high, inner_low, inner_high = _reach(calibration)
    other_low, other_high, *_ = _reach(batches)
    reach, inner, other = max(-low, high), max(-inner_low, inner_high), max(-other_low, other_high)
    evidence = {**evidence, "calibration": [json_number(low), json_number(high)],
                "evaluation": [json_number(other_low), json_number(other_high)]}
    if reach > _FAR * other and inner < _FAR * other:
        return Finding(
            code="outliers-set-the-range", severity="error",
            evidence={**evidence, "without_outliers": [json_number(inner_low), json_number(inner_high)]},
            message=f"a few values of the calibration data set the ranges: they go from {low:.3g} to {high:.3g}, all "
                    f"but {percent(2 * TAIL)} of them from {inner_low:.3g} to {inner_high:.3g}, and those of the "
                    f"evaluation from {other_low:.3g} to {other_high:.3g}. With ranges from evaluation data, {goes}.",
            remedy="take these values out of calibration_data, or clip them as the model's preprocessing should.")
    return Finding(
        code="calibration-unlike-evaluation", severity="error", evidence=evidence,
        message=f"the calibration data are unlike those of the evaluation: their values go from {low:.3g} to "
                f"{high:.3g}, those of the evaluation from {other_low:.3g} to {other_high:.3g}. With ranges from the "
                f"evaluation data, {goes}.",
        remedy="give calibration_data like those of the evaluation, with the same preprocessing.")


def _reach(batches: Sequence[Any]) -> tuple[float, float, float, float]:
    """Return the least and greatest value of the inputs, and those without the tails."""
    values = [tensor.detach().float().flatten() for inputs in batches for tensor in float_tensors(inputs)]
    return extent(torch.cat(values), at_least_one=True) if values else (0.0, 0.0, 0.0, 0.0)


def _most_changed(before: nn.Module, after: nn.Module) -> Place | None:
    """Return the place whose scale differs most between two forms of a prepared model."""
    change: dict[Place, float] = {}
    for place in places_of(before):
        one, other = (getattr(model.get_submodule(place.quantizers[0]), "scale", None) for model in (before, after))
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
            change[place] = float((other.clamp_min(1e-30) / one.clamp_min(1e-30)).log().abs().max())
    return max(change, key=lambda place: change[place]) if change else None


def _told(effects: Effects, causes: list[Finding]) -> tuple[Finding, ...]:
    """Return the causes, the first with how much of the error all of them make together."""
    assert effects.few is not None, "unreachable because the causes are those of the few"
    low, high = (percent(end, digits=0) for end in effects.few.interval)
    names = " and ".join(dict.fromkeys(str(place) for place in effects.few.places))
    evidence = {"places": [str(place) for place in effects.few.places], "share": round(effects.few.share, 4),
                "interval": [round(end, 4) for end in effects.few.interval], "places_looked_at": effects.tried,
                "places_in_all": effects.of, "largest": [list(each) for each in effects.largest]}
    share = f"rounding {names} makes {percent(effects.few.share, digits=0)} [{low}, {high}] of the outputs' error"
    found = []
    for index, cause in enumerate(causes):
        message = f"{share}. {cause.message[0].upper()}{cause.message[1:]}" if index == 0 else cause.message
        found.append(Finding(code=cause.code, severity="error" if index == 0 else "warning", module=cause.module,
                             message=message, remedy=cause.remedy, evidence={**evidence, **cause.evidence}))
    return tuple(found)


def _spread(effects: Effects) -> Finding:
    looked = "all" if effects.tried == effects.of else f"{effects.tried} of"
    parts = ", ".join(f"{module} ({percent(share, digits=0)})" for module, share in effects.largest[:_NAMED])
    largest = f" The largest parts are {parts}." if parts else ""
    return Finding(
        code="error-is-spread", severity="note",
        evidence={"places_looked_at": effects.tried, "places_in_all": effects.of,
                  "largest": [list(each) for each in effects.largest]},
        message=f"no few places make most of the error of rounding: {looked} {effects.of} weights and activations "
                f"were left unrounded in turn.{largest}")


def _reference(prepared: nn.Module, batches: Sequence[Any]) -> list[Any]:
    with nothing_rounded(prepared), torch.inference_mode():
        return [float_tensors(call(prepared, inputs)) for inputs in batches]


def data_that_count(case: QATCase) -> list[Any]:
    """Return the inputs of the first evaluation batches, or calibration batches where there are none."""
    if case.eval_data is None:
        return calibration_batches(case, limit=_BATCHES)
    return enough((inputs for inputs, _ in labeled(case.eval_data, field="eval_data")), batches=_BATCHES,
                  samples=_SAMPLES)


# -- training -----------------------------------------------------------------------------------------------------


def _by_training(run: ModelRun, prepared: nn.Module) -> tuple[Finding, ...]:
    """Return a note where training, without labels to judge it by, changed the outputs more than rounding does."""
    if not run.case.fine_tunes:
        return ()
    batches = data_that_count(run.case)
    with torch.inference_mode():
        wanted = [float_tensors(call(run.inputs(), inputs)) for inputs in batches]
        unrounded = _reference(prepared, batches)
        with nothing_rounded(prepared):
            trained = float(error_of(wanted, prepared, batches).mean())
        rounded = float(error_of(unrounded, prepared, batches).mean())
    if trained <= rounded:
        return ()
    return (Finding(
        code="changed-by-training", severity="note", evidence={"by_training": trained, "by_rounding": rounded},
        message="most of the difference from float comes from fine-tuning, which changed what the model computes, and "
                "not from rounding; without eval_data nobody can tell whether for the better."),)


def _of_training(run: ModelRun, accuracy: Accuracy, prepared: nn.Module, trained: float, lost: float) -> Finding:
    """Return what of training lost accuracy: the statistics of batch norm, where the float model's mend it."""
    sign = 1.0 if accuracy.higher_is_better else -1.0
    said = (f"with nothing rounded the fine-tuned model scores {score_text(accuracy, trained)}, float "
            f"{score_text(accuracy, accuracy.fp32)}: training lost it, not int8.")
    evidence = {"fp32": accuracy.fp32, "unrounded": trained, "fine_tuned": accuracy.fine_tuned, "int8": accuracy.int8}
    without = ""
    if accuracy.ptq is not None and sign * (accuracy.ptq - accuracy.int8) >= _HALF * lost:
        without = (f"leave out train and train_data: the PTQ model was measured, and scored "
                   f"{score_text(accuracy, accuracy.ptq)}. Or ")
    if (restored := with_statistics_of(run.case.model, prepared)) is not None:
        model, moved = restored
        with nothing_rounded(model):
            mended = score_of(run.case, partial(call, model), seed=run.settings.seed)
        if sign * (mended - trained) >= _HALF * lost:
            return Finding(
                code="batch-norm-drifted", severity="error", module=moved, evidence={**evidence, "mended": mended},
                message=f"{said} With the float model's running means and variances it scores "
                        f"{score_text(accuracy, mended)}: they moved away in training, most at {moved}.",
                remedy=f"{without}freeze batch norm's statistics before the last epochs (freeze_bn_stats, or .eval() "
                       "of the batch norms), or train with larger batches of data like those of the evaluation.")
    return Finding(
        code="lost-in-training", severity="error", message=said, evidence=evidence,
        remedy=f"{without}look at the training loop: its learning rate, its targets, and that its data and "
               "preprocessing are those of the float model's training.")


def with_statistics_of(float_model: nn.Module, prepared: nn.Module) -> tuple[nn.Module, str] | None:
    """Return a copy with another model's running statistics, and where they differ most; None if none match."""
    own = _statistics(float_model)
    copied = copy.deepcopy(prepared)
    theirs = _statistics(copied)
    if not own or len(own) != len(theirs) or any(
            one[1].shape != other[1].shape for one, other in zip(own, theirs, strict=True)):
        return None
    moved: dict[str, float] = {}
    with torch.no_grad():
        for (name, mean, variance), (_, other_mean, other_variance) in zip(own, theirs, strict=True):
            deviation = variance.clamp_min(1e-12).sqrt()
            moved[name] = float(((other_mean - mean).abs() / deviation).mean() + (
                other_variance.clamp_min(1e-12).sqrt() / deviation).log().abs().mean())
            other_mean.copy_(mean)
            other_variance.copy_(variance)
    return copied, max(moved, key=lambda name: moved[name])


def _statistics(model: nn.Module) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Return the running means and variances of a model in the order of its buffers, by the module's name."""
    buffers = dict(model.named_buffers())
    return [(name.rpartition(".")[0], mean, buffers[f"{name.removesuffix('mean')}var"])
            for name, mean in buffers.items()
            if name.endswith("running_mean") and f"{name.removesuffix('mean')}var" in buffers]
