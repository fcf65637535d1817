"""Input shapes written as text (`--qat-inputs`); no torch, so that they are checked before anything heavy."""

from __future__ import annotations

from pytest_qat.errors import InvalidOption

__all__ = ["parse_shapes"]


def parse_shapes(text: str, *, name: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes written in `8x3x32x32`, several inputs separated by commas.

    Raises:
        InvalidOption: a dimension is not a whole number of at least 1.
    """
    shapes = []
    for part in text.split(","):
        try:
            shape = tuple(int(side) for side in part.strip().lower().split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise InvalidOption(
                f"{name} is {text!r}, expected whole numbers of at least 1 joined by x.",
                hint=f"Write {name}=1x3x224x224; separate several inputs with commas.")
        shapes.append(shape)
    return tuple(shapes)
