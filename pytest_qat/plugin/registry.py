"""The runs of this process: one `Assessment` per model and recipe, shared by collected checks, markers and fixtures."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_qat.recipe import AUTO, DEFAULT_RECIPE, get_recipe

if TYPE_CHECKING:
    from pytest_qat.case import QATCase
    from pytest_qat.checks import Assessment
    from pytest_qat.finetune import Progress
    from pytest_qat.measure.machine_lock import MachineLock
    from pytest_qat.pipeline.run import RunSettings
    from pytest_qat.plugin.settings import Options

__all__ = ["RunRegistry"]

_GLANCE_S = 3.0
_KEPT = 4
"""Runs kept in memory; an older one is made again if it is needed again, with the same seeds."""


class RunRegistry:
    """Loads cases and keeps runs. Everything heavy is imported on first use.

    Args:
        options: The checked options.
        root: Folder that references are looked up in.
        workers: Number of xdist workers that share the machine; 1 without xdist.
        progress: Makes the progress display of a fine-tuning.
    """

    def __init__(self, options: Options, *, root: Path, workers: int,
                 progress: Callable[[str], AbstractContextManager[Progress]]) -> None:
        self._workers = workers
        self._options = options
        self._root = root
        self._progress = progress
        self._cases: dict[object, QATCase] = {}
        self._runs: OrderedDict[tuple[object, str], Assessment] = OrderedDict()
        self._lock: MachineLock | None = None
        self._shared: tuple[object, dict[Any, Any]] = (None, {})

    def case(self, model: Any, *, key: object, source: str) -> QATCase:
        """Return the case of a reference or object, loaded once.

        Raises:
            QATError: the reference or what it gives is bad.
        """
        from pytest_qat.core.torch_state import preserved_torch_state
        from pytest_qat.references import as_case, load_case

        if key not in self._cases:
            options = self._options
            if isinstance(model, str):
                self._cases[key] = load_case(model, root=self._root, shapes=options.shapes, seed=options.seed)
            else:
                with preserved_torch_state(seed=options.seed):
                    made = model() if callable(model) and not _is_module(model) else model
                    self._cases[key] = as_case(made, source=source, shapes=options.shapes)
        return self._cases[key]

    def recipes(self, case: QATCase) -> tuple[str, ...]:
        """Return the recipes to use for a collected case: the command line's, its own, the ini file's, the default.

        Raises:
            UnknownRecipe: the case names one that does not exist.
        """
        names = self._options.recipes or tuple(case.recipes) or self._options.default_recipes
        return tuple(name if name == AUTO else get_recipe(name).name for name in dict.fromkeys(names))

    def recipe_of_test(self, case: QATCase) -> str:
        """Return the first of these recipes for a marked test, which is one run; `auto` gives way to the next.

        Raises:
            UnknownRecipe: the case names one that does not exist.
        """
        names = (*self._options.recipes, *case.recipes, *self._options.default_recipes, DEFAULT_RECIPE)
        return get_recipe(next(name for name in names if name != AUTO)).name

    def assessment(self, case: QATCase, recipe: str, *, key: object, reference: str) -> Assessment:
        """Return the shared assessment of a case by a recipe."""
        from pytest_qat.checks import Assessment
        from pytest_qat.measure.machine_lock import MachineLock
        from pytest_qat.pipeline.run import ModelRun

        where = (key, recipe)
        if where not in self._runs:
            while len(self._runs) >= _KEPT:
                self._runs.popitem(last=False)[1].run.close()
            self._lock = self._lock or MachineLock()
            settings = self._settings(case)
            run = ModelRun(case, get_recipe(recipe), settings, lock=self._lock, progress=self._progress,
                           shared=self._trained(key))
            self._runs[where] = Assessment(run, reference=reference)
        self._runs.move_to_end(where)
        return self._runs[where]

    def glance(self, case: QATCase, recipe: str, *, reference: str) -> Assessment:
        """Return an assessment that is not kept, with little time for its latencies; whoever asks closes its run."""
        from pytest_qat.checks import Assessment
        from pytest_qat.measure.machine_lock import MachineLock
        from pytest_qat.pipeline.run import ModelRun

        self._lock = self._lock or MachineLock()
        settings = dataclasses.replace(self._settings(case), batches=(), memory=False,
                                       max_time_s=min(_GLANCE_S, self._options.max_time_s))
        return Assessment(ModelRun(case, get_recipe(recipe), settings, lock=self._lock), reference=reference)

    def _settings(self, case: QATCase) -> RunSettings:
        from pytest_qat.pipeline.run import RunSettings

        options = self._options
        return RunSettings(
            tolerances=options.tolerances(case.tolerances), threads=options.threads, max_time_s=options.max_time_s,
            seed=options.seed, device=options.device, strict=options.strict, batches=options.batches,
            memory=options.memory, stage_timeout_s=options.stage_timeout_s, work_threads=_thread_share(self._workers))

    def _trained(self, key: object) -> dict[Any, Any]:
        """Return what runs of one model share; what another model's runs shared is let go."""
        if self._shared[0] != key:
            self._shared = (key, {})
        return self._shared[1]

    def alone(self) -> AbstractContextManager[None]:
        """Hold the machine for a timing."""
        from pytest_qat.measure.machine_lock import MachineLock

        self._lock = self._lock or MachineLock()
        return self._lock.alone()

    def close(self) -> None:
        """Free models and artifacts."""
        while self._runs:
            with contextlib.suppress(OSError):
                self._runs.popitem()[1].run.close()
        self._cases.clear()
        self._shared = (None, {})


def _thread_share(workers: int) -> int | None:
    """Threads for one of several workers: thread pools that outnumber the cores slow each other down many times."""
    if workers <= 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    import torch

    return max(1, torch.get_num_threads() // workers)


def _is_module(model: Any) -> bool:
    import torch

    return isinstance(model, torch.nn.Module)
