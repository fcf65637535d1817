"""The runs of this process: one for each model and recipe, shared by items, markers and fixtures."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import shlex
import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_qat.core import progress
from pytest_qat.recipe import AUTO, COMPLETE_RECIPES, DEFAULT_RECIPE, get_recipe
from pytest_qat.record.keys import ModelSource, RunKey

if TYPE_CHECKING:
    from pytest_qat.case import QATCase
    from pytest_qat.checks import ModelChecks
    from pytest_qat.measure.machine_lock import MachineLock
    from pytest_qat.pipeline.probe import Probe, Trial
    from pytest_qat.pipeline.run import ModelRun, RunSettings
    from pytest_qat.pipeline.stages import SharedStages
    from pytest_qat.plugin.settings import Options

__all__ = ["RunRegistry"]

_GLANCE_S = 3.0
_PROBE_S = 120.0
"""Most seconds to try one recipe without training."""
_KEPT = 4
"""Number of runs kept in memory; one that is needed again later is run again, with the same seeds."""


class RunRegistry:
    """Loads cases and keeps runs. Everything heavy is imported on first use.

    Args:
        options: The checked options.
        root: Folder that references are looked up in.
        workers: Number of xdist workers that share the machine; 1 without xdist.
    """

    def __init__(self, options: Options, *, root: Path, workers: int) -> None:
        self._workers = workers
        self._options = options
        self._root = root
        self._cases: dict[ModelSource, QATCase] = {}
        self._checks: OrderedDict[RunKey, ModelChecks] = OrderedDict()
        self._lock: MachineLock | None = None
        self._shared: tuple[ModelSource, SharedStages] | None = None
        self._probes: dict[ModelSource, dict[Trial, Probe]] = {}

    def case(self, source: ModelSource) -> QATCase:
        """Return the case of a model, loaded once.

        Raises:
            QATError: the reference or what it gives is bad.
        """
        if source not in self._cases:
            if "torch" not in sys.modules:
                with progress.step("importing torch", subject=source.reference):
                    importlib.import_module("torch")
            with progress.step("loading", subject=source.reference):
                self._cases[source] = self._load(source)
        return self._cases[source]

    def _load(self, source: ModelSource) -> QATCase:
        from pytest_qat.core.torch_state import preserved_torch_state
        from pytest_qat.references import as_case, load_case

        options, given = self._options, source.given
        if given is None:
            return load_case(source.reference, root=self._root, shapes=options.shapes, seed=options.seed)
        with preserved_torch_state(seed=options.seed):
            made = given() if callable(given) and not _is_module(given) else given
            return as_case(made, source=source.reference, shapes=options.shapes)

    def recipes(self, case: QATCase) -> tuple[str, ...]:
        """Return the recipes to use for a collected case: the command line's, its own, the ini file's, the default.

        Raises:
            UnknownRecipe: the case names one that does not exist.
        """
        names = self._options.recipes or tuple(case.recipes) or self._options.default_recipes
        return tuple(name if name == AUTO else get_recipe(name).name for name in dict.fromkeys(names))

    def recipe_of_test(self, case: QATCase) -> str:
        """Return the recipe of a marked test, which is one run: the first of these, except `auto`.

        Raises:
            UnknownRecipe: the case names one that does not exist.
        """
        names = (*self._options.recipes, *case.recipes, *self._options.default_recipes, DEFAULT_RECIPE)
        return get_recipe(next(name for name in names if name != AUTO)).name

    def checks(self, key: RunKey) -> ModelChecks:
        """Return the checks of a model by a recipe, shared by all who ask for them.

        Raises:
            QATError: the model's reference or what it gives is bad.
        """
        from pytest_qat.checks import ModelChecks
        from pytest_qat.pipeline.run import ModelRun

        if key not in self._checks:
            while len(self._checks) >= _KEPT:
                self._checks.popitem(last=False)[1].run.close()
            case = self.case(key.model)
            run = ModelRun(case, get_recipe(key.recipe), self._settings(case), lock=self._machine_lock(),
                           shared=self._shared_stages(key.model))
            self._checks[key] = ModelChecks(run, reference=key.model.reference, command=self.command(key.model))
        self._checks.move_to_end(key)
        return self._checks[key]

    def command(self, source: ModelSource) -> str:
        """Return what checks a model again on the command line; empty where it is an object that a marker holds."""
        if source.given is not None:
            return ""
        shapes = f" --qat-inputs={self._options.shapes}" if self._options.shapes else ""
        return f"pytest --qat-model={shlex.quote(source.reference)}{shapes}"

    def glance(self, case: QATCase, recipe: str) -> ModelRun:
        """Return a run that is not kept, with little time for its latencies; the caller closes it."""
        from pytest_qat.pipeline.run import ModelRun

        settings = dataclasses.replace(self._settings(case), batches=(), memory=False,
                                       max_time_s=min(_GLANCE_S, self._options.max_time_s))
        return ModelRun(case, get_recipe(recipe), settings, lock=self._machine_lock())

    def probes(self, source: ModelSource, names: Sequence[str]) -> list[Probe]:
        """Return what comes of trying recipes on a model without training, best first; each is tried once a session."""
        from pytest_qat.pipeline.probe import Trial, best_first
        from pytest_qat.pipeline.probing import ProbeSettings, try_all

        case, options = self.case(source), self._options
        limits = ProbeSettings(timeout_s=min(options.stage_timeout_s, _PROBE_S), seed=options.seed,
                               budget_s=_PROBE_S * len(COMPLETE_RECIPES),
                               floor=options.tolerances(case.tolerances).coverage_floor)

        def probe(missing: Sequence[Trial]) -> list[Probe]:
            with self._machine_lock().shared():
                return try_all(case, missing, settings=limits)

        trials = [Trial(recipe=name) for name in names]
        return sorted(self._shared_stages(source).probed(trials, probe), key=best_first)

    def _settings(self, case: QATCase) -> RunSettings:
        from pytest_qat.pipeline.run import RunSettings

        options = self._options
        return RunSettings(
            tolerances=options.tolerances(case.tolerances), threads=options.threads, max_time_s=options.max_time_s,
            seed=options.seed, device=options.device, strict=options.strict, batches=options.batches,
            memory=options.memory, stage_timeout_s=options.stage_timeout_s, diagnose_s=options.diagnose_s,
            work_threads=_thread_share(self._workers))

    def _shared_stages(self, source: ModelSource) -> SharedStages:
        """Return what the runs of one model share, and drop what those of another model shared."""
        from pytest_qat.pipeline.stages import SharedStages

        if self._shared is None or self._shared[0] != source:
            self._shared = (source, SharedStages(probes=self._probes.setdefault(source, {})))
        return self._shared[1]

    def _machine_lock(self) -> MachineLock:
        from pytest_qat.measure.machine_lock import MachineLock

        self._lock = self._lock or MachineLock()
        return self._lock

    def alone(self) -> AbstractContextManager[None]:
        """Hold the machine's lock for a timing."""
        return self._machine_lock().alone()

    def close(self) -> None:
        """Free models and artifacts."""
        while self._checks:
            with contextlib.suppress(OSError):
                self._checks.popitem()[1].run.close()
        self._cases.clear()
        self._shared = None


def _thread_share(workers: int) -> int | None:
    """Threads of one of several workers; more threads than cores would slow all of them down many times over."""
    if workers <= 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    import torch

    return max(1, torch.get_num_threads() // workers)


def _is_module(model: Any) -> bool:
    import torch

    return isinstance(model, torch.nn.Module)
