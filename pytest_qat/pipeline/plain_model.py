"""The model that is quantized: the user's own, or, where that cannot be, an equal one of plain layers.

Quantization copies modules and reads their weights. A weight that is computed anew in every call (weight norm, spectral
norm, pruning, other parametrizations) can be neither copied nor quantized; it is merged on a copy, where it is exactly
what it was. So is a linear layer that holds its weights the other way round, and a batch norm's weight of 0. Attributes
that cannot be copied (a lock, an open file) are shared with the user's model instead.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from pytest_qat.case import QATCase
from pytest_qat.core.batches import call, float_tensors
from pytest_qat.findings import Finding
from pytest_qat.pipeline.transposed import as_linear, may_be_transposed
from pytest_qat.pipeline.zero_gamma import has_zero_gamma, without_zero_gamma

__all__ = ["copied", "with_plain_model"]

_SAME = 1e-5
"""Largest difference, as a share of the largest output, that merging may make: the weights are the same numbers."""


_OWN = frozenset(vars(nn.Module()))
"""What every module has; its hooks are functions, and its parameters are leaves."""


def with_plain_model(case: QATCase) -> tuple[QATCase, tuple[Finding, ...]]:
    """Return the case with a model that can be copied and quantized, and notes on what was done to it.

    Where the user's model can be, or no copy can be made, or merging changes what it computes, the case is returned as
    it is.
    """
    uncopied = _without_copies(case.model)
    if not (uncopied or any(True for _ in _merged_kinds(case.model)) or any(
            True for _ in may_be_transposed(case.model)) or has_zero_gamma(case.model)):
        return case, ()
    try:
        model = _copyable(copied(case.model)).eval()
        merged = _merge(model)
        turned = as_linear(model)
        filled = without_zero_gamma(model)
        if not (merged or turned or filled or uncopied):
            return case, ()
        same = _same_outputs(case, model)
    except Exception:  # the stage that copies the model tells what is wrong with it
        return case, ()
    if not same:
        return case, ((Finding(
            code="parametrization-kept", severity="warning", module=next(iter(merged)),
            message="merging the weights that are computed in every call changes what the model computes, so they were "
                    "left as they are.", evidence={"modules": merged}),) if merged else ())
    return dataclasses.replace(case, model=model.train(case.model.training)), (
        *((_merged_note(merged),) if merged else ()), *((_turned_note(turned),) if turned else ()),
        *((_filled_note(filled),) if filled else ()))


def _merged_note(merged: dict[str, str]) -> Finding:
    kinds = ", ".join(sorted(set(merged.values())))
    return Finding(
        code="parametrization-merged", severity="note", module=next(iter(merged)) if len(merged) == 1 else None,
        message=f"{kinds} of {len(merged)} modules was merged into plain weights on a copy, which computes the same.",
        evidence={"modules": merged})


def _turned_note(turned: dict[str, str]) -> Finding:
    kinds = ", ".join(sorted(set(turned.values())))
    return Finding(
        code="transposed-linear", severity="note", module=next(iter(turned)) if len(turned) == 1 else None,
        message=f"{kinds} holds the weights of {len(turned)} linear layers as (inputs, outputs), which no quantizer "
                "knows; on a copy they are nn.Linear, which computes the same.",
        evidence={"modules": turned})


def _filled_note(filled: dict[str, int]) -> Finding:
    return Finding(
        code="zero-gamma", severity="note", module=next(iter(filled)) if len(filled) == 1 else None,
        message=f"batch norm has a weight of 0 in {sum(filled.values())} of its channels, by which QAT with batch norm "
                "folded in would divide; on a copy it is tiny instead, which computes the same.",
        evidence={"channels": filled})


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy; tensors with a history are detached in it, and what cannot be copied is shared.

    Raises whatever copying raises, where even that does not help.
    """
    return copy.deepcopy(model, _without_copies(model))


def _copyable(model: nn.Module) -> nn.Module:
    """Let the modules that hold something that cannot be copied share it with their copies, in place."""
    for module in model.modules():
        shared = [name for name, value in vars(module).items() if name not in _OWN and _refuses_somewhere(value)]
        if shared:
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {
                "__deepcopy__": _sharing(frozenset(shared)), "__module__": kind.__module__})
    return model


def _sharing(shared: frozenset[str]) -> Callable[[Any, dict[int, Any]], Any]:
    def copied_but(self: Any, memo: dict[int, Any]) -> Any:
        kind: Any = type(self)
        made = kind.__new__(kind)
        memo[id(self)] = made
        vars(made).update({name: value if name in shared else copy.deepcopy(value, memo)
                           for name, value in vars(self).items()})
        return made

    return copied_but


def _refuses_somewhere(value: Any) -> bool:
    return any(not isinstance(leaf, (Tensor, nn.Module)) and _refuses(leaf) for leaf in pytree.tree_leaves(value))


def _without_copies(model: nn.Module) -> dict[int, Any]:
    """Return what stands for attributes that copy.deepcopy refuses, by their identity."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _OWN or isinstance(value, (nn.Module, str, int, float, bool, type(None))):
                continue
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and not leaf.is_leaf:
                    memo[id(leaf)] = leaf.detach().clone()
                elif not isinstance(leaf, (Tensor, nn.Module)) and _refuses(leaf):
                    memo[id(leaf)] = leaf
    return memo


def _refuses(value: Any) -> bool:
    if isinstance(value, (str, int, float, bool, type(None), type, torch.dtype, torch.device)) or callable(value):
        return False
    try:
        copy.deepcopy(value)
    except Exception:  # whatever an object does to forbid it
        return True
    return False


def _merged_kinds(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the modules whose weights are computed in every call, with what computes them."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            yield name, "a parametrization"
        for hook in module._forward_pre_hooks.values():  # noqa: SLF001 - where torch keeps them
            if isinstance(hook, WeightNorm):
                yield name, "weight norm"
            elif isinstance(hook, SpectralNorm):
                yield name, "spectral norm"
            elif isinstance(hook, prune.BasePruningMethod):
                yield name, "pruning"


def _merge(model: nn.Module) -> dict[str, str]:
    """Make the weights of a model plain ones, in place; return what was merged by module."""
    kinds = dict(_merged_kinds(model))
    for name in kinds:
        module = model.get_submodule(name)
        if parametrize.is_parametrized(module):
            _merge_parametrizations(module)
        for key, hook in list(module._forward_pre_hooks.items()):  # noqa: SLF001
            if isinstance(hook, (WeightNorm, SpectralNorm, prune.BasePruningMethod)):
                hook(module, ())  # the weight as the next call would have it
                hook.remove(module)
                del module._forward_pre_hooks[key]  # noqa: SLF001
                _forget_loading(module, hook)
    return kinds


def _merge_parametrizations(module: Any) -> None:
    """Do as `parametrize.remove_parametrizations`, which also changes the class that copies share with the original."""
    values = {name: (getattr(module, name).detach().clone(), isinstance(chain.original, nn.Parameter) if hasattr(
        chain, "original") else True) for name, chain in module.parametrizations.items()}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, (value, trained) in values.items():
        if trained:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def _forget_loading(module: nn.Module, hook: Any) -> None:
    """Take away the hooks with which spectral norm saves and loads its state."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):  # noqa: SLF001
        for key, other in list(hooks.items()):
            if getattr(getattr(other, "hook", other), "fn", None) is hook:
                del hooks[key]


def _same_outputs(case: QATCase, model: nn.Module) -> bool:
    before = copied(case.model).eval()
    with torch.no_grad():
        state = torch.get_rng_state()
        wanted = float_tensors(call(before, copy.deepcopy(case.example_inputs)))
        torch.set_rng_state(state)
        made = float_tensors(call(model, copy.deepcopy(case.example_inputs)))
    return len(wanted) == len(made) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=0, equal_nan=True,
                                                    atol=_SAME * float(one.nan_to_num().abs().max()) if one.numel()
                                                    else 0) for one, other in zip(wanted, made, strict=True))
