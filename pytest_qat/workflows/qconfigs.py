"""Which qconfig a module gets: the mapping of a case or of an engine, looked up in eager as FX does it."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch.ao.quantization as tq
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.workflows.base import CONTAINERS

__all__ = ["float_roots", "in_graph", "qconfig_for", "qconfig_mapping"]


def qconfig_mapping(case: QATCase, *, engine: str | None) -> tq.QConfigMapping:
    """Return a copy of the case's mapping, else the engine's own for QAT, with None for what cannot or shall not be.

    That is the skipped modules, and torch's own modules with layers inside, such as nn.TransformerEncoder.
    """
    mapping: tq.QConfigMapping | None = copy.deepcopy(case.qconfig_mapping)
    if mapping is None:
        # An embedding needs a qconfig of its own (float qparams); the default one makes torch.ao raise.
        mapping = (tq.get_default_qat_qconfig_mapping(engine or "x86")
                   .set_object_type(nn.Embedding, None).set_object_type(nn.EmbeddingBag, None))
    closed = [name for name, module in case.model.named_modules() if _is_closed(module)]
    for name in (*case.skip, *(name for name in closed if name not in mapping.module_name_qconfigs)):
        mapping.set_module_name(name, None)
    return mapping


def _is_closed(module: nn.Module) -> bool:
    """Whether this is a module of torch's with layers inside: FX takes it for one op, and its fast path skips them."""
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and not isinstance(module, CONTAINERS) and any(True for _ in module.children())


def qconfig_for(name: str, module: nn.Module, mapping: tq.QConfigMapping) -> Any:
    """Look a module up as FX does: by its name or a parent's, by regex, by type, else the global one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        parent = ".".join(parts[:length])
        if parent in mapping.module_name_qconfigs:
            return mapping.module_name_qconfigs[parent]
    for pattern, qconfig in mapping.module_name_regex_qconfigs.items():
        if re.match(pattern, name):
            return qconfig
    kinds: list[Any] = [type(module)]
    if type(module).__module__.startswith("torch.ao.nn.intrinsic") and isinstance(module, nn.Sequential):
        kinds.append(type(module[0]))  # a fused module answers to the type of its first part
    for kind in kinds:
        if kind in mapping.object_type_qconfigs:
            return mapping.object_type_qconfigs[kind]
    return mapping.global_qconfig


def in_graph(mapping: tq.QConfigMapping, name: str, module: nn.Module) -> tq.QConfigMapping:
    """Return a mapping for the graph of one module, in which that module is called `module`.

    Args:
        mapping: Of the whole model.
        name: The module's name in it; "" for the model itself.
        module: The module.
    """
    inner: tq.QConfigMapping = copy.deepcopy(mapping)
    inner.module_name_qconfigs.clear()
    inner.module_name_regex_qconfigs.clear()
    for below, part in module.named_modules():
        full, own = (".".join(filter(None, (start, below))) for start in (name, "module"))
        named = any(parent in mapping.module_name_qconfigs for parent in _with_parents(full))
        if named or any(re.match(pattern, full) for pattern in mapping.module_name_regex_qconfigs):
            inner.set_module_name(own, qconfig_for(full, part, mapping))
    return inner


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def float_roots(model: nn.Module, mapping: tq.QConfigMapping, case: QATCase) -> dict[str, str]:
    """Return the largest modules that get no qconfig anywhere inside, each with the reason."""
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        inside = [(f"{name}.{child}" if child else name, part) for child, part in module.named_modules()]
        if not name or any(name.startswith(f"{root}.") for root in reasons):
            continue
        if all(qconfig_for(path, part, mapping) is None for path, part in inside):
            reasons[name] = _reason(name, module, case)
    return reasons


def _reason(name: str, module: nn.Module, case: QATCase) -> str:
    if any(name == skipped or name.startswith(f"{skipped}.") for skipped in case.skip):
        return "left in float on purpose (skip)"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding needs a weight-only qconfig of its own"
    if _is_closed(module):
        return f"fx and eager mode take nn.{type(module).__name__} for one operation, which has no int8 kernel"
    return "the qconfig mapping gives it no qconfig"
