"""What a run is known by: the model that was asked for, and the recipe."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ModelSource", "RunKey"]


@dataclass(frozen=True, slots=True, eq=False)
class ModelSource:
    """Where a model comes from. Two sources are the same if their reference is and they hold the same object.

    Attributes:
        reference: Name in item ids and in the record, the same in every process: what `--qat-model` says, or a name
            for the object of a marker.
        given: The object itself, where a marker holds one instead of a reference; else None.
    """

    reference: str
    given: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelSource) and self.reference == other.reference and self.given is other.given

    def __hash__(self) -> int:
        return hash((self.reference, id(self.given)))

    def __str__(self) -> str:
        return self.reference


@dataclass(frozen=True, slots=True)
class RunKey:
    """One model by one recipe.

    Attributes:
        model: Where the model comes from.
        recipe: Name of the recipe.
    """

    model: ModelSource
    recipe: str

    def __str__(self) -> str:
        return f"{self.model}[{self.recipe}]"
