"""The tensors in a `state_dict`: those of quantized modules and tensor subclasses are taken out of what packs them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pytest_qat.core.products import unpacked
from pytest_qat.runtimes.base import StoredTensor

__all__ = ["digest_of", "is_qparams_name", "stored_tensors"]

_QPARAMS = re.compile(r"(^|[._])(scale|zero_point|zp)s?(_\d+)*$")
_WORTH_A_DIGEST = 256
"""Bytes from which on it matters that a tensor is stored twice."""


def stored_tensors(state: Mapping[str, Any]) -> tuple[StoredTensor, ...]:
    """Return the tensors of a `state_dict`; those that share memory, which a file holds once, once."""
    found: list[StoredTensor] = []
    seen: set[tuple[int, tuple[int, ...]]] = set()
    parts = {name: [part for leaf in pytree.tree_leaves(value) for part in _parts(leaf)]
             for name, value in state.items()}  # all at once: what is unpacked anew must not take the place of another
    for name, leaves in parts.items():
        numbered = len(leaves) != len({suffix for suffix, _ in leaves})
        for index, (suffix, leaf) in enumerate(leaves):
            key = (leaf.data_ptr(), tuple(leaf.shape))
            if leaf.numel() == 0 or (key in seen and leaf.data_ptr() != 0):
                continue
            seen.add(key)
            found += _entries(f"{name}{suffix}{f'[{index}]' if numbered else ''}", leaf)
    return tuple(found)


def _entries(name: str, tensor: Tensor) -> Iterator[StoredTensor]:
    values = tensor.int_repr() if tensor.is_quantized else tensor
    yield StoredTensor(
        name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape),
        size_bytes=tensor.numel() * tensor.element_size(),
        qparams=is_qparams_name(name) and tensor.dim() <= 2, digest=_digest(values))
    if tensor.is_quantized and tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric,
                                                    torch.per_channel_affine_float_qparams):
        for label, each in (("scales", tensor.q_per_channel_scales()), ("zero points",
                                                                       tensor.q_per_channel_zero_points())):
            yield StoredTensor(name=f"{name} ({label})", dtype=str(each.dtype).removeprefix("torch."), qparams=True,
                               shape=tuple(each.shape), size_bytes=each.numel() * each.element_size())


def is_qparams_name(name: str) -> bool:
    """Whether tensors of this name hold scales or zero points."""
    return bool(_QPARAMS.search(name))


def digest_of(content: bytes) -> str:
    """Return what equal values have in common; "" for values too few to matter."""
    return hashlib.blake2b(content, digest_size=8).hexdigest() if len(content) >= _WORTH_A_DIGEST else ""


def _digest(values: Tensor) -> str:
    if values.numel() * values.element_size() < _WORTH_A_DIGEST or values.is_sparse:
        return ""
    plain = values.detach().cpu().contiguous()
    try:
        return digest_of(plain.view(torch.uint8).numpy().tobytes())
    except (RuntimeError, TypeError):  # a dtype or layout without plain bytes
        return ""


def _parts(value: Any) -> list[tuple[str, Tensor]]:
    """Return the plain tensors in packed parameters, or those that a tensor subclass is made of, with their names."""
    if isinstance(value, torch.ScriptObject):
        packed = pytree.tree_leaves(value.unpack()) if hasattr(value, "unpack") else unpacked(value)
        return [("", part) for part in packed if isinstance(part, Tensor)]
    if not isinstance(value, Tensor):
        return []
    if not hasattr(value, "__tensor_flatten__"):
        return [("", value)]
    names, _ = value.__tensor_flatten__()
    return [(f".{name}{suffix}", part) for name in names for suffix, part in _parts(getattr(value, name))]
