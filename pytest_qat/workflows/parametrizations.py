"""Weights that a model computes anew in every call become plain parameters, in eval mode, before it is quantized.

Weight norm, spectral norm and other parametrizations, in the new form (`torch.nn.utils.parametrizations`) and in the
old one (a hook), give a value that does not depend on the input. What ships holds that value, and a quantizer needs
it as a parameter. Pruning masks are left alone: without its mask a pruned weight would grow back in training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pytest_qat.findings import Finding

__all__ = ["own_copy", "with_merged_parametrizations"]
def own_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode, also of a model that holds results of a computation as attributes.

    The old weight norm keeps the weight of its last call, which `copy.deepcopy` refuses to copy.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    copied = copy.deepcopy(model, memo)
    copied.eval()  # some models' own eval returns nothing
    return copied


def with_merged_parametrizations(model: nn.Module) -> tuple[nn.Module, tuple[Finding, ...]]:
    """Return a copy in eval mode in which computed weights are plain parameters, and a note for each of them.

    Args:
        model: Stays as it is.

    Returns:
        The copy, which computes the same in eval mode, and one `parametrization-merged` note per merged tensor.
    """
    merged = own_copy(model)
    findings = []
    for name, module in list(merged.named_modules()):
        for tensor, kind in (*_merge_parametrized(module), *_merge_hooked(module)):
            place = f"{name}.{tensor}" if name else tensor
            findings.append(Finding(
                code="parametrization-merged", severity="note", module=name or None,
                message=f"{place} was computed anew in every call ({kind}); it is quantized and trained as the plain "
                        "parameter that it gives in eval mode.", evidence={"tensor": place, "parametrization": kind}))
    return merged, tuple(findings)


def _merge_parametrized(module: nn.Module) -> Iterator[tuple[str, str]]:
    if not parametrize.is_parametrized(module):
        return
    shared = type(module)  # with the module that this is a copy of, and merging takes properties off the class
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrized: Any = module.parametrizations
    for tensor, parts in list(parametrized.items()):
        if parts.is_tensor and isinstance(parts.original, nn.Parameter):  # merged in place, and maybe another's, too
            parts.original = nn.Parameter(parts.original.detach().clone(), parts.original.requires_grad)
        kind = ", ".join(type(part).__name__.lstrip("_") for part in parts)
        parametrize.remove_parametrizations(module, tensor)
        yield tensor, kind


def _merge_hooked(module: nn.Module) -> Iterator[tuple[str, str]]:
    hooks: Any = module._forward_pre_hooks  # noqa: SLF001 - where the old weight_norm lives
    for key, hook in list(hooks.items()):
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            hook.remove(module)
            del hooks[key]
            yield hook.name, type(hook).__name__
