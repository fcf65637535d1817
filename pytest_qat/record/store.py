"""The records of a session, merged from the pieces that single tests send. No torch, no pytest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pytest_qat.record.keys import ModelSource, RunKey
from pytest_qat.record.schema import (
    CHECKS,
    SCHEMA_VERSION,
    CheckRecord,
    Document,
    Environment,
    Metrics,
    ModelError,
    Probes,
    Ranking,
    RunRecord,
)

__all__ = ["RecordStore"]

_WORST_LAST = ("passed", "blocked", "inconclusive", "failed")


class RecordStore:
    """Collects run records as tests report them; several tests may add to one run.

    Args:
        order: References of models that come first, in this order, whichever is measured first.
    """

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._order = tuple(order)
        self.environment: Environment | None = None
        self._runs: dict[RunKey, RunRecord] = {}
        self._errors: list[ModelError] = []
        self._rankings: dict[str, Ranking] = {}
        self._probes: dict[str, Probes] = {}

    @property
    def runs(self) -> list[RunRecord]:
        """The merged runs: the models of `order` first, the others in the order in which they were first seen."""
        return sorted(self._runs.values(), key=lambda run: (
            self._order.index(run["model"]) if run["model"] in self._order else len(self._order)))

    @property
    def errors(self) -> list[ModelError]:
        """Models that could not be loaded."""
        return list(self._errors)

    @property
    def rankings(self) -> list[Ranking]:
        """The rankings of recipes, one for each model."""
        return list(self._rankings.values())

    def add(self, record: RunRecord) -> None:
        """Merge what one test reported: what it measured fills gaps, and the worst outcome of a check stays."""
        key = RunKey(ModelSource(record["model"]), record["recipe"])
        known = self._runs.get(key)
        if known is None:
            self._runs[key] = {**record, "checks": _in_order(record["checks"])}
            return
        checks = dict(known["checks"])
        for check, entry in record["checks"].items():
            before = checks.get(check)
            if before is None or _badness(entry) >= _badness(before):
                checks[check] = entry
        self._runs[key] = {
            **known, "checks": _in_order(checks),
            "metrics": cast("Metrics", _filled(known["metrics"], record["metrics"])),
            "batch": record["batch"] if record["batch"] is not None else known["batch"],
            "fine_tuning": record["fine_tuning"] or known["fine_tuning"],
            "diagnosis": record["diagnosis"] or known["diagnosis"],
            "findings": [*known["findings"], *(found for found in record["findings"]
                                               if found not in known["findings"])]}

    @property
    def probes(self) -> list[Probes]:
        """Which recipes take each model that was probed."""
        return list(self._probes.values())

    def add_probes(self, probes: Probes) -> None:
        """Keep which recipes take a model; a later answer for the same model takes its place."""
        self._probes[probes["model"]] = probes

    def add_ranking(self, ranking: Ranking) -> None:
        """Keep the ranking of a model's recipes; a later one of the same model takes its place."""
        self._rankings[ranking["model"]] = ranking

    def add_error(self, model: str, message: str) -> None:
        """Keep the reason why a model could not be loaded."""
        self._errors.append({"model": model, "message": message})

    def document(self) -> Document:
        """Return the canonical record of the session, as `--qat-json` writes it."""
        document: Document = {"schema_version": SCHEMA_VERSION, "environment": self.environment or {},
                              "runs": self.runs, "rankings": self.rankings, "errors": self.errors}
        if self._probes:
            document["probes"] = self.probes
        return document


def _in_order(checks: Mapping[str, CheckRecord]) -> dict[str, CheckRecord]:
    """Return the checks in their documented order, in whatever order tests made them."""
    return dict(sorted(checks.items(), key=lambda entry: CHECKS.index(entry[0])))


def _filled(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: after.get(name) if after.get(name) is not None else before.get(name) for name in (*before, *after)}


def _badness(entry: CheckRecord) -> int:
    return _WORST_LAST.index(entry["outcome"])
