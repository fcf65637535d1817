"""One score of a whole evaluation set, such as AUC, mAP, F1, R2 or perplexity: gathered, scored and compared.

The outputs of every model are kept, since the drop's interval comes from scoring all models on the same drawn samples
(`bootstrap`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import sample_count
from pytest_qat.core.torch_state import threads
from pytest_qat.core.tracebacks import defined_at, headline, name_of, place_of
from pytest_qat.errors import DataError
from pytest_qat.measure.accuracy import Accuracy, hold_to_same_samples
from pytest_qat.measure.bootstrap import difference_of, resample
from pytest_qat.measure.joined import Take, joined, on_cpu, row_count, size_bytes
from pytest_qat.measure.scoring import Batch, target_text

__all__ = ["GatheredSet", "SetMetric", "UndefinedScore", "compare_sets", "gather", "set_score"]

SetMetric = Callable[[Any, Any], float]
MOST_BYTES = 2 * 2**30
"""Most bytes that one model's outputs and the targets may take: those of up to four models are held at a time."""
_SHUFFLES, _SAME = 19, 1e-9
_SIDES = ("fp32", "int8", "ptq", "fine_tuned")


_OF_THE_DATA = (ValueError, ArithmeticError, LookupError, RuntimeError)
"""What metrics raise where a class is missing, say; other errors do not depend on the data."""


class UndefinedScore(DataError):
    """The metric has no score for these samples, and may have one for more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredSet:
    """What a model returned for a whole evaluation set, and the targets.

    Attributes:
        outputs: Gives the outputs of samples.
        targets: Gives their targets.
        samples: Number of samples.
        fingerprint: Digest of the targets in order.
    """

    outputs: Take
    targets: Take
    samples: int
    fingerprint: str

    @property
    def everything(self) -> Tensor:
        """The indices of all samples, in order."""
        return torch.arange(self.samples)


def gather(batches: Iterable[Batch]) -> GatheredSet:
    """Keep what a model returned, detached and on the CPU, joined along the batch dimension.

    Args:
        batches: Inputs, output and target of each batch.

    Raises:
        DataError: there are no batches, or they take too much memory.
    """
    outputs, targets, counts, held = [], [], [], 0
    digest = hashlib.sha256()
    for inputs, output, target in batches:
        outputs.append(on_cpu(output))
        targets.append(on_cpu(target))
        counts.append(_samples(inputs, target))
        digest.update(target_text(targets[-1]))
        held += size_bytes(outputs[-1]) + size_bytes(targets[-1])
        if held > MOST_BYTES:
            raise DataError(
                f"set_metric needs all outputs and targets of eval_data at a time, and those of {sum(counts):,} "
                f"samples take {held / 1e9:.1f} GB already, expected at most {MOST_BYTES / 1e9:.1f} GB.",
                hint="Evaluate fewer samples, or give metric=, a score of each sample, which keeps no outputs.")
    if not outputs:
        raise DataError("eval_data is empty, expected at least one (inputs, target) batch.",
                        hint="Make eval_data yield batches.")
    return GatheredSet(outputs=joined(outputs, counts), targets=joined(targets, counts), samples=sum(counts),
                       fingerprint=digest.hexdigest())


def _samples(inputs: Any, target: Any) -> int:
    """Return the number of samples of a batch: that of the inputs, unless the targets have other numbers of entries."""
    count = sample_count(inputs)
    rows = {row_count(leaf) for leaf in pytree.tree_leaves(target)} - {None}
    rows |= {len(target)} if isinstance(target, (list, tuple)) else set()
    if count in rows or not rows:
        return count
    whole = row_count(target)
    if whole is not None:
        return whole
    parts = {row_count(part) for part in target} if isinstance(target, (list, tuple)) else {None}
    only = next(iter(parts), None)
    if len(parts) == 1 and only is not None:  # parts that each have all samples
        return only
    return len(target) if isinstance(target, (list, tuple)) else count


def set_score(metric: SetMetric, gathered: GatheredSet, *, of: str) -> float:
    """Return a user's score of a whole set.

    Args:
        metric: The user's.
        gathered: The set.
        of: Whose outputs they are, for messages, such as `the int8 model`.

    Raises:
        UndefinedScore: the metric raised what may come from the data, or gave NaN or infinity.
        DataError: the metric raised otherwise, or gave something other than a number.
    """
    everything = gathered.everything
    try:
        given = metric(gathered.outputs(everything), gathered.targets(everything))
    except DataError:
        raise
    except Exception as error:
        kind = UndefinedScore if isinstance(error, _OF_THE_DATA) else DataError
        raise kind(
            f"set_metric raised {type(error).__name__} on the {gathered.samples:,} samples of {of}: {headline(error)} "
            f"({place_of(error)}).",
            hint="set_metric(outputs, targets) gets those of all batches, joined along the batch dimension.") from error
    score = _number(given)
    if score is None:
        raise DataError(
            f"set_metric {defined_at(metric)} gave {_seen(given)} for {gathered.samples:,} samples, expected one "
            "number.",
            hint=_how_to_give_a_number(metric, given, samples=gathered.samples))
    if not math.isfinite(score):
        raise UndefinedScore(
            f"set_metric {defined_at(metric)} gave {score} on the {gathered.samples:,} samples of {of}, expected a "
            "finite number.",
            hint="Check that the set has samples of every class, and that the outputs are finite and vary.")
    return score


def _number(given: Any) -> float | None:
    if isinstance(given, (Tensor, np.ndarray)):
        size = given.numel() if isinstance(given, Tensor) else given.size
        return float(given.item()) if size == 1 and not np.iscomplexobj(given) else None
    return float(given) if isinstance(given, numbers.Real) else None


def _seen(given: Any) -> str:
    if isinstance(given, (Tensor, np.ndarray)):
        return f"a result of shape {tuple(given.shape)}"
    return "None" if given is None else f"{type(given).__name__} {given!r:.60}"


def _how_to_give_a_number(metric: SetMetric, given: Any, *, samples: int) -> str:
    if row_count(given) == samples and given.ndim == 1:
        name = name_of(metric) or "…"
        return f"Write metric={name} instead of set_metric={name}: it gives one score per sample."
    if isinstance(given, Mapping) and given:
        return f"Return one of its entries, such as result[{next(iter(given))!r}]."
    if given is None:
        return "End set_metric with `return` and the score."
    return "Return the score as a float."


def compare_sets(metric: SetMetric, sides: Mapping[str, GatheredSet], *, higher_is_better: bool, budget_s: float,
                 ptq_simulated: bool = False, confidence: float = 0.95) -> Accuracy:
    """Score every side on the whole set, and find the interval of the drop by scoring drawn samples of it.

    Args:
        metric: The user's.
        sides: `fp32` and `int8`, and `ptq` and `fine_tuned` where there are such.
        higher_is_better: Whether a higher score is better.
        budget_s: Most seconds for the drawn samples.
        ptq_simulated: Whether the control is compared with the fine-tuned model.
        confidence: Of the interval.

    Raises:
        DataError: the passes saw different samples, or the metric does not give a finite number.
    """
    first = sides["fp32"]
    for other in sides.values():
        hold_to_same_samples(first.samples, other.samples, first.fingerprint == other.fingerprint)
    names = {"fp32": "the float model", "int8": "the int8 model", "ptq": "the model before fine-tuning",
             "fine_tuned": "the fine-tuned model"}
    known = {side: set_score(metric, sides[side], of=names[side]) for side in _SIDES if side in sides}

    def score(side: str, index: NDArray[np.int64]) -> float:
        return _drawn_score(metric, sides[side], torch.from_numpy(index))

    # The work of one score is small: several threads would spend their time on waiting for each other.
    with threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a drawn set may well lack a class
        resampling = resample(score, sides=tuple(known), samples=first.samples, budget_s=budget_s)
        shuffled = _not_beaten(metric, first, known["fp32"], higher_is_better) if resampling.settles else None
    is_share = higher_is_better and all(0 <= value <= 1 for value in known.values())
    span = 1.0 if is_share else max(abs(value) for value in known.values())

    def difference(before: str, after: str) -> Any:
        return difference_of(resampling, before, after, estimate=known[before] - known[after], span=span,
                             confidence=confidence)

    drop = difference("fp32", "int8")
    sign, (low, high) = 1.0 if higher_is_better else -1.0, drop.interval
    against = "fine_tuned" if ptq_simulated and "fine_tuned" in known else "int8"
    ends = (low, high) if higher_is_better else (0.0 - high, 0.0 - low)
    lost = 0.0 + sign * drop.estimate
    return Accuracy(
        fp32=known["fp32"], int8=known["int8"], ptq=known.get("ptq"), fine_tuned=known.get("fine_tuned"),
        drop=lost, drop_ci=ends, p_value=drop.p_value, samples=first.samples, provable_drop=ends[1] - lost,
        ptq_p_value=difference("ptq", against).p_value if "ptq" in known else None,
        fine_tuned_p_value=difference("fine_tuned", "int8").p_value if "fine_tuned" in known else None,
        flips=(), flipped=0, kind="set_metric", is_fraction=is_share, ptq_simulated=ptq_simulated,
        metric=name_of(metric) or "set_metric", higher_is_better=higher_is_better, resampling=resampling,
        shuffled=shuffled, at_chance=shuffled is not None)


def _drawn_score(metric: SetMetric, gathered: GatheredSet, index: Tensor) -> float:
    """Return the score of drawn samples.

    Raises:
        ArithmeticError: it is not defined on them.
    """
    try:
        score = _number(metric(gathered.outputs(index), gathered.targets(index)))
    except Exception as error:  # whatever a metric raises where a class is missing
        raise ArithmeticError(f"{type(error).__name__}: {headline(error)}") from error
    if score is None or not math.isfinite(score):
        raise ArithmeticError(f"it gave {score}")
    return score


def _not_beaten(metric: SetMetric, gathered: GatheredSet, known: float, higher_is_better: bool) -> float | None:
    """Return the best score with shuffled targets if the known one does not beat it, else None (p = 0.05).

    A score that is the same whatever the order, such as a distance of distributions, is not held to it.
    """
    drawn, everything = torch.Generator().manual_seed(0), gathered.everything
    outputs, found = gathered.outputs(everything), []
    for _ in range(_SHUFFLES):
        order = torch.randperm(gathered.samples, generator=drawn)
        with contextlib.suppress(Exception):  # a score that is not defined then beats nothing
            score = _number(metric(outputs, gathered.targets(order)))
            found += [] if score is None or not math.isfinite(score) else [score]
    if not found or max(found) - min(found) <= _SAME * abs(known):
        return None
    best = max(found) if higher_is_better else min(found)
    beaten = known > best if higher_is_better else known < best
    return None if beaten else best
