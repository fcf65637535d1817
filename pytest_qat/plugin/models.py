"""`--qat-model` as collectors and items: one item per model, recipe and check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.errors import CheckFailed, QATError
from pytest_qat.plugin.items import CommandLineItem
from pytest_qat.plugin.keys import OUTCOME
from pytest_qat.recipe import AUTO
from pytest_qat.record.schema import CHECKS

if TYPE_CHECKING:
    from pytest_qat.case import QATCase
    from pytest_qat.checks import Assessment, Result
    from pytest_qat.plugin.session import QATSession

__all__ = ["CheckItem", "ModelCollector", "RankingItem", "RecipeCollector", "raise_result"]


class ModelCollector(pytest.Collector):
    """One `--qat-model` reference; collecting it loads the case and makes a collector per recipe."""

    def __init__(self, *, qat: QATSession, reference: str, **kwargs: Any) -> None:
        super().__init__(nodeid=f"qat-model:{reference}", **kwargs)
        self.qat = qat
        self.reference = reference

    def collect(self) -> Iterator[pytest.Collector]:
        """Yield a collector per recipe.

        Raises:
            CollectError: the reference, what it gives, or a recipe's name is bad.
        """
        try:
            case = self.qat.registry.case(self.reference, key=self.reference, source=self.reference)
            recipes = self.qat.registry.recipes(case)
        except QATError as error:
            raise self.CollectError(f"--qat-model={self.reference}: {error}") from None
        for recipe in recipes:
            yield RecipeCollector.from_parent(self, name=f"{self.name}[{recipe}]", recipe=recipe)


class RecipeCollector(pytest.Collector):
    """One model with one recipe; its items are the checks in their order."""

    parent: ModelCollector

    def __init__(self, *, recipe: str, parent: ModelCollector, **kwargs: Any) -> None:
        super().__init__(nodeid=f"{parent.nodeid}[{recipe}]", parent=parent, **kwargs)
        self.recipe = recipe

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the checks; for `auto` the one item that tries every recipe."""
        if self.recipe == AUTO:
            yield RankingItem.from_parent(self, name="ranking")
            return
        for check in CHECKS:
            yield CheckItem.from_parent(self, name=check)


class _ModelItem(CommandLineItem):
    """What a recipe of a model is made of."""

    parent: RecipeCollector

    @property
    def title(self) -> str:
        """Model, recipe and check."""
        return f"{self.parent.name} {self.name}"


class CheckItem(_ModelItem):
    """One check of one model and recipe."""

    def runtest(self) -> None:
        """Make the check.

        Raises:
            CheckFailed: the answer is no.
            QATError: the question could not be asked.
        """
        qat = self.parent.parent.qat
        reference = self.parent.parent.reference
        registry = qat.registry
        case = registry.case(reference, key=reference, source=reference)
        assessment = registry.assessment(case, self.parent.recipe, key=reference, reference=reference)
        try:
            result = assessment.check(self.name, selected=qat.selected(reference, self.parent.recipe))
        finally:
            qat.note(self, assessment.record())
        raise_result(result, item=self)


class RankingItem(_ModelItem):
    """`--qat-recipe=auto` of one model: passes if some recipe holds the tolerances."""

    def runtest(self) -> None:
        """Try the recipes.

        Raises:
            CheckFailed: none of them holds the tolerances.
            QATError: the question could not be asked.
        """
        from pytest_qat.auto import rank

        qat = self.parent.parent.qat
        reference = self.parent.parent.reference
        registry = qat.registry
        records: list[dict[str, Any]] = []

        def assess(case: QATCase, recipe: str, glance: bool) -> Assessment:
            if glance:
                return registry.glance(case, recipe, reference=reference)
            return registry.assessment(case, recipe, key=reference, reference=reference)

        ranking: dict[str, Any] = {"model": reference, "entries": []}
        try:
            entries = rank(registry.case(reference, key=reference, source=reference), assess,
                           done=lambda assessment: records.append(assessment.record()))
            ranking["entries"] = [entry.as_dict() for entry in entries]
        finally:
            qat.note(self, *records, ranking=ranking)
        if not any(entry.holds for entry in entries):
            raise CheckFailed(["no recipe holds the tolerances.",
                               *(f"{entry.recipe}: {entry.note}" for entry in entries)])


def raise_result(result: Result, *, item: pytest.Item, prefix: str = "") -> None:
    """Turn an outcome into what pytest understands: nothing, a failure or a skip, whose reason has the prefix."""
    __tracebackhide__ = True
    outcome = result.verdict.outcome.value
    if outcome == "passed":
        return
    if outcome == "failed":
        raise result.error or CheckFailed(result.verdict.reasons, findings=result.verdict.findings)
    reason = prefix + " ".join(result.verdict.reasons)
    item.stash[OUTCOME] = outcome
    pytest.skip(reason if reason.startswith(outcome) else f"{outcome}: {reason}")

