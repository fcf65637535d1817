"""The state of one pytest session: what was asked for, the options, the runs and the record. No hooks, no torch."""

from __future__ import annotations

import functools
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_qat.plugin.registry import RunRegistry
from pytest_qat.plugin.settings import Options, read_options
from pytest_qat.record.keys import RunKey
from pytest_qat.record.store import RecordStore

__all__ = ["SESSION", "QATSession"]


class QATSession:
    """What the plugin knows in one session.

    Args:
        config: pytest's configuration.

    Attributes:
        models: References of `--qat-model`, in their order.
        ops: References of `--qat-ops`.
        replays: Paths of `--qat-replay`, as they were typed.
        root: Folder that pytest was started in.
        is_worker: Whether this process is a worker of pytest-xdist.
        store: The record; only the controller fills it under xdist.
        law_count: Number of laws that share the time of fuzzing.
        replayed: How many saved examples are fixed or still failing.
        unwritten: Why the record's file could not be written, or None.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker: Mapping[str, Any] = getattr(config, "workerinput", {})
        self._implementations: dict[str, tuple[Any, ...]] = {}
        self._selected: dict[RunKey, set[str]] = {}
        self.is_worker = bool(self._worker)
        self.root: Path = config.invocation_params.dir
        self.models, self.ops, self.replays = (
            tuple(dict.fromkeys(config.getoption(key) or ())) for key in ("qat_model", "qat_ops", "qat_replay"))
        self.store = RecordStore(self.models)
        self.law_count = 0
        self.replayed: Counter[str] = Counter()
        self.unwritten: str | None = None

    @property
    def asked(self) -> bool:
        """Whether the command line names something to test."""
        return bool(self.models or self.ops or self.replays)

    @functools.cached_property
    def options(self) -> Options:
        """The checked options.

        Raises:
            QATError: an option has a bad value.
        """
        return read_options(self._config)

    @property
    def record_path(self) -> Path | None:
        """File of `--qat-json`, or None; a bad value in the ini file hurts no session that writes no record."""
        return None if self._config.getoption("qat_json") is None else self.options.json

    @functools.cached_property
    def registry(self) -> RunRegistry:
        """The runs of this process."""
        return RunRegistry(self.options, root=self.root, workers=self._worker_count)

    @property
    def _worker_count(self) -> int:
        count: int = self._worker.get("workercount", 1)
        return count

    def select(self, key: RunKey, *, check: str) -> None:
        """Note that this session makes a check of a model and recipe."""
        self._selected.setdefault(key, set()).add(check)

    def selected(self, key: RunKey) -> set[str]:
        """Return the checks that this session makes of a model and recipe."""
        return self._selected[key]

    def implementations(self, reference: str) -> tuple[Any, ...]:
        """Return the implementations that a reference names, loaded once.

        Raises:
            QATError: the reference or what it gives is bad.
        """
        from pytest_qat.properties.targets import load_ops

        if reference not in self._implementations:
            self._implementations[reference] = load_ops(reference, root=self.root, seed=self.options.seed)
        return self._implementations[reference]

    @property
    def fuzz_share_s(self) -> float | None:
        """Seconds of fuzzing for each law: an equal share, of all workers' time under xdist; None without fuzzing."""
        if self.options.fuzz_s is None:
            return None
        return self.options.fuzz_s * self._worker_count / max(1, self.law_count)

    @functools.cached_property
    def fuzz_seed(self) -> int:
        """A seed that differs from process to process; with `--qat-seed` it depends on the worker's number only."""
        if self._config.getoption("qat_seed") is None:
            return secrets.randbelow(2**20)
        worker: str = self._worker.get("workerid", "gw0")
        return self.options.seed * 2**10 + int(worker.removeprefix("gw"))

    def close(self) -> None:
        """Free models and artifacts."""
        if "registry" in vars(self):
            self.registry.close()


SESSION: pytest.StashKey[QATSession] = pytest.StashKey()
"""On pytest's configuration: the session."""
