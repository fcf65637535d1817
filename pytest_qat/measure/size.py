"""What the bytes of an artifact consist of, by dtype, tensor and kind, to name what keeps it large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_qat.runtimes.base import Deployed, StoredTensor

__all__ = ["Kind", "SizeCensus", "census_of", "take_census"]

Kind = Literal["int8", "float_weights", "dead", "duplicates", "qparams", "other", "unknown", "structure"]
"""In this order: integer weights; float weights of two or more dimensions; tensors that nothing reads; values that are
stored more than once; scales and zero points; biases and other small tensors; data that the artifact does not describe;
everything that is not a tensor."""

_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCensus:
    """The bytes of one artifact.

    Attributes:
        total_bytes: Size of the file.
        by_dtype: Bytes of the tensors by dtype, the largest first.
        tensors: The tensors, largest first.
    """

    total_bytes: int
    by_dtype: dict[str, int]
    tensors: tuple[StoredTensor, ...]

    @property
    def container_bytes(self) -> int:
        """Bytes that do not belong to tensors: the container, names, qparams, code."""
        return max(0, self.total_bytes - sum(self.by_dtype.values()))

    def kinds(self, *, dead: Collection[str] = ()) -> dict[Kind, tuple[StoredTensor, ...]]:
        """Return the tensors by kind, each once.

        Args:
            dead: Names of tensors that nothing reads; a name that ends in a dot matches all names that start with it.
        """
        found: dict[Kind, list[StoredTensor]] = {}
        seen: set[tuple[str, str]] = set()
        for tensor in self.tensors:
            key = (tensor.digest, tensor.dtype)
            again = bool(tensor.digest) and not tensor.qparams and len(tensor.shape) > 1 and key in seen
            seen.add(key)
            found.setdefault("duplicates" if again else _kind(tensor, dead), []).append(tensor)
        return {kind: tuple(tensors) for kind, tensors in found.items()}

    def bytes_by_kind(self, *, dead: Collection[str] = ()) -> dict[Kind, int]:
        """Return the bytes of each kind, the largest first.

        They add up to the size of the file, or to the size of the tensors if the file compresses them.
        """
        counts = Counter[Kind]({kind: sum(tensor.size_bytes for tensor in tensors)
                                for kind, tensors in self.kinds(dead=dead).items()})
        counts["structure"] = self.container_bytes
        return {kind: size for kind, size in counts.most_common() if size}

    def float_weights(self, *, least_share: float) -> tuple[StoredTensor, ...]:
        """Return the float tensors of two or more dimensions that take at least `least_share` of the file."""
        return tuple(tensor for tensor in self.tensors
                     if tensor.dtype in _FLOATS and len(tensor.shape) > 1
                     and tensor.size_bytes >= least_share * self.total_bytes)


def _kind(tensor: StoredTensor, dead: Collection[str]) -> Kind:
    if tensor.dtype == "bytes":
        return "qparams" if tensor.qparams else "unknown"
    if any(tensor.name.startswith(name) if name.endswith(".") else tensor.name == name for name in dead):
        return "dead"
    if tensor.qparams:
        return "qparams"
    if tensor.dtype in _FLOATS:
        return "float_weights" if len(tensor.shape) > 1 else "other"
    return "int8" if len(tensor.shape) > 1 else "other"


def take_census(deployed: Deployed) -> SizeCensus:
    """Return the census of a deployed model's artifact."""
    return census_of(deployed.tensors, total_bytes=deployed.size_bytes)


def census_of(tensors: Sequence[StoredTensor], *, total_bytes: int) -> SizeCensus:
    """Return the census of these tensors in a file of this size."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.size_bytes
    return SizeCensus(total_bytes=total_bytes, by_dtype=dict(counts.most_common()),
                      tensors=tuple(sorted(tensors, key=lambda tensor: -tensor.size_bytes)))
