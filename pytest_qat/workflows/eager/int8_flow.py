"""Follow int8 tensors through a traced call: where they go, what refuses them, what has to stay in float."""

from __future__ import annotations

from dataclasses import dataclass

import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization.quantization_mappings import (
    get_default_qat_module_mappings,
    get_default_static_quant_module_mappings,
)

from pytest_qat.workflows.eager.trace import Call, Trace

__all__ = ["Int8Flow", "follow_int8", "has_int8_form"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Flow:
    """Where int8 tensors meet something without an int8 kernel.

    Attributes:
        islands: Leaf modules that must run in float, each with the reason.
        requantized: Those islands whose output goes on to int8 modules.
        refused: `(function name, owning module, file:line)` of calls outside of modules that int8 tensors do not
            survive.
    """

    islands: dict[str, str]
    requantized: frozenset[str]
    refused: tuple[tuple[str, str, str], ...]


def follow_int8(trace: Trace, model: nn.Module, *, float_modules: dict[str, str], border_quantizes: bool) -> Int8Flow:
    """Propagate "this value is quantized" through a trace.

    Args:
        trace: One call of `model`.
        model: The traced model.
        float_modules: Modules that get no qconfig, with the reason.
        border_quantizes: Whether the model's inputs arrive quantized.
    """
    quantized = set(trace.inputs) if border_quantizes else set()
    islands: dict[str, str] = {}
    requantized: set[str] = set()
    refused: list[tuple[str, str, str]] = []
    for entry in trace.calls:
        arrives = any(value in quantized for value in entry.inputs)
        if entry.kind == "function":
            if arrives and not entry.takes_int8 and not _float_functional(entry, trace):
                refused.append((entry.name, entry.owner, entry.place))
            if arrives:
                quantized.update(entry.outputs)
            continue
        module = model.get_submodule(entry.name)
        if isinstance(module, tq.DeQuantStub):
            continue
        wanted = _wanted_quantized(entry, trace, model, float_modules)
        reason = _island_reason(entry, module, float_modules, here=arrives or (border_quantizes and wanted))
        if reason is not None:
            islands[entry.name] = reason
            if wanted:
                requantized.add(entry.name)
                quantized.update(entry.outputs)
        elif arrives or isinstance(module, tq.QuantStub):
            quantized.update(entry.outputs)
    return Int8Flow(islands=islands, requantized=frozenset(requantized), refused=tuple(dict.fromkeys(refused)))


def _island_reason(entry: Call, module: nn.Module, float_modules: dict[str, str], *, here: bool) -> str | None:
    """Return why a module is an island, if int8 tensors come `here`, or are wanted of it."""
    if isinstance(module, tq.QuantStub) or entry.name.endswith("activation_post_process") or not here:
        return None
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return float_modules.get(entry.name)
    if entry.name in float_modules:
        return None if entry.takes_int8 else float_modules[entry.name]
    if has_int8_form(module) or entry.takes_int8:
        return None
    return f"{type(module).__name__} has no int8 kernel in eager mode"


def has_int8_form(module: nn.Module) -> bool:
    """Whether eager mode swaps modules of this type for int8 ones."""
    return type(module) in _INT8_FORMS


_INT8_FORMS = (frozenset(get_default_static_quant_module_mappings()) | frozenset(get_default_qat_module_mappings())
               | {nn.LSTM})  # by way of torch.ao.nn.quantizable.LSTM


def _float_functional(entry: Call, trace: Trace) -> bool:
    """Whether a call was made by a FloatFunctional, which passes its result to its own observer slot."""
    consumers = [user for value in entry.outputs for user in trace.consumers(value)]
    return any(user.name.endswith("activation_post_process") for user in consumers)


def _wanted_quantized(entry: Call, trace: Trace, model: nn.Module, float_modules: dict[str, str]) -> bool:
    """Whether an island's output reaches a module with an int8 form before it leaves the model or is dequantized."""
    frontier, seen = list(entry.outputs), set(entry.outputs)
    while frontier:
        for user in trace.consumers(frontier.pop()):
            if user.name.endswith("activation_post_process"):
                return True
            if user.kind == "module":
                module = model.get_submodule(user.name)
                if isinstance(module, tq.DeQuantStub) or user.name in float_modules:
                    continue
                if has_int8_form(module):
                    return True
            new = [value for value in user.outputs if value not in seen]
            seen.update(new)
            frontier.extend(new)
    return False
