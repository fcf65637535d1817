"""`--qat-model` as collectors and items: one item per model, recipe and check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.plugin.items import CommandLineItem, note, raise_result
from pytest_qat.recipe import AUTO, COMPLETE_RECIPES
from pytest_qat.record.keys import ModelSource, RunKey
from pytest_qat.record.schema import CHECKS

if TYPE_CHECKING:
    from pytest_qat.checks import ModelChecks
    from pytest_qat.plugin.session import QATSession
    from pytest_qat.record.schema import ProbeRecord, Ranking, RunRecord

__all__ = ["CheckItem", "ModelCollector", "ProbeItem", "RankingItem", "RecipeCollector"]


class ModelCollector(pytest.Collector):
    """One `--qat-model` reference; collecting it loads the case and makes a collector per recipe."""

    def __init__(self, *, qat: QATSession, reference: str, **kwargs: Any) -> None:
        super().__init__(nodeid=f"qat-model:{reference}", **kwargs)
        self.qat = qat
        self.source = ModelSource(reference)

    def collect(self) -> Iterator[pytest.Collector | pytest.Item]:
        """Yield a collector per recipe; for `--qat-probe` the one item that tries which recipes take the model.

        Raises:
            CollectError: the reference, what it gives, or a recipe's name is bad.
        """
        try:
            case = self.qat.registry.case(self.source)
            recipes = self.qat.registry.recipes(case)
        except QATError as error:
            raise self.CollectError(f"--qat-model={self.source}: {error}") from None
        if self.qat.options.probe:
            yield ProbeItem.from_parent(self, name="probe")
            return
        for recipe in recipes:
            yield RecipeCollector.from_parent(self, name=f"{self.name}[{recipe}]", recipe=recipe)


class RecipeCollector(pytest.Collector):
    """One model with one recipe; its items are the checks in their order."""

    parent: ModelCollector

    def __init__(self, *, recipe: str, parent: ModelCollector, **kwargs: Any) -> None:
        super().__init__(nodeid=f"{parent.nodeid}[{recipe}]", parent=parent, **kwargs)
        self.key = RunKey(parent.source, recipe)

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the checks; for `auto` the one item that tries every recipe."""
        if self.key.recipe == AUTO:
            yield RankingItem.from_parent(self, name="ranking")
            return
        for check in CHECKS:
            yield CheckItem.from_parent(self, name=check)


class _ModelItem(CommandLineItem):
    """An item of one model and recipe."""

    parent: RecipeCollector

    @property
    def title(self) -> str:
        """Model, recipe and check."""
        return f"{self.parent.name} {self.name}"

    @property
    def key(self) -> RunKey:
        """The model and the recipe."""
        return self.parent.key

    @property
    def qat(self) -> QATSession:
        """The session."""
        return self.parent.parent.qat


class CheckItem(_ModelItem):
    """One check of one model and recipe."""

    def runtest(self) -> None:
        """Make the check.

        Raises:
            CheckFailed: the model does not pass.
            QATError: the check could not be made.
        """
        from pytest_qat.diagnosis.causes import with_causes

        checks = self.qat.registry.checks(self.key)
        try:
            result = with_causes(checks, checks.check(self.name, selected=self.qat.selected(self.key)))
        finally:
            note(self, checks.record())
        raise_result(result, item=self)


class RankingItem(_ModelItem):
    """`--qat-recipe=auto` of one model: passes if some recipe meets the tolerances."""

    def runtest(self) -> None:
        """Try the recipes.

        Raises:
            CheckFailed: no recipe meets the tolerances.
            QATError: the recipes could not be tried.
        """
        from pytest_qat.auto import rank

        source, registry = self.key.model, self.qat.registry
        records: list[RunRecord] = []

        def done(checks: ModelChecks) -> None:
            records.append(checks.record())

        ranking: Ranking = {"model": source.reference, "entries": []}
        try:
            case = registry.case(source)
            ranking["entries"] = rank(case, self.qat.options.tolerances(case.tolerances), glance=registry.glance,
                                      done=done, probe=lambda names: registry.probes(source, names),
                                      checks=lambda recipe: registry.checks(RunKey(source, recipe)))
        finally:
            note(self, *records, ranking=ranking)
        if not any(entry["holds"] for entry in ranking["entries"]):
            raise CheckFailed(["no recipe holds the tolerances.",
                               *(f"{entry['recipe']}: {entry['note']}" for entry in ranking["entries"])])


class ProbeItem(CommandLineItem):
    """`--qat-probe` of one model: passes if some recipe takes it."""

    parent: ModelCollector

    @property
    def title(self) -> str:
        """The model."""
        return f"{self.parent.name} {self.name}"

    def runtest(self) -> None:
        """Try the recipes without training.

        Raises:
            CheckFailed: no recipe takes the model.
            QATError: the float model does not run.
        """
        from dataclasses import asdict

        from pytest_qat.core.torch_state import preserved_torch_state
        from pytest_qat.pipeline.preflight import checked_model
        from pytest_qat.pipeline.probe import best_first, held_to

        qat, source = self.parent.qat, self.parent.source
        names = [name for name in qat.options.recipes if name != AUTO] or COMPLETE_RECIPES
        case = qat.registry.case(source)
        with preserved_torch_state(seed=qat.options.seed):
            checked_model(case)  # a model that does not run fails here, not once for each recipe
        floor = qat.options.tolerances(case.tolerances).coverage_floor
        found = sorted((held_to(probe, floor) for probe in qat.registry.probes(source, names)), key=best_first)
        note(self, probes={"model": source.reference, "name": case.label, "command": qat.registry.command(source),
                           "probes": [cast("ProbeRecord", asdict(probe)) for probe in found]})
        if not any(probe.takes for probe in found):
            raise CheckFailed(["no recipe takes the model.", *(f"{probe.recipe}: {probe.reason}" for probe in found)])
