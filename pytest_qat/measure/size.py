"""What the bytes of an artifact are, by dtype and by tensor, so that float weights left in it can be named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_qat.runtimes.base import Deployed, StoredTensor

__all__ = ["SizeCensus", "census_of", "take_census"]

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

    def float_weights(self, *, least_share: float) -> tuple[StoredTensor, ...]:
        """Return float tensors of two or more dimensions with at least `least_share` of the file, largest first."""
        return tuple(tensor for tensor in self.tensors
                     if tensor.dtype in _FLOATS and len(tensor.shape) > 1
                     and tensor.size_bytes >= least_share * self.total_bytes)


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
