"""What the bytes of an artifact are, by dtype, by tensor and by kind, so that what keeps it large can be named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_qat.runtimes.base import Deployed, StoredTensor

__all__ = ["Kind", "SizeCensus", "census_of", "take_census"]

Kind = Literal["int8", "float_weights", "dead", "duplicates", "qparams", "other", "unknown", "structure"]
"""Integer weights; float ones of two and more dimensions; tensors of modules whose weights nothing reads; values stored
again; scales and zero points; biases and the like; data that the artifact says nothing of; all that is no tensor."""

_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCensus:
    """The bytes of one artifact.

    Attributes:
        total_bytes: Size of the file.
        by_dtype: Bytes of the tensors by dtype, most first.
        tensors: The tensors, largest first.
    """

    total_bytes: int
    by_dtype: dict[str, int]
    tensors: tuple[StoredTensor, ...]

    @property
    def container_bytes(self) -> int:
        """What is not tensors: the container, names, qparams, code."""
        return max(0, self.total_bytes - sum(self.by_dtype.values()))

    def kinds(self, *, dead: Collection[str] = ()) -> dict[Kind, tuple[StoredTensor, ...]]:
        """Return the tensors by kind, each once.

        Args:
            dead: Names of tensors that nothing reads; with a dot at the end, how such names begin.
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
        """Return the bytes of each kind, most first; they add up to the file, or to the tensors if it packs them."""
        counts = Counter[Kind]({kind: sum(tensor.size_bytes for tensor in tensors)
                                for kind, tensors in self.kinds(dead=dead).items()})
        counts["structure"] = self.container_bytes
        return {kind: size for kind, size in counts.most_common() if size}

    def float_weights(self, *, least_share: float) -> tuple[StoredTensor, ...]:
        """Return float tensors of two or more dimensions with at least `least_share` of the file, largest first."""
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
