"""The records of a session, merged from the pieces that single tests send; no torch, no pytest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_qat.record.schema import CHECKS

__all__ = ["RecordStore"]

SCHEMA_VERSION = 1
_WORST_LAST = ("passed", "blocked", "inconclusive", "failed")


class RecordStore:
    """Collects run records as tests report them; several tests may add to one run.

    Args:
        order: Models that come first, in this order, whichever is measured first.
    """

    def __init__(self, order: Sequence[str] = ()) -> None:
        self._order = tuple(order)
        self.environment: dict[str, Any] | None = None
        self._runs: dict[tuple[str, str], dict[str, Any]] = {}
        self._errors: list[dict[str, str]] = []
        self._rankings: dict[str, dict[str, Any]] = {}

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The merged runs: the models of `order` first, then as they were first seen."""
        return sorted(self._runs.values(), key=lambda run: (
            self._order.index(run["model"]) if run["model"] in self._order else len(self._order)))

    @property
    def errors(self) -> list[dict[str, str]]:
        """Models that could not be loaded."""
        return list(self._errors)

    def add(self, record: Mapping[str, Any]) -> None:
        """Merge what one test reported: later metrics fill gaps, and the worst outcome of a check stays."""
        key = (record["model"], record["recipe"])
        known = self._runs.get(key)
        if known is None:
            self._runs[key] = {**record, "checks": _in_order(record["checks"])}
            return
        known["metrics"] = _filled(known["metrics"], record["metrics"])
        for field in ("batch", "fine_tuning"):
            known[field] = record[field] if record[field] is not None else known[field]
        for check, entry in record["checks"].items():
            before = known["checks"].get(check)
            if before is None or _badness(entry) >= _badness(before):
                known["checks"][check] = entry
        known["checks"] = _in_order(known["checks"])
        known["findings"] = [*known["findings"], *(f for f in record["findings"] if f not in known["findings"])]

    @property
    def rankings(self) -> list[dict[str, Any]]:
        """The rankings of recipes, one a model."""
        return list(self._rankings.values())

    def add_ranking(self, ranking: Mapping[str, Any]) -> None:
        """Keep a ranking: the model, and its entries, best first."""
        self._rankings[ranking["model"]] = dict(ranking)

    def add_error(self, model: str, message: str) -> None:
        """Note that a model could not be loaded."""
        self._errors.append({"model": model, "message": message})

    def document(self) -> dict[str, Any]:
        """Return the canonical record of the session (`--qat-json`)."""
        return {"schema_version": SCHEMA_VERSION, "environment": self.environment or {}, "runs": self.runs,
                "rankings": self.rankings, "errors": self.errors}


def _in_order(checks: Mapping[str, Any]) -> dict[str, Any]:
    """The checks in their own order, in whatever order a plugin shuffled them."""
    return dict(sorted(checks.items(), key=lambda entry: CHECKS.index(entry[0])))


def _filled(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: after.get(name) if after.get(name) is not None else before.get(name) for name in (*before, *after)}


def _badness(entry: Mapping[str, Any]) -> int:
    return _WORST_LAST.index(entry["outcome"])
